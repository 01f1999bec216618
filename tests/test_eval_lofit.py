"""LoFiT's tasks: TruthfulQA by likelihood, MQuAKE and CLUTRR, from their records as they are published."""

import json
import math

import pytest
import torch

import headedit
from headedit import HeadEditError
from headedit.data import prompt_ids
from headedit.demo import MODEL_FOLDER
from headedit.evaluation.scores.scoring import hits, right_share
from headedit.evaluation.tasks.examples import Example, make_example
from headedit.evaluation.tasks.export import training_records
from headedit.evaluation.tasks.task_files import find_task, find_tasks
from headedit.hf.loading import load_model, load_tokenizer

CSV = {
    "Question": "What colour is the sky?",
    "Best Answer": "The sky is blue",
    "Correct Answers": "The sky is blue; It depends on the hour.;  Blue ",
    "Incorrect Answers": "The sky is green; The sky is red.",
}
HUB = {
    "question": "What colour is the sky?",
    "mc1_targets": {
        "choices": ["The sky is blue.", "The sky is green.", "The sky is red."],
        "labels": [1, 0, 0],
    },
    "mc2_targets": {
        "choices": ["The sky is blue.", "It depends on the hour.", "Blue.", "The sky is green.", "The sky is red."],
        "labels": [1, 1, 1, 0, 0],
    },
}
FACT = {
    "requested_rewrite": [{"prompt": "{} was built in", "subject": "The tower", "target_new": {"str": "Peru"}}],
    "questions": ["On which continent is the tower?", "Where is the tower?"],
    "new_answer": "South America",
    "new_answer_alias": ["SA"],
}
STORY = {
    "story": "[Ann] has a son, [Bob].",
    "clean_story": "[Ann] has a son, [Bob]. [Bob] has a son, [Carl].",
    "query": "('Ann', 'Carl')",
    "target_text": "grandson",
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(MODEL_FOLDER))


def example(task, record, tokenizer):
    return make_example(find_task(task), record, tokenizer, "row 1")


@pytest.mark.parametrize("record", [CSV, HUB], ids=["csv", "hub"])
def test_truthfulqa_is_read_as_csv_and_as_on_the_hub(record, tokenizer):
    first = example("truthfulqa_mc1", record, tokenizer)
    assert first.prompt.endswith("The 1992 Olympics were held in Barcelona, Spain.\n\nQ: What colour is the sky?\nA:")
    assert first.prompt.startswith("Interpret each question literally")
    assert first.options == first.labels == ("The sky is blue.", "The sky is green.", "The sky is red.")
    assert first.answers == ("The sky is blue.",)
    second = example("truthfulqa_mc2", record, tokenizer)
    assert second.answers == ("The sky is blue.", "It depends on the hour.", "Blue.")
    assert second.options == (*second.answers, "The sky is green.", "The sky is red.")


def test_mquake_and_clutrr_have_the_prompts_of_lofit(tokenizer):
    fact = example("mquake", FACT, tokenizer)
    assert fact.prompt == "Q: Imagine that The tower was built in Peru. On which continent is the tower? A:"
    assert fact.answers == ("South America", "SA")
    story = example("clutrr", STORY, tokenizer)
    assert 'family. "Ann has a son, Bob. Bob has a son, Carl." Assume' in story.prompt
    assert story.prompt.endswith("how is Carl related to Ann? Answer: Carl is Ann 's\n")
    assert story.answers == ("grandson",)
    assert example("clutrr", {**STORY, "query": ["Ann", "Carl"]}, tokenizer).prompt == story.prompt


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("truthfulqa_mc1", {"Question": "?"}, r"row 1: is no record of truthfulqa \(KeyError: 'Best Answer'\)"),
        ("truthfulqa_mc2", {**CSV, "Incorrect Answers": " "}, "it has no incorrect answer"),
        ("mquake", {"requested_rewrite": []}, "is no record of mquake"),
        ("clutrr", {**STORY, "query": "(Ann)"}, "is no record of clutrr"),
        ("clutrr", {**STORY, "target_text": "cousin"}, "the answer 'cousin' is not among the options"),
    ],
)
def test_a_record_of_something_else_is_named(task, record, message, tokenizer):
    with pytest.raises(HeadEditError, match=message):
        example(task, record, tokenizer)


