"""Encoded examples are read as they say, and checked against the model that is to read them."""

import logging

import numpy
import pytest
import torch
from test_data_tokens import tokenizer, word_level

import headedit
from headedit import DataConfig, HeadEditError, load_data
from headedit.data.batches import StoredRows
from headedit.data.encoding import encode, encode_all
from headedit.data.rows import Vocabulary, read_row

GOOD = {"input_ids": [1, 3, 4, 2], "labels": [-100, -100, 4, 2]}
QUICK = {"recipe": "ungated", "epochs": 1, "min_steps": 1, "batch_size": 2, "progress": False}


def encoded(rows, **options):
    return encode(rows, None, max_length=None, name="training", progress=False, **options)


@pytest.mark.parametrize("array", [list, numpy.asarray, torch.tensor])
@pytest.mark.parametrize(("left", "right"), [(2, 0), (0, 3), (1, 1)])
def test_padding_that_a_mask_masks_is_taken_out_of_a_row(left, right, array):
    row = {
        "input_ids": array([0] * left + GOOD["input_ids"] + [0] * right),
        "labels": array([-100] * left + GOOD["labels"] + [-100] * right),
        "attention_mask": array([0] * left + [1] * 4 + [0] * right),
    }
    assert encoded([row]) == [GOOD]


MASKS = {
    "an attention_mask of 3": [1, 1, 1],
    "attention_mask leaves out tokens between others": [1, 0, 1, 1],
    "attention_mask leaves out a token that has a label": [1, 1, 1, 0],
    "attention_mask leaves out every token": [0, 0, 0, 0],
    "attention_mask holds 2, expected 0 or 1": [1, 1, 2, 1],
    "attention_mask should list whole numbers": [1, 1, 0.5, 1],
}


@pytest.mark.parametrize("message", MASKS)
def test_a_mask_that_cannot_be_followed_is_refused_by_its_name(message):
    with pytest.raises(HeadEditError, match=f"here: .*{message}"):
        read_row({**GOOD, "attention_mask": MASKS[message]}, "here")


BAD = {
    r"has the token id 8, but the model's embedding has 8 tokens.* tokenizer": ([1, 8], [-100, 4]),
    r"has the token id -1, ": ([1, -1], [-100, 4]),
    r"has the token id 36893488147419103232, ": ([1, 2**65], [-100, 4]),
    r"has the label 8, expected one of the 8 token ids that the model predicts, or -100": ([1, 2], [-100, 8]),
    r"has the label -1, ": ([1, 2], [-100, -1]),
    r"has no token, ": ([], []),
    r"has no labelled token after its first": ([1, 2, 3], [-100, -100, -100]),
    r"has no labelled token after its first, ": ([1, 2], [1, -100]),
    r"input_ids has 2 dimensions, expected 1": (torch.tensor([[1], [2]]), [-100, 4]),
    r"input_ids should list whole numbers, found \[\[1": ([[1, 2]], [[-100, 4]]),
    r"input_ids should list whole numbers, found \[1.5": ([1.5, 2], [-100, 4]),
    r"input_ids should list whole numbers, found '12'": ("12", [-100, 4]),
}


@pytest.mark.parametrize("message", BAD)
def test_a_row_that_cannot_be_used_is_named_or_skipped(message, caplog):
    ids, labels = BAD[message]
    rows = [GOOD, {"input_ids": ids, "labels": labels}, GOOD]
    with pytest.raises(HeadEditError, match=f"training example 2: {message}"):
        encoded(rows, vocabulary=Vocabulary(8, 8))
    with caplog.at_level(logging.WARNING):
        assert encoded(rows, vocabulary=Vocabulary(8, 8), skip_malformed=True) == [GOOD, GOOD]
    assert "1 training examples cannot be used and are dropped; the first: training example 2: " in caplog.text


def test_a_set_of_which_nothing_is_left_is_refused():
    bare = {"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}
    with pytest.raises(HeadEditError, match="training set has nothing to use: 2 examples cannot be used, the first: "):
        encoded([bare, bare], skip_malformed=True)


def test_rows_on_disk_are_checked_and_skipped():
    datasets = pytest.importorskip("datasets")
    rows = StoredRows(datasets.Dataset.from_list([GOOD, {"input_ids": [1, 9], "labels": [-100, 2]}]))
    assert encoded(rows) is rows
    with pytest.raises(HeadEditError, match="training example 2: has the token id 9"):
        encoded(rows, vocabulary=Vocabulary(8))
    assert list(encoded(rows, vocabulary=Vocabulary(8), skip_malformed=True)) == [GOOD]


def test_the_embedding_and_not_the_config_says_which_ids_there_are(llama):
    size = llama.get_input_embeddings().num_embeddings
    llama.resize_token_embeddings(size + 5)
    llama.config.vocab_size = size
    assert Vocabulary.of(llama) == Vocabulary(size + 5, size + 5)
    row = {"input_ids": [1, size + 4], "labels": [-100, size + 4]}
    assert encode_all([row], None, llama) == [row]
    with pytest.raises(HeadEditError, match=f"Example 1: has the token id {size + 5}, "):
        encode_all([{"input_ids": [1, size + 5], "labels": [-100, 3]}], None, llama)


def test_fit_refuses_ids_and_sets_that_teach_nothing_before_it_trains(llama, tmp_path):
    edits = headedit.attach(llama)
    size = llama.get_input_embeddings().num_embeddings
    beyond = {"input_ids": [1, size], "labels": [-100, 3]}
    bare = {"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}
    with pytest.raises(HeadEditError, match=f"training example 3: has the token id {size}"):
        headedit.fit(edits, [GOOD, GOOD, beyond], output_dir=tmp_path / "a", **QUICK)
    with pytest.raises(HeadEditError, match="validation example 1: has no labelled token"):
        headedit.fit(edits, [GOOD] * 4, [bare] * 2, output_dir=tmp_path / "b", **QUICK)
    run = headedit.fit(edits, [GOOD, GOOD, beyond], output_dir=tmp_path / "c", skip_malformed=True, **QUICK)
    assert run.record["train_examples"] == 2


def test_a_tokenizer_with_more_tokens_than_the_model_is_named_by_file_and_line(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,response\na b, c\na b, x\n")
    made = tokenizer(word_level)
    with pytest.raises(HeadEditError, match=r"rows\.csv, line 3: has the token id 7, .* tokenizer"):
        load_data(DataConfig(train=str(file)), made, vocabulary=7, progress=False)
    data = load_data(DataConfig(train=str(file), skip_malformed=True), made, vocabulary=7, progress=False)
    assert len(data.train) == 1
    assert data.report["train"]["malformed"] == 1
