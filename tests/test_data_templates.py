"""Conversations in every template: loss on exactly the responses, on every one, each with what ends it."""

import pytest
from tokenizers_tiny import (
    BARE,
    BRACKETS,
    CHATML,
    ENDED,
    HEADED,
    MARKED,
    MARKED_TO_THE_LINE_END,
    PARTS,
    REFUSING,
    THINKING,
    UNSTABLE,
    UNSTABLE_MARKED,
    UNSTABLE_MARKED_TO_THE_LINE_END,
    byte_level,
    metaspace,
)

from headedit import HeadEditError
from headedit.data import conversation_tokens, default_template, last_exchange, prompt_ids, response_ids

MARKED_HEADED = MARKED.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")


def conversation(*texts, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


TWO = conversation("What is the sum?", "The sum is five.", "And of a and b?", "the answer is c")
SEAMS = conversation("two ", "\n\nfive", "three?\n", " a b", "é", "日本 c\n")
SAME = conversation("a", "five", "five", "five")


def responses(tokenizer, tokens):
    return [tokenizer.decode(tokens.ids[a:b]) for a, b in tokens.spans]


def check_prompts(tokenizer, messages, tokens, template):
    """Every response stands behind the tokens that generation is given."""
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(tokens.spans) == len(ends)
    for i, (start, _) in zip(ends, tokens.spans, strict=True):
        prompt, response = last_exchange(messages[: i + 1], template, tokenizer, "here")
        assert response == messages[i]["content"]
        assert tokens.ids[:start] == prompt_ids(tokenizer, prompt)


@pytest.mark.parametrize("messages", [TWO, SEAMS, SAME, conversation("a b", "c", system="the task")])
@pytest.mark.parametrize("chat_template", [CHATML, THINKING])
@pytest.mark.parametrize("bos", [True, False])
def test_the_responses_of_a_chat_template_are_found_by_its_prefixes(messages, chat_template, bos):
    tokenizer = byte_level(chat_template, bos=bos, eos="<|im_end|>")
    tokens = conversation_tokens(messages, "chat", tokenizer, "here")
    contents = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    if chat_template == THINKING:
        contents[-1] = "<think>\n\n</think>\n\n" + contents[-1]
    assert responses(tokenizer, tokens) == contents
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(tokens.ids) + "\n" == whole
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i, (start, _) in zip(ends, tokens.spans, strict=True):
        prompt = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        since = given[::-1].index(tokenizer.convert_tokens_to_ids("<|im_start|>")) + 1
        assert tokens.ids[start - since : start] == given[-since:]
        if messages is not SEAMS:  # there, a response of the history is not tokenised as the model said it
            assert tokens.ids[:start] == given


@pytest.mark.parametrize("build", [byte_level, metaspace])
@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (BRACKETS, "</s>")])
def test_without_a_torn_seam_the_tokens_are_the_templates_own(build, template, end):
    tokenizer = build(template)
    tokens = conversation_tokens(TWO, "chat", tokenizer, "here")
    own = list(tokenizer.apply_chat_template(TWO, tokenize=True, return_dict=True)["input_ids"])
    assert tokens.ids == own[: len(tokens.ids)]
    assert not tokenizer.decode(own[len(tokens.ids) :]).strip()
    found = ["".join(text.split()) for text in responses(tokenizer, tokens)]
    assert found == [f"Thesumisfive.{end}", f"theanswerisc{end}"]


def test_marks_of_a_template_give_the_same_as_its_prefixes_and_the_end_of_the_turn():
    marked, plain = byte_level(MARKED), byte_level(CHATML)
    for messages in (TWO, SAME, conversation("a b", "c", system="the task")):
        assert conversation_tokens(messages, "chat", marked, "x") == conversation_tokens(messages, "chat", plain, "x")
    wide = byte_level(MARKED_TO_THE_LINE_END)
    assert conversation_tokens(TWO, "chat", wide, "x") == conversation_tokens(TWO, "chat", plain, "x")
    half = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    assert conversation_tokens(TWO, "chat", byte_level(half), "x") == conversation_tokens(TWO, "chat", plain, "x")