def test_the_share_of_the_right_options_is_that_of_their_probabilities():
    row = Example("row", "Q", ("a", "b"), ("a", "b", "c"), ("a", "b", "c"))
    scores = [math.log(0.2), math.log(0.1), math.log(0.3)]
    assert right_share(row, scores) == pytest.approx(50.0)
    assert right_share(row, [score - 2000 for score in scores]) == pytest.approx(50.0)


def test_capital_letters_do_not_matter_where_a_task_says_so():
    rows = [Example("row", "Q", ("South America", "SA"))] * 3
    answers = ["south america", "sa", "America"]
    assert hits(find_task("mquake"), rows, answers) == [True, True, False]
    assert hits(find_task("mquake", ignore_case=False), rows, answers) == [False, False, False]


QUESTIONS = [{**CSV, "Question": f"Q{i}?", "Best Answer": "abc", "Correct Answers": "abc; b a"} for i in range(3)]


def by_hand(model, tokenizer, prompt, option):
    head = prompt_ids(tokenizer, prompt)
    tail = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        predicted = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(predicted[len(head) - 1 + k, token].item() for k, token in enumerate(tail))


def test_truthfulqa_is_scored_as_by_hand_with_edits_and_without(tokenizer):
    model = load_model(str(MODEL_FOLDER), device="cpu")
    edits = headedit.attach(model)
    with torch.no_grad():
        for vector in edits.vector_parameters():
            vector.normal_(generator=torch.Generator().manual_seed(1))
    short = {"prompt": "Q: {{ question }}\nA:"}
    report = headedit.evaluate(model, "truthfulqa_mc2", edits=edits, tokenizer=tokenizer, data=QUESTIONS, **short)
    expected = {}
    for system in ("edited", "base"):
        shares = []
        for record in QUESTIONS:
            row = make_example(find_task("truthfulqa_mc2", **short), record, tokenizer, "row")
            with edits.measured() if system == "edited" else edits.disable_adapter():
                scores = [by_hand(model, tokenizer, row.prompt, option) for option in row.options]
            shares.append(right_share(row, scores))
        expected[system] = sum(shares) / len(shares)
    assert report.score.metrics == {"mc2": pytest.approx(expected["edited"], abs=1e-2)}
    assert report.base.metrics == {"mc2": pytest.approx(expected["base"], abs=1e-2)}
    assert report.constant.value == pytest.approx(50.0)
    assert report.constant.answer == "every option alike"
    assert report.test.difference == pytest.approx(report.score.value - report.base.value)
    one = headedit.evaluate(model, "truthfulqa_mc1", tokenizer=tokenizer, data=QUESTIONS, **short)
    assert one.score.metrics.keys() == {"accuracy"}


def test_records_to_train_on_keep_the_plain_prompts(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(FACT))
    records, broken = training_records("mquake", data=str(file))
    assert not broken
    prompt = "Q: Imagine that The tower was built in Peru. On which continent is the tower? A:"
    assert records == [{"prompt": prompt, "response": "South America"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring": "generation"}, "mc2 needs scoring: loglikelihood, and labels: text"),
        ({"metrics": ["mc2", "accuracy"]}, "mc2 stands alone"),
        ({"reader": "truthful"}, "reader: found 'truthful' .*expected one of truthfulqa, mquake, clutrr"),
    ],
)
def test_a_task_whose_fields_do_not_fit_is_refused(changes, message):
    with pytest.raises(HeadEditError, match=message):
        find_task("truthfulqa_mc2", **changes)


def test_the_suite_has_the_four_tasks():
    assert [task.name for task in find_tasks(["lofit"])] == ["clutrr", "mquake", "truthfulqa_mc1", "truthfulqa_mc2"]
