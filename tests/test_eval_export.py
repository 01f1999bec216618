"""A task's records as training examples."""

import json

import pytest
from tokenizers_tiny import byte_level

from headedit import DataConfig, HeadEditError, load_data
from headedit.cli.main import main
from headedit.evaluation.tasks.export import training_records
from headedit.evaluation.tasks.task_files import find_task

ROWS = [
    {"question": f"Which is {i}?", "options": ["one", "two", "three"], "answer": "ABC"[i % 3], "category": category}
    for i, category in enumerate(["law", "math", "law", "law"])
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mmlu_pro").mkdir()
    (tmp_path / "mmlu_pro" / "validation.json").write_text(json.dumps(ROWS))
    return tmp_path


def test_prompts_are_those_of_the_evaluation_and_responses_those_of_the_paper(folder):
    records, broken = training_records("mmlu_pro:law", data=folder, split="validation")
    assert not broken
    assert [record["answer"] for record in records] == [f"The answer is ({label})" for label in "ACA"]
    assert records[1]["instruction"].startswith("The following are multiple choice questions (with answers) about law.")
    assert "Question: Which is 2?\nOptions:\nA. one\nB. two\nC. three" in records[1]["instruction"]


@pytest.mark.parametrize("name", ["law.json", "law.jsonl"])
def test_the_exported_file_can_be_trained_on(name, folder, capsys):
    file = folder / name
    with pytest.raises(SystemExit) as ended:
        main(["export", "mmlu_pro:law", "--data", str(folder), "--split", "validation", "--output", str(file)])
    assert ended.value.code == 0
    assert "3 records of mmlu_pro:law" in capsys.readouterr().out
    data = load_data(DataConfig(train=str(file), format="llm-adapters"), byte_level(), progress=False)
    assert len(data.train) == 3


def test_free_texts_teach_their_first_reference(tmp_path):
    rows = [{"concepts": ["dog", "ball"], "target": "A dog has a ball.", "references": []}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    records, _ = training_records("common_gen", data=tmp_path / "t.json")
    assert records == [
        {
            "instruction": "Ignoring the order of the concepts: dog, ball;\n"
            "Generate a sentence with all the concepts :",
            "answer": "A dog has a ball.",
        }
    ]


def test_a_missing_split_and_an_unknown_task_are_named(folder):
    with pytest.raises(HeadEditError, match="train"):
        training_records("mmlu_pro", data=folder)
    with pytest.raises(HeadEditError, match="mmlu_pro"):
        find_task("mmlu_por")
