"""Examples as tokens: loss on the response only, nothing cut, padding that carries no loss."""

import json
import logging

import pytest
import torch
from test_data_tokens import tokenizer, word_level
from tokenizers_tiny import BARE, CHATML, HEADED, byte_level

from headedit import DataConfig, HeadEditError, load_data
from headedit.data import Tokens
from headedit.data.batches import PadRight, StoredRows
from headedit.data.encoder import Encoder, cut_prompt
from headedit.data.encoding import encode
from headedit.data.records import Conversation

TOKENIZER = tokenizer(word_level)


def encoded(examples, max_length=None, with_tokenizer=TOKENIZER):
    return encode(examples, with_tokenizer, max_length=max_length, name="training", progress=False)


def test_labels_are_the_response_and_its_end():
    assert encoded([("a b", " c")]) == [{"input_ids": [1, 3, 4, 5, 2], "labels": [-100, -100, -100, 5, 2]}]


def test_pairs_records_and_datasets_are_encoded_the_same():
    datasets = pytest.importorskip("datasets")
    records = [{"prompt": "a b", "response": " c"}, {"prompt": "a", "response": " b"}]
    wanted = encoded([("a b", " c"), ("a", " b")])
    assert encoded(records) == encoded(datasets.Dataset.from_list(records)) == wanted
    assert encoded(datasets.Dataset.from_list(wanted), with_tokenizer=None) == wanted


