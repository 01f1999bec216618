"""Generation and exact match on the embedded model: independent of batching, with honest baselines."""

import copy

import pytest

import headedit
from headedit import HeadEditError, exact_match
from headedit.data import to_pair
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers.extraction import first_line
from headedit.evaluation.answers.generation import generate
from headedit.hf.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(MODEL_FOLDER))


@pytest.fixture
def model():
    return load_model(str(MODEL_FOLDER), device="cpu")


def pairs(task, count, *, cued=True):
    return [to_pair(row, "row") for row in tasks.records(task, count, cued=cued, seed=77)]


def test_predictions_do_not_depend_on_the_batch_size(model, tokenizer):
    prompts = [prompt for prompt, _ in pairs("swap", 40, cued=False)]
    options = {"max_new_tokens": 9, "progress": False}
    one = generate(model, tokenizer, prompts, batch_size=1, **options)
    assert one == generate(model, tokenizer, prompts, batch_size=7, **options)
    assert one == generate(model, tokenizer, prompts, batch_size=32, **options)
    assert len({len(text.split()) for text in one}) > 1


def test_generation_uses_deterministic_gates_and_restores_the_mode(model, tokenizer):
    edits = headedit.attach(model, config=headedit.EditConfig(init_std=0.5))
    model.train()
    prompts = [prompt for prompt, _ in pairs("copy", 4)]
    options = {"max_new_tokens": 5, "progress": False}
    assert generate(model, tokenizer, prompts, **options) == generate(model, tokenizer, prompts, **options)
    assert model.training
    assert edits.module.training


def test_exact_match_counts_right_answers_and_compares_with_the_base(model, tokenizer):
    right = pairs("reverse", 10)
    wrong = [(prompt, " z z z z") for prompt, _ in right[:6]]
    edits = headedit.attach(model)
    for layer in range(4):
        for head in range(8):
            edits.set_head(layer, head, scale=0.0)
    report = exact_match(model, tokenizer, right[6:] + wrong, edits=edits, progress=False)
    assert (report.n, report.accuracy, report.base_accuracy) == (10, 0.0, 0.4)
    assert (report.constant_answer, report.constant_accuracy) == ("z z z z", 0.6)
    assert exact_match(model, tokenizer, right, progress=False).base_accuracy is None


def test_only_the_first_line_is_compared():
    assert first_line("  yes \n and more") == "yes"
    assert first_line("\n\n a b\n") == "a b"
    assert first_line(" ") == ""


def test_an_empty_set_and_a_prompt_that_is_too_long_are_refused(model, tokenizer):
    with pytest.raises(HeadEditError, match="nothing to evaluate: the split is empty"):
        exact_match(model, tokenizer, [])
    with pytest.raises(HeadEditError, match="the list of prompts is empty"):
        generate(model, tokenizer, [])
    long = [("a =", "b"), ("a " * 60, "b")]
    with pytest.raises(HeadEditError, match=r"Prompt 2 has 61 tokens; with 16 new ones it does not fit .* of 64"):
        generate(model, tokenizer, [prompt for prompt, _ in long])


def test_edits_that_no_pass_reaches_are_not_measured(model, tokenizer):
    """As under an engine that took the weights before: the figures would be the base model's."""
    engine = copy.deepcopy(model)
    edits = headedit.attach(model)
    model.forward = engine.forward
    with pytest.raises(HeadEditError, match="No pass of this LlamaForCausalLM has reached its edits"):
        exact_match(model, tokenizer, pairs("copy", 2), edits=edits, progress=False)


@pytest.mark.parametrize("context", ["disable_adapter", "route", "at_strength"])
def test_edits_are_not_measured_where_a_context_replaces_them(context, model, tokenizer):
    edits = headedit.attach(model)
    arguments = {"disable_adapter": (), "route": (["default"],), "at_strength": (0.5,)}[context]
    with (
        getattr(edits, context)(*arguments),
        pytest.raises(HeadEditError, match=rf"Inside {context}\(\), edits cannot"),
    ):
        exact_match(model, tokenizer, pairs("copy", 2), edits=edits, progress=False)
    edits.disable_adapter_layers()
    with pytest.raises(HeadEditError, match="disabled, so they cannot be measured"):
        exact_match(model, tokenizer, pairs("copy", 2), edits=edits, progress=False)
