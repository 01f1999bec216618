"""Examples as tokens: loss on the response only, nothing cut, padding that carries no loss."""

import logging

import pytest
import torch
from test_text import tokenizer, word_level

from headedit import HeadEditError
from headedit.training.encoding import PadRight, encode

TOKENIZER = tokenizer(word_level)


def encoded(examples, max_length=None, with_tokenizer=TOKENIZER):
    return encode(examples, with_tokenizer, max_length=max_length, name="training", progress=False)


def test_labels_are_the_response_and_its_end():
    assert encoded([("a b", " c")]) == [{"input_ids": [1, 3, 4, 5, 2], "labels": [-100, -100, -100, 5, 2]}]


def test_pairs_records_and_datasets_are_the_same():
    datasets = pytest.importorskip("datasets")
    records = [{"prompt": "a b", "response": " c"}, {"prompt": "a", "response": " b"}]
    wanted = encoded([("a b", " c"), ("a", " b")])
    assert encoded(records) == encoded(datasets.Dataset.from_list(records)) == wanted
    assert encoded(datasets.Dataset.from_list(wanted), with_tokenizer=None) == wanted


def test_long_examples_are_left_out_and_reported_never_cut(caplog):
    with caplog.at_level(logging.WARNING):
        kept = encoded([("a", " b"), ("a b c a b", " c")], max_length=5)
    assert kept == encoded([("a", " b")])
    assert "1 of 2 training examples are longer than 5 tokens and are left out; none was cut." in caplog.text


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, r"The training set has nothing to use: it is empty"),
        ([("a", " b")], {"max_length": 2}, r"all 1 examples are longer than 2 tokens"),
        ([("a", " b")], {"with_tokenizer": None}, r"training example 1: is text, and there is no tokenizer"),
        ([{"input_ids": [1]}], {}, r"training example 1: has input_ids but not as many labels"),
        ([("a", " b"), {"text": "a"}], {}, r"training example 2: found the fields text; expected"),
    ],
)
def test_sets_that_cannot_be_used(examples, options, message):
    with pytest.raises(HeadEditError, match=message):
        encoded(examples, **options)


def test_padding_carries_no_loss_and_no_attention():
    batch = PadRight(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
