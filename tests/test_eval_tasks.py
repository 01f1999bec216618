"""Task declarations: those that come with headedit, a user's own in ten lines, and what each fault is called."""

import json

import pytest
import yaml

import headedit
from headedit import HeadEditError, Task
from headedit.demo import MODEL_FOLDER
from headedit.evaluation.tasks.examples import make_example
from headedit.evaluation.tasks.records import load_examples, load_rows, load_training_rows
from headedit.evaluation.tasks.task_files import find_task, find_tasks, packaged_tasks
from headedit.hf.loading import load_tokenizer

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n "
COMMONSENSE = ["arc_c", "arc_e", "boolq", "hellaswag", "obqa", "piqa", "siqa", "winogrande"]

MINE = """\
prompt: "Q: {{ question }}\\n{% for o in options %}{{ labels[loop.index0] }}) {{ o }}\\n{% endfor %}A:"
options: choices
answer: correct
template: plain
delimiter: " "
scoring: loglikelihood
data:
  path: mine.jsonl
"""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(MODEL_FOLDER))


def example(task, record, tokenizer):
    return make_example(find_task(task), record, tokenizer, "row 3")


def examples(task, tokenizer, data=None, **options):
    options = {"limit": None, "seed": 0, "skip_broken": False} | options
    return load_examples(task, load_rows(task, data), tokenizer, **options)


def test_the_tasks_of_the_paper_are_packaged():
    known = packaged_tasks()
    known = {name: task for name, task in known.items() if task.suite != "lofit"}
    assert sorted(known) == sorted([*COMMONSENSE, "mmlu_pro", "common_gen", "e2e_nlg", "web_nlg", "xsum"])
    assert [task.name for task in find_tasks(["commonsense"])] == COMMONSENSE
    assert len(known["mmlu_pro"].groups) == 14
    assert {(task.num_beams, task.template) for task in known.values()} == {(4, "alpaca")}
    assert {task.max_new_tokens for task in find_tasks(["commonsense", "mmlu_pro"])} == {16}
    assert {task.max_new_tokens for task in find_tasks(["gem"])} == {64}
    assert all(task.data is not None for task in known.values())


def test_a_commonsense_record_becomes_an_example(tokenizer):
    record = {
        "instruction": "Q?\n\nAnswer1: x Answer2: y Answer3: z\n\nAnswer format: answer1/answer2/answer3",
        "answer": "answer3",
    }
    found = example("arc_c", record, tokenizer)
    assert found.prompt == f"{ALPACA}### Instruction:\n{record['instruction']}\n\n### Response:\n"
    assert found.labels == ("answer1", "answer2", "answer3")  # of five that the task has
    assert found.answers == ("answer3",)
    with pytest.raises(
        HeadEditError, match=r"row 3: the answer 'answer4' is not among the options: answer1, answer2, answer3"
    ):
        example("arc_c", record | {"answer": "answer4"}, tokenizer)
    assert example("boolq", {"instruction": "Q?", "answer": True}, tokenizer).answers == ("true",)


@pytest.mark.parametrize("answer", ["B", "b", 1, "wolf"])
def test_an_mmlu_pro_record_becomes_an_example(answer, tokenizer):
    record = {"question": "Which?", "options": ["cat", "wolf"], "category": "law", "answer": answer}
    found = example("mmlu_pro", record, tokenizer)
    assert "about law. Please return the answer in the format of [The answer is (X)] at the end.\n" in found.prompt
    assert "Question: Which?\nOptions:\nA. cat\nB. wolf\n" in found.prompt
    assert (found.labels, found.options, found.answers, found.group) == (("A", "B"), ("cat", "wolf"), ("B",), "law")


@pytest.mark.parametrize(
    ("task", "record", "prompt"),
    [
        (
            "common_gen",
            {"concepts": ["dog", "run"]},
            "Ignoring the order of the concepts: dog, run;\nGenerate a sentence with all the concepts :",
        ),
        (
            "e2e_nlg",
            {"meaning_representation": "name[Blue Spice], eatType[coffee shop]"},
            "Combine all of the following data into a concise and grammatically correct text:\n"
            "name : Blue Spice\neatType : coffee shop\n",
        ),
        (
            "web_nlg",
            {"input": ["A | b | C", "D | e | F"]},
            "Take the following triple set as part of a Data-to-Text task: A | b | C, D | e | F. "
            "Make a lexicalization of the triple set into plain text.",
        ),
        (
            "xsum",
            {"document": "News {{ here }}."},
            "First, please read the article below.\n\nNews {{ here }}.\n\n"
            "Now, can you write me an extremely short abstract for it?",
        ),
    ],
)
def test_a_generation_record_becomes_an_example_with_its_references(task, record, prompt, tokenizer):
    found = example(task, record | {"references": ["One.", "Two."], "target": "One."}, tokenizer)
    assert found.prompt == f"{ALPACA}### Instruction:\n{prompt}\n\n### Response:\n"
    assert (found.answers, found.labels) == (("One.", "Two."), ())
    assert example(task, record | {"references": [], "target": "One."}, tokenizer).answers == ("One.",)


