"""Encoded examples are read as they say, and checked against the model that is to read them."""

import json
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
from headedit.evaluation.answers.likelihood import option_scores
from headedit.evaluation.exact_match import EXACT_MATCH

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


ROWS = [{"input_ids": [1, 3, i, 4, 2], "labels": [-100, -100, -100, 4, 2]} for i in range(3, 9)]


def test_load_data_takes_rows_of_token_ids_as_fit_does(tmp_path, llama):
    padded = {
        "input_ids": [0, *GOOD["input_ids"]],
        "labels": [-100, *GOOD["labels"]],
        "attention_mask": [0, 1, 1, 1, 1],
    }
    union = {"prompt": "a b", "response": " c", "input_ids": None, "labels": None}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, padded, union]))
    made = tokenizer(word_level)
    data = load_data(DataConfig(train=str(file), valid=2), made, vocabulary=20, progress=False)
    whole = load_data(DataConfig(train=str(file)), made, vocabulary=20, progress=False)
    assert [dict(row) for row in whole.train][:7] == [*ROWS, GOOD]
    assert whole.report["train"]["formats"] == {"input_ids": 7, "response": 1}
    assert whole.report["train"]["templates"] == {"none": 7, "plain": 1}
    assert len(data.train) == 6
    assert whole.pairs("train")[0] == (made.decode([1, 3, 3]), made.decode([4]))
    for row, fault in (
        ({"input_ids": [1, 20, 2], "labels": [-100, 2, 2]}, "line 1: has the token id 20"),
        ({"input_ids": [1, 3], "labels": [-100, -100]}, "line 1: has no labelled token"),
        ({"input_ids": [1, 3]}, "line 1: has 2 input_ids but 0 labels"),
        ({"input_ids": [[1, 3]], "labels": [[1, 3]]}, "line 1: input_ids should list whole numbers"),
        ({"input_ids": [], "labels": []}, "line 1: has no token"),
    ):
        file.write_text(json.dumps(row) + "\n" + json.dumps(GOOD))
        with pytest.raises(HeadEditError, match=fault):
            load_data(DataConfig(train=str(file)), made, vocabulary=20, progress=False)
        config = DataConfig(train=str(file), skip_malformed=True)
        assert list(load_data(config, made, vocabulary=20, progress=False).train) == [GOOD]


def test_rows_of_token_ids_are_cut_and_dropped_as_text_is(tmp_path):
    file = tmp_path / "rows.json"
    labels = [-100, -100, 6, -100, 7, 2]
    file.write_text(json.dumps([{"input_ids": [1, 5, 6, 5, 7, 2], "labels": labels}, GOOD]))
    made = tokenizer(word_level)
    dropped = load_data(DataConfig(train=str(file), max_length=5), made, progress=False)
    assert list(dropped.train) == [GOOD]
    cut = load_data(DataConfig(train=str(file), max_length=4, too_long="cut_prompt"), made, progress=False)
    assert cut.train[0] == {"input_ids": [1, 5, 7, 2], "labels": [-100, -100, 7, 2]}
    assert cut.report["train"]["cut_responses"] == 1
    with pytest.raises(HeadEditError, match="record 1: found the fields input_ids, labels; expected messages"):
        load_data(DataConfig(train=str(file), format="messages"), made, progress=False)


def test_padding_uses_a_token_that_the_model_has(llama, tmp_path):
    made = tokenizer(word_level)
    size = llama.get_input_embeddings().num_embeddings
    made.add_tokens([f"<n{i}>" for i in range(size)])
    made.add_special_tokens({"pad_token": "[PAD]"})
    assert made.pad_token_id > size
    pairs = [("a b", " c"), ("a", " b")]
    headedit.fit(headedit.attach(llama), pairs, output_dir=tmp_path, tokenizer=made, **QUICK)
    headedit.exact_match(llama, made, pairs, max_new_tokens=2, progress=False)


def test_a_prompt_that_the_model_has_no_token_for_is_named_in_evaluation(llama):
    made = tokenizer(word_level)
    size = llama.get_input_embeddings().num_embeddings
    made.add_tokens([f"<n{i}>" for i in range(size)])
    pairs = [("a b", " c"), (f"a <n{size - 1}>", " b")]
    with pytest.raises(HeadEditError, match=r"record 2 has the token id|record 2: has the token id"):
        headedit.exact_match(llama, made, pairs, max_new_tokens=2, progress=False)
    report = headedit.evaluate(llama, EXACT_MATCH, data=pairs, tokenizer=made, skip_broken=True, progress=False)
    assert report.n == 1
    assert "record 2" in report.left_out[0]
    with pytest.raises(HeadEditError, match="Question 1: has the token id"):
        list(option_scores(llama, made, [("a b", [" c", f" <n{size - 1}>"])], progress=False))


@pytest.mark.parametrize(
    "row", [{"input_ids": [1, 2**40], "labels": [-100, 2]}, {**GOOD, "labels": [-100, 2**70, 3, 2]}]
)
def test_a_number_that_is_no_token_of_any_model_is_named_where_no_model_is_known(row, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([GOOD, row]))
    with pytest.raises(HeadEditError, match=r"record 2: has the (token id|label) [0-9]+, "):
        load_data(DataConfig(train=str(file)), tokenizer(word_level), progress=False)
    with pytest.raises(HeadEditError, match=r"training example 2: has the (token id|label) [0-9]+, "):
        encoded([GOOD, row])