def test_marks_of_a_template_narrow_a_response():
    thoughts = (
        THINKING.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
        .replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}")
        .replace("{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}{% endif %}")
    )
    tokenizer = byte_level(thoughts)
    tokens = conversation_tokens(TWO, "chat", tokenizer, "here")
    assert responses(tokenizer, tokens) == ["The sum is five.<|im_end|>", "the answer is c<|im_end|>"]


@pytest.mark.parametrize("chat_template", [UNSTABLE_MARKED, UNSTABLE_MARKED_TO_THE_LINE_END])
def test_a_template_that_is_not_prefix_stable_is_read_by_its_marks(chat_template):
    tokenizer = byte_level(chat_template)
    tokens = conversation_tokens(TWO, "chat", tokenizer, "here")
    assert responses(tokenizer, tokens) == ["The sum is five.<|im_end|>", "the answer is c<|im_end|>"]


def test_an_end_of_text_after_the_last_turn_alone_is_kept():
    tokenizer = byte_level(ENDED)
    tokens = conversation_tokens(TWO, "chat", tokenizer, "here")
    assert responses(tokenizer, tokens) == ["The sum is five.<|im_end|>", "the answer is c<|im_end|>\n</s>"]


def test_a_template_that_ends_no_turn_gets_the_end_of_text():
    tokens = conversation_tokens(TWO, "chat", byte_level(BARE), "here")
    assert responses(byte_level(BARE), tokens) == ["The sum is five.\n", "the answer is c\n</s>"]


def test_a_chat_template_that_cannot_be_used_is_refused():
    for template, message in (
        (UNSTABLE, r"here: the tokenizer's chat template renders a conversation differently once it continues"),
        (PARTS, r"here: the tokenizer's chat template refuses|here: the tokenizer's chat template renders"),
        (REFUSING, r"here: the tokenizer's chat template refuses.*System role not supported"),
        (None, r"The tokenizer has no chat template; use another"),
    ):
        with pytest.raises(HeadEditError, match=message):
            conversation_tokens(TWO, "chat", byte_level(template), "here")
    slow = type("Slow", (), {"is_fast": False, "chat_template": CHATML})()
    with pytest.raises(HeadEditError, match="need a fast tokenizer"):
        conversation_tokens(TWO, "chat", slow, "here")


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("messages", [TWO, SAME, conversation("a b", "c", system="the task")])
def test_chatml_marks_every_turn_and_its_end(make, messages):
    tokenizer = make()
    tokens = conversation_tokens(messages, "chatml", tokenizer, "here")
    ends = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    assert [t.replace(" <|im_end|>", "<|im_end|>") for t in responses(tokenizer, tokens)] == [
        *ends[:-1],
        ends[-1] + "</s>",
    ]
    if make is byte_level:
        check_prompts(tokenizer, messages, tokens, "chatml")
        whole = tokenizer.apply_chat_template(messages, chat_template=CHATML, tokenize=False)
        assert tokenizer.decode(tokens.ids) == f"<s>{whole.strip()}</s>"
        closed = conversation_tokens(messages, "chatml", byte_level(eos="<|im_end|>"), "here")
        assert closed.ids == tokens.ids[:-1]


def test_alpaca_is_the_papers_and_ends_every_response():
    tokenizer = byte_level()
    tokens = conversation_tokens(TWO, "alpaca", tokenizer, "here")
    assert responses(tokenizer, tokens) == ["The sum is five.</s>", "the answer is c</s>"]
    assert tokenizer.decode(tokens.ids) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n ### Instruction:\nWhat is the sum?\n\n### Response:\nThe sum is five.</s>"
        "\n\n### Instruction:\nAnd of a and b?\n\n### Response:\nthe answer is c</s>"
    )
    check_prompts(tokenizer, TWO, tokens, "alpaca")
    prompt, _ = last_exchange(conversation("{a}", "c", system="Be {instruction}."), "alpaca", tokenizer, "x")
    assert prompt == "Be {instruction}.\n ### Instruction:\n{a}\n\n### Response:\n"


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        (TWO, "plain", r"here: 'plain' holds one prompt and one response"),
        (conversation("a", "b", system="c"), "plain", r"here: 'plain' holds one prompt"),
        (TWO[1:], "alpaca", r"here: 'alpaca' needs user and assistant in turn, and found 'assistant' where 'user'"),
    ],
)
def test_a_conversation_that_does_not_fit_a_template_is_refused(messages, template, message):
    with pytest.raises(HeadEditError, match=message):
        conversation_tokens(messages, template, byte_level(), "here")