def test_long_examples_are_dropped_and_reported_never_cut(caplog):
    with caplog.at_level(logging.WARNING):
        kept = encoded([("a", " b"), ("a b c a b", " c")], max_length=5)
    assert kept == encoded([("a", " b")])
    assert "1 of 2 training examples are longer than 5 tokens and are dropped; none was cut." in caplog.text


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, r"The training set has nothing to use: it is empty"),
        ([("a", " b")], {"max_length": 2}, r"all 1 examples are longer than 2 tokens"),
        ([("a", " b")], {"with_tokenizer": None}, r"training example 1: is text, and there is no tokenizer"),
        ([{"input_ids": [1]}], {}, r"training example 1: has 1 input_ids but 0 labels"),
        ([("a", " b"), {"text": "a"}], {}, r"training example 2: found the fields text; expected"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_with_the_reason(examples, options, message):
    with pytest.raises(HeadEditError, match=message):
        encoded(examples, **options)


def test_padding_carries_no_loss_and_no_attention():
    batch = PadRight(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_conversations_have_loss_on_every_response():
    turns = [("human", "a b"), ("gpt", "c"), ("human", "b"), ("gpt", "a"), ("human", "c")]
    shared = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    roles = {"human": "user", "gpt": "assistant"}
    messages = {"messages": [{"role": roles[who], "content": text} for who, text in turns]}
    assert encoded([shared]) == encoded([messages])
    (row,) = encoded([shared])
    learned = [label for label in row["labels"] if label != -100]
    assert TOKENIZER.convert_ids_to_tokens(learned) == ["c", "x", "a", "x", "</s>"]  # x, unknown, is <|im_end|>


BOS = 1
PROMPT, FIRST, BETWEEN, LAST = [10, 11, 12], [20, 21], [30, 31], [40, 41, 42]


@pytest.mark.parametrize(
    ("max_length", "ids", "spans"),
    [
        (10, [BOS, 11, 12, *FIRST, *BETWEEN, *LAST], [(3, 5), (7, 10)]),
        (8, [BOS, *FIRST, *BETWEEN, *LAST], [(1, 3), (5, 8)]),
        (7, [BOS, *BETWEEN, *LAST], [(3, 6)]),  # never a part of a response
        (5, [BOS, 31, *LAST], [(2, 5)]),
        (4, [BOS, *LAST], [(1, 4)]),
    ],
)
def test_a_prompt_is_cut_from_the_left_and_no_response_is_cut(max_length, ids, spans):
    tokens = Tokens([BOS, *PROMPT, *FIRST, *BETWEEN, *LAST], [(4, 6), (8, 11)])
    assert cut_prompt(tokens, max_length, BOS) == Tokens(ids, spans)
    assert cut_prompt(tokens, 3, BOS) is None


def test_without_a_begin_of_text_a_response_keeps_a_token_before_it():
    tokens = Tokens([*PROMPT, *FIRST, *BETWEEN, *LAST], [(3, 5), (7, 10)])
    assert cut_prompt(tokens, 8, None) == Tokens([12, *FIRST, *BETWEEN, *LAST], [(1, 3), (5, 8)])
    assert cut_prompt(tokens, 7, None) == Tokens([*BETWEEN, *LAST], [(2, 5)])
    assert cut_prompt(tokens, 4, None) == Tokens([31, *LAST], [(1, 4)])
    assert cut_prompt(tokens, 3, None) is None


def test_an_example_that_is_too_long_is_dropped_or_cut_by_the_encoder():
    turns = [{"role": "user", "content": "a b c a b"}, {"role": "assistant", "content": "c"}]
    example = Conversation(0, "here", turns, "response")
    whole = Encoder(TOKENIZER)(example)
    assert (whole["tokens"], whole["cut"], whole["ends"], whole["template"]) == (8, 0, [2], "plain")
    dropped = Encoder(TOKENIZER, 7)(example)
    assert (dropped["input_ids"], dropped["tokens"], dropped["cut"], dropped["ends"]) == ([], 8, 0, [])
    cut = Encoder(TOKENIZER, 5, too_long="cut_prompt")(example)
    assert (cut["input_ids"], cut["labels"]) == ([1, 3, 4, 5, 2], [-100, -100, -100, 5, 2])
    assert (cut["cut"], cut["lost"]) == (3, 0)


def test_rows_on_disk_are_a_sequence():
    datasets = pytest.importorskip("datasets")
    rows = encoded([("a", " b"), ("a b", " c"), ("b", " a")])
    stored = StoredRows(datasets.Dataset.from_list(rows))
    assert list(stored) == rows
    assert list(stored[1:]) == rows[1:]
    assert stored[-1] == rows[-1]
    assert len(stored[:2]) == 2
    assert all(torch.equal(a, b) for a, b in zip(PadRight()(stored).values(), PadRight()(rows).values(), strict=True))


def test_what_the_template_leaves_out_of_conversations_is_said(caplog):
    def turns(*texts, **more):
        found = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"messages": [*found[:-1], {**found[-1], **more}]}

    rows = [turns("a", "b", reasoning_content="hm"), turns("a", "b", "c", "b")]
    with caplog.at_level(logging.WARNING):
        encoded(rows, with_tokenizer=byte_level(HEADED))
    assert "1 responses of the training set have a reasoning_content that the template leaves out." in caplog.text
    assert "1 earlier responses of the training set are not learnt" in caplog.text
    caplog.clear()
    encoded([turns("a", "b"), turns("a", "b", "c", "b")], with_tokenizer=byte_level(CHATML))
    assert not caplog.text


@pytest.mark.parametrize(
    ("chat_template", "example", "count"),
    [
        (None, ("a", "b"), 2),
        (BARE, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 2),
        (CHATML, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 0),
    ],
)
def test_examples_that_no_token_ends_are_said_once(chat_template, example, count, caplog, tmp_path):
    endless = byte_level(chat_template)
    endless.eos_token = None
    record = {"prompt": "a", "response": "b"} if isinstance(example, tuple) else example
    file = tmp_path / "d.jsonl"
    file.write_text((json.dumps(record) + "\n") * 2)
    for encode_twice in (
        lambda: encoded([example] * 2, with_tokenizer=endless),
        lambda: load_data(DataConfig(train=str(file)), endless, progress=False),
    ):
        caplog.clear()
        encode_twice()
        wanted = f"{count} training examples end with no end-of-text token, as the tokenizer has none: answers will not"
        assert caplog.text.count(wanted) == (count > 0)
        assert ("Set tokenizer.eos_token" in caplog.text) == (count > 0)
    caplog.clear()
    endless.eos_token = "</s>"
    encoded([example], with_tokenizer=endless)
    assert not caplog.text


def test_rows_on_disk_that_are_too_long_are_dropped_as_those_in_memory_are(caplog):
    datasets = pytest.importorskip("datasets")
    rows = [{"input_ids": [5] * count, "labels": [-100, *[5] * (count - 1)]} for count in (4, 9, 5)]
    for examples in (rows, StoredRows(datasets.Dataset.from_list(rows), "2025-01-01")):
        kept = encode(examples, None, max_length=5, name="training", progress=False)
        assert list(kept) == [rows[0], rows[2]]
        assert "1 of 3 training examples are longer than 5 tokens" in caplog.text
        caplog.clear()
    assert kept.date == "2025-01-01"
    with pytest.raises(HeadEditError, match="all 3 examples are longer than 2 tokens"):
        encode(StoredRows(datasets.Dataset.from_list(rows)), None, max_length=2, name="training", progress=False)
