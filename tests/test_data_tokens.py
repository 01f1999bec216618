"""Prompts and responses become the tokens that generation will see."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headedit import HeadEditError
from headedit.data import prompt_ids, response_ids, to_pair
from headedit.data.encoding import encode
from headedit.data.tokens import Rendered, TokenisedPrompt, continuation_ids, exchange_tokens

WORDS = ["<pad>", "<s>", "</s>", "a", "b", "c", "ab", "x", "▁"]


def tokenizer(model, template="<s> $A"):
    ids = {word: i for i, word in enumerate(WORDS)}
    made = Tokenizer(model(ids))
    if isinstance(made.model, models.WordLevel):
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = [(token, ids[token]) for token in ("<s>", "</s>", "<pad>")]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def word_level(ids):
    return models.WordLevel(ids, unk_token="x")


def merging(ids):
    return models.BPE(vocab=ids, merges=[("a", "b")], unk_token="x")


def test_a_response_is_closed_by_the_end_of_text():
    made = tokenizer(word_level)
    assert prompt_ids(made, "a b") == [1, 3, 4]
    assert response_ids(made, "a b", " c a") == [5, 3, 2]


def test_an_end_of_text_that_the_tokenizer_adds_is_not_doubled_or_put_after_the_prompt():
    made = tokenizer(word_level, template="<s> $A </s>")
    assert prompt_ids(made, "a b") == [1, 3, 4]
    assert response_ids(made, "a b", " c") == [5, 2]


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
@pytest.mark.parametrize("text", ["a b </s>", "a </s> </s>", "</s>", "<s> a </s>"])
def test_an_end_of_text_that_ends_a_prompt_stays_in_it_and_is_not_labelled(template, text):
    made = tokenizer(word_level, template=template)
    opening = [1] if template.startswith("<s>") and not text.startswith("<s>") else []
    prompt = opening + made(text, add_special_tokens=False)["input_ids"]
    assert prompt_ids(made, text) == prompt
    assert response_ids(made, text, " c") == [5, 2]
    row = encode([(text, " c")], made, max_length=None, name="training", progress=False)[0]
    assert row == {"input_ids": [*prompt, 5, 2], "labels": [-100] * len(prompt) + [5, 2]}


def test_whatever_the_tokenizer_puts_after_a_text_is_no_part_of_a_prompt():
    made = tokenizer(word_level, template="<s> $A <pad>")
    assert prompt_ids(made, "a b") == [1, 3, 4]
    assert prompt_ids(made, "a <pad>") == [1, 3, 0]


def test_a_response_that_ends_with_end_of_text_gets_no_second_one():
    made = tokenizer(word_level)
    assert response_ids(made, "a </s>", " c </s>") == [5, 2]
    assert response_ids(made, "a", " </s>") == [2]


def test_an_end_of_text_between_the_turns_of_a_prompt_stays():
    made = tokenizer(word_level)
    ids, spans = exchange_tokens(made, [("a </s>", " b"), (" c </s>", " a")], [2])
    assert ids == [1, 3, 2, 4, 2, 5, 2, 3, 2]
    assert spans == [(3, 5), (7, 9)]


def test_a_merge_across_the_seam_leaves_the_prompt_as_generation_sees_it():
    made = tokenizer(merging)
    assert prompt_ids(made, "ca") == [1, 5, 3]
    assert prompt_ids(made, "cab") == [1, 5, 6]
    assert response_ids(made, "ca", "b") == [4, 2]


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        ({"prompt": "p", "response": "r"}, ("p", "r")),
        ({"prompt": "p", "completion": "r", "id": 3}, ("p", "r")),
        ({"instruction": "Why {x}?", "output": "long", "answer": "r"}, ("Why {x}?", "r")),
        ({"instruction": "Why?", "input": "  ", "output": "r"}, ("Why?", "r")),
        ({"instruction": "Why?", "input": "This.", "output": "r"}, ("Why?\n\nThis.", "r")),
    ],
)
def test_a_record_of_every_form_becomes_a_pair(record, pair):
    prompt, response = to_pair(record, "here")
    assert response == pair[1]
    if "instruction" in record:
        assert prompt == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            f"request.\n ### Instruction:\n{pair[0]}\n\n### Response:\n"
        )
    else:
        assert prompt == pair[0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", r"here: expected an object with named fields, found str"),
        ({"question": "q"}, r"here: found the fields question; expected prompt/response or"),
        ({"prompt": "p", "response": 3}, r"here: the field 'response' holds int, expected text"),
        ({"prompt": None, "response": "r"}, r"here: the field 'prompt' holds NoneType"),
        ({"instruction": "i", "answer": " \n"}, r"here: the field 'answer' is empty"),
        ({"instruction": "i", "input": 1, "answer": "a"}, r"here: the field 'input' holds int"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused_by_its_field(record, message):
    with pytest.raises(HeadEditError, match=message):
        to_pair(record, "here")


@pytest.mark.parametrize("model", [word_level, merging])
@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A"])
def test_responses_tokenised_together_are_those_tokenised_alone(model, template):
    made = tokenizer(model, template=template)
    prompts = ["a b", Rendered("<s> a"), TokenisedPrompt("a", [3, 7]), "ca", "<s> b", "a </s>"]
    responses = [" c", "b", "b </s>", "</s>"]
    expected = [(prompt_ids(made, p), [response_ids(made, p, r)[:-1] for r in responses]) for p in prompts]
    assert continuation_ids(made, [(p, responses) for p in prompts]) == expected
    assert continuation_ids(made, [(p, []) for p in prompts]) == [(head, []) for head, _ in expected]


def test_the_texts_of_all_questions_are_tokenised_in_two_calls():
    made = tokenizer(word_level)
    calls = []

    def counted(texts, **options):
        calls.append(len(texts))
        return made(texts, **options)

    counted.eos_token_id, counted.bos_token_id = 2, 1
    continuation_ids(counted, [("a", [" b", " c"])] * 5)
    assert calls == [15, 15]