def test_a_task_of_a_user_is_read_from_its_file(tmp_path, tokenizer):
    (tmp_path / "mine.yaml").write_text(MINE)
    rows = [{"question": f"{i}?", "choices": ["x", "y"], "correct": i % 2} for i in range(9)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = find_task(tmp_path / "mine.yaml")
    assert (task.name, len(MINE.splitlines())) == ("mine", 8)
    found, left_out = examples(task, tokenizer)
    assert (len(found), left_out) == (9, [])
    assert found[1].prompt == "Q: 1?\nA) x\nB) y\nA:"
    assert [e.answers[0] for e in found[:3]] == ["A", "B", "A"]
    drawn, _ = examples(task, tokenizer, limit=4, seed=1)
    assert drawn == examples(task, tokenizer, limit=4, seed=1)[0] != examples(task, tokenizer, limit=4, seed=3)[0]
    assert len(drawn) == 4


def test_the_records_of_a_task_are_found_in_a_folder_of_several_tasks(tmp_path, tokenizer):
    row = {"instruction": "Q? answer1 answer2", "answer": "answer1"}
    for split, count in (("test", 3), ("train", 2)):
        file = tmp_path / "ARC-Challenge" / f"{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps([row] * count))
    task = find_task("arc_c")
    assert len(examples(task, tokenizer, tmp_path)[0]) == 3
    assert len(list(load_training_rows(task, tmp_path, None))) == 2
    assert load_training_rows(task, tmp_path / "ARC-Challenge" / "test.json", None) is None
    assert load_training_rows(task, [row], None) is None
    with pytest.raises(HeadEditError, match=r"holds no test\.json or boolq/test\.json, the test split of 'boolq'"):
        list(load_rows(find_task("boolq"), tmp_path))


def test_the_hub_is_asked_for_what_the_task_says(monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return [{"question": "?"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("mmlu_pro", "web_nlg", "boolq"):
        rows = list(load_rows(find_task(name), None))
        assert (rows[0].value, rows[0].where.endswith("record 1")) == ({"question": "?"}, True)
    assert asked[0] == ("TIGER-Lab/MMLU-Pro", None, {"split": "test"})
    assert asked[1] == ("GEM/web_nlg", "en", {"split": "test", "revision": "refs/convert/parquet"})
    address = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main/dataset/boolq/test.json"
    assert asked[2] == ("json", None, {"split": "test", "data_files": {"test": address}})


def test_one_group_of_a_task_can_be_evaluated(tokenizer):
    rows = [
        {"question": "?", "options": ["x", "y"], "category": group, "answer": "A"} for group in ("law", "math", "law")
    ]
    assert len(examples(find_task("mmlu_pro:law"), tokenizer, rows)[0]) == 2
    assert find_task("mmlu_pro:computer_science").only == "computer science"
    with pytest.raises(HeadEditError, match=r"no group 'lwa'\. Did you mean 'law'\?"):
        find_task("mmlu_pro:lwa")
    with pytest.raises(HeadEditError, match=r"no record is of the group 'physics'\. Groups: law, math"):
        examples(find_task("mmlu_pro:physics"), tokenizer, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"mine\.yaml: the key 'prompt' is missing"),
        ({"answr": "a"}, r"mine\.yaml: unknown key 'answr'\. Did you mean 'answer'"),
        ({"prompt": "{{ question"}, r"mine\.yaml: prompt: not a template that can be read, line 1"),
        ({"response": "{{ answer"}, r"mine\.yaml: response: not a template that can be read, line 1"),
        ({"scoring": "logits"}, r"mine\.yaml: scoring: found 'logits'.*one of generation, loglikelihood"),
        ({"options": ["a"]}, r"mine\.yaml: options: found \['a'\], expected two or more"),
        ({"options": None}, r"mine\.yaml: scoring: loglikelihood needs options"),
        ({"num_beams": 0}, r"mine\.yaml: num_beams and max_new_tokens: expected 1 or more"),
        ({"metrics": ["bleu"]}, r"mine\.yaml: metrics: found \['bleu'\]; a choice is measured by accuracy alone"),
        ({"data": {"split": "test"}}, r"mine\.yaml: data: the key 'path' is missing"),
    ],
)
def test_a_faulty_task_file_is_named_with_its_field(change, message, tmp_path):
    content = {**yaml.safe_load(MINE), **change}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(HeadEditError, match=message):
        find_task(tmp_path / "mine.yaml")


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(HeadEditError, match=r"no task 'boolk'\. Did you mean 'boolq'\? A task of your own is a YAML"):
        find_task("boolk")
    with pytest.raises(HeadEditError, match=r"A task has no field 'beams'\. Did you mean 'num_beams'"):
        find_task("boolq", beams=1)
    with pytest.raises(HeadEditError, match="does not say where its records are"):
        load_rows(Task(name="t", prompt="{{ a }}", answer="b"), None)


def test_two_task_files_of_one_name_are_refused_and_the_same_one_twice_counts_once(tmp_path):
    files = []
    for place, prompt in (("a", "{{ x }}"), ("b", "{{ y }}")):
        (tmp_path / place).mkdir()
        files.append(str(tmp_path / place / "qa.yaml"))
        (tmp_path / place / "qa.yaml").write_text(f"prompt: '{prompt}'\nanswer: z\n")
    with pytest.raises(HeadEditError, match="Two different tasks are named 'qa'"):
        find_tasks(files)
    assert [task.name for task in find_tasks([files[0], files[0], "boolq"])] == ["qa", "boolq"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "?", "correct": 0}, "row 3: the field 'choices' is missing; found question, correct"),
        (
            {"question": "?", "choices": "xy", "correct": 0},
            "row 3: the field 'choices' should list the options as texts",
        ),
        ({"question": "?", "choices": ["x"], "correct": 0}, "row 3: the field 'choices' lists 1 options"),
        ({"question": "?", "choices": ["x", "y"], "correct": 2}, "row 3: the answer 2 is not among the options: A, B"),
        ({"question": "?", "choices": ["x", "y"]}, "row 3: the answer, the field 'correct', is missing or empty"),
        ({"choices": ["x", "y"], "correct": 0}, "row 3: the prompt cannot be made: 'question' is undefined"),
        (["x"], "row 3: expected an object with named fields, found list"),
    ],
)
def test_a_faulty_record_is_named_by_its_row(record, message, tmp_path, tokenizer):
    (tmp_path / "mine.yaml").write_text(MINE)
    with pytest.raises(HeadEditError, match=message):
        make_example(find_task(tmp_path / "mine.yaml"), record, tokenizer, "row 3")