def test_every_format_has_a_default_template():
    assert default_template("llm-adapters", byte_level(CHATML)) == "alpaca"
    assert default_template("completion", byte_level(CHATML)) == "plain"
    assert default_template("sharegpt", byte_level(CHATML)) == "chat"
    assert default_template("messages", byte_level()) == "chatml"


@pytest.mark.parametrize("chat_template", [BRACKETS, CHATML])
def test_the_prompt_of_a_chat_template_has_the_opening_tokens_of_the_template(chat_template):
    tokenizer = byte_level(chat_template)
    prompt, response = last_exchange(TWO, "chat", tokenizer, "here")
    assert prompt.startswith("<s>") == (chat_template == BRACKETS)
    assert prompt_ids(tokenizer, prompt) == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(response_ids(tokenizer, prompt, response)) == "the answer is c</s>"


def test_a_prompt_that_begins_with_the_begin_of_text_gets_no_second_one():
    assert prompt_ids(byte_level(), "<s>a b") == prompt_ids(byte_level(), "a b")


BAD_AND_GOOD = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "bad", "weight": "0"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "good"},
]
GREETING = [{"role": "assistant", "content": "hello", "weight": "0"}, *BAD_AND_GOOD[2:]]


@pytest.mark.parametrize("messages", [BAD_AND_GOOD, GREETING])
@pytest.mark.parametrize("chat_template", [None, CHATML, MARKED, UNSTABLE_MARKED, BARE])
def test_a_response_that_is_not_learnt_is_context(messages, chat_template):
    tokenizer = byte_level(chat_template)
    tokens = conversation_tokens(messages, "chat" if chat_template else "chatml", tokenizer, "here")
    assert len(tokens.spans) == 1
    assert responses(tokenizer, tokens)[0].startswith("good")
    assert messages[-3 if messages is BAD_AND_GOOD else 0]["content"] in tokenizer.decode(
        tokens.ids[: tokens.spans[0][0]]
    )


def test_thoughts_are_learnt_with_the_response_where_the_template_renders_them():
    thinking = CHATML.replace("{{ m.content }}", "{{ m.reasoning_content or '' }}{{ m.content }}")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm "}]
    tokenizer = byte_level(thinking)
    assert responses(tokenizer, conversation_tokens(messages, "chat", tokenizer, "here")) == ["hm b<|im_end|>"]


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>"])
@pytest.mark.parametrize("messages", [TWO[:2], TWO, SEAMS, conversation("a b", "<think> c", system="the task")])
@pytest.mark.parametrize("template", [HEADED, HEADED.replace("\n\n</think>\n\n", "\n"), MARKED_HEADED])
def test_a_header_that_only_generation_is_given_stands_before_the_last_response(messages, end, template):
    tokenizer = byte_level(template, eos=end)
    tokens = conversation_tokens(messages, "chat", tokenizer, "here")
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    ((start, _),) = tokens.spans
    assert tokens.ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert responses(tokenizer, tokens) == [messages[-1]["content"] + "<|im_end|>"]


def test_a_conversation_that_begins_with_the_model_is_trained_on_or_refused_with_a_way_out():
    turns = [{"role": "assistant", "content": "hello", "weight": "0"}, *TWO]
    for template in ("chatml", "chat"):
        tokens = conversation_tokens(turns, template, byte_level(CHATML), "here")
        found = [text.removesuffix("</s>") for text in responses(byte_level(), tokens)]
        assert found == ["The sum is five.<|im_end|>", "the answer is c<|im_end|>"]
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('must alternate') }}{% endif %}" + CHATML
    for template in ("alpaca", "chat"):
        with pytest.raises(
            HeadEditError,
            match=r"here: .*[Uu]se another template, such as chatml, or leave",
        ):
            conversation_tokens(turns, template, byte_level(strict), "here")
