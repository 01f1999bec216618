"""Every function that takes a tokenizer takes its name or folder, too, and refuses what is none."""

import json

import pytest
import torch
from transformers import AutoTokenizer

import headedit
from headedit import HeadEditError
from headedit.demo import MODEL_FOLDER, tasks

RECORDS = tasks.records("reverse", 8, cued=False, seed=0)
QUIET = {"progress": False}
FUNCTIONS = {
    "attribute": lambda edits, tokenizer: headedit.attribute(edits, RECORDS, tokenizer=tokenizer, **QUIET).share,
    "evidence": lambda edits, tokenizer: headedit.evidence(
        edits, RECORDS, tokenizer=tokenizer, probe=False, steps=1, **QUIET
    ),
    "exact_match": lambda edits, tokenizer: (
        headedit.exact_match(edits.model, tokenizer, RECORDS[:2], edits=edits, **QUIET).accuracy
    ),
    "head_norms": lambda edits, tokenizer: headedit.head_norms(edits, RECORDS, tokenizer=tokenizer, **QUIET),
    "integrate": lambda edits, tokenizer: headedit.integrate(edits, RECORDS, tokenizer=tokenizer, steps=1, **QUIET),
    "iti": lambda edits, tokenizer: headedit.iti(edits, RECORDS, [0, 1] * 4, tokenizer=tokenizer, **QUIET).accuracy,
    "leave_one_out": lambda edits, tokenizer: (
        headedit.leave_one_out(edits, RECORDS, tokenizer=tokenizer, heads=[(0, 0)], **QUIET).after
    ),
    "patch": lambda edits, tokenizer: (
        headedit.patch(edits, RECORDS, into="base", tokenizer=tokenizer, heads=[(0, 0)], **QUIET).after
    ),
    "tokens": lambda edits, tokenizer: [word.weights for word in headedit.tokens(edits, tokenizer, **QUIET)],
}


@pytest.fixture(scope="module")
def edits():
    model = headedit.load_model(MODEL_FOLDER, device="cpu")
    handle = headedit.attach(model, config=headedit.EditConfig(vectors="offset"))
    handle.set_head(0, 0, offset=torch.linspace(-1, 1, 16))
    return handle


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tokenizer_may_be_given_by_its_folder_and_what_is_none_is_refused(name, edits):
    call = FUNCTIONS[name]
    found, expected = (call(edits, given) for given in (str(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER)))
    if isinstance(found, torch.Tensor):
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    elif name == "evidence":
        assert found.equals(expected)
        assert found["promotes"].notna().any()
    else:
        assert found == expected
    for wrong in (str(MODEL_FOLDER.parent), MODEL_FOLDER.parent / "none", 3, edits.model):
        with pytest.raises(HeadEditError, match="tokenizer"):
            call(edits, wrong)


def test_load_data_takes_the_folder_of_a_tokenizer(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    config = headedit.DataConfig(train=str(tmp_path / "train.jsonl"))
    given = (str(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER))
    found, expected = (headedit.load_data(config, tokenizer, **QUIET).train for tokenizer in given)
    assert [row["input_ids"] for row in found] == [row["input_ids"] for row in expected]
    with pytest.raises(HeadEditError, match="tokenizer"):
        headedit.load_data(config, 3, **QUIET)