def test_a_broken_row_stops_an_evaluation_or_is_left_out(tmp_path, tokenizer):
    (tmp_path / "mine.yaml").write_text(MINE)
    good = {"question": "?", "choices": ["x", "y"], "correct": 0}
    lines = [json.dumps(good), "{", json.dumps(good | {"correct": "z"})]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    task = find_task(tmp_path / "mine.yaml")
    with pytest.raises(HeadEditError, match=r"mine\.jsonl, line 2: not valid JSON"):
        examples(task, tokenizer)
    found, left_out = examples(task, tokenizer, skip_broken=True)
    assert len(found) == 1
    assert ["line 2" in left_out[0], "line 3: the answer 'z'" in left_out[1]] == [True, True]
    (tmp_path / "mine.jsonl").write_text("")
    with pytest.raises(HeadEditError, match="mine: there is nothing to evaluate: the split is empty"):
        examples(task, tokenizer)
    (tmp_path / "mine.jsonl").write_text("{")
    with pytest.raises(HeadEditError, match=r"nothing to evaluate: all 1 records are broken, the first: .*line 1"):
        examples(task, tokenizer, skip_broken=True)


def test_task_and_source_are_public():
    assert {"Task", "Source", "Report", "evaluate"} <= set(headedit.__all__)


STARS = Task(name="stars", prompt="{{ text }}", answer="stars", options=["1", "2", "3"], template="plain")


def test_a_number_that_is_an_option_of_the_task_and_the_index_of_another_is_refused(tokenizer):
    with pytest.raises(HeadEditError, match=r"row 3: the answer 1 is an option .* index of its option '2'\. Write it"):
        make_example(STARS, {"text": "?", "stars": 1}, tokenizer, "row 3")
    assert make_example(STARS, {"text": "?", "stars": "1"}, tokenizer, "row 3").answers == ("1",)
    assert make_example(STARS, {"text": "?", "stars": 0}, tokenizer, "row 3").answers == ("1",)
    zeros = Task(**{**vars(STARS), "options": ["0", "1", "2"]})
    assert make_example(zeros, {"text": "?", "stars": 1}, tokenizer, "row 3").answers == ("1",)
    own = Task(**{**vars(STARS), "options": "choices"})  # of a record: a number is the index, as data sets have it
    assert make_example(own, {"text": "?", "choices": ["1", "0"], "stars": 1}, tokenizer, "row 3").answers == ("B",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "a \ud83d"}, r"row 3: the prompt holds half of a character \(\\ud83d at 2\)"),
        ({"stars": "a \ud83d"}, "row 3: the answer holds half of a character"),
        ({"choices": ["a", "\ud83d"]}, "row 3: an option holds half of a character"),
    ],
)
def test_half_of_a_character_in_a_record_of_a_task_is_named(change, message, tokenizer):
    options = "choices" if "choices" in change else None
    task = Task(**{**vars(STARS), "options": options})
    with pytest.raises(HeadEditError, match=message):
        make_example(task, {"text": "?", "stars": "a", **change}, tokenizer, "row 3")
