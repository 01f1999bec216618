"""Log-likelihoods of options: those of one forward pass per option, whatever is shared, padded or batched."""

import pytest
import torch

from headedit import HeadEditError
from headedit.data import prompt_ids
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers.likelihood import option_scores
from headedit.hf.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def embedded():
    return load_model(str(MODEL_FOLDER), device="cpu"), load_tokenizer(str(MODEL_FOLDER))


def questions(count):
    """Options of different lengths, some of which begin others."""
    rows = tasks.records("sort", count, cued=True, seed=3)
    found = []
    for i, row in enumerate(rows):
        right = row["response"]
        found.append(
            (row["prompt"], [right, " a", " b", right[: len(right) // 2], f"{right[:-1]}z", " a a a"][: 3 + i % 4])
        )
    return found


def scores(embedded, asked, **options):
    model, tokenizer = embedded
    found = {}
    for batch in option_scores(model, tokenizer, asked, progress=False, **options):
        found.update(batch)
    return [found[i] for i in range(len(asked))]


def by_hand(embedded, prompt, option):
    model, tokenizer = embedded
    head = prompt_ids(tokenizer, prompt)
    tail = tokenizer(option, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        predicted = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(predicted[len(head) - 1 + k, token].item() for k, token in enumerate(tail)), len(tail)


def test_batched_likelihoods_are_those_of_each_option_alone(embedded):
    asked = questions(12)
    assert len(asked) == 12
    for (prompt, options), found in zip(asked, scores(embedded, asked, batch_size=5), strict=True):
        expected = [by_hand(embedded, prompt, option) for option in options]
        assert found.values == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert found.tokens == sum(tokens for _, tokens in expected)


def test_the_model_chooses_what_it_knows(embedded):
    rows = [row for row in tasks.records("sort", 30, cued=True, seed=4) if len(set(row["response"].split())) > 3]
    asked = [(row["prompt"], [f" {row['prompt'][7:-2]}", row["response"][::-1], row["response"]]) for row in rows]
    assert [s.best for s in scores(embedded, asked)].count(2) > 0.9 * len(asked)


@pytest.mark.parametrize("batch_size", [7, 32])
def test_the_choice_does_not_depend_on_the_batch_size(embedded, batch_size):
    asked = questions(40)
    one = scores(embedded, asked, batch_size=1)
    found = scores(embedded, asked, batch_size=batch_size)
    assert [s.best for s in found] == [s.best for s in one]
    assert len({s.best for s in one}) > 1
    for a, b in zip(one, found, strict=True):
        assert a.values == pytest.approx(b.values, abs=1e-4)


def test_likelihoods_are_normalised_by_tokens_or_bytes(embedded):
    asked = questions(6)
    plain = scores(embedded, asked)
    assert len(plain) == 6
    for (_, options), raw, tokens, size in zip(
        asked,
        plain,
        scores(embedded, asked, normalise="tokens"),
        scores(embedded, asked, normalise="bytes"),
        strict=True,
    ):
        lengths = [len(option.split()) for option in options]
        assert tokens.values == pytest.approx([v / n for v, n in zip(raw.values, lengths, strict=True)])
        assert size.values == pytest.approx([v / len(o) for v, o in zip(raw.values, options, strict=True)])


def test_options_that_share_their_beginning_cost_one_row(embedded, monkeypatch):
    model, _ = embedded
    shapes = []
    monkeypatch.setattr(model, "forward", lambda **inputs: shapes.append(inputs["input_ids"].shape) or run(**inputs))
    run = type(model).forward.__get__(model)
    scores(embedded, [("copy : a b =", [" a b", " a c", " a", " d"])])
    assert shapes == [(1, 7)]  # <s> copy : a b =, and the a that two of them begin with


def test_a_question_that_cannot_be_scored_is_named(embedded):
    with pytest.raises(HeadEditError, match="the list of questions is empty"):
        scores(embedded, [])
    with pytest.raises(HeadEditError, match=r"line 7: the option '' has no tokens"):
        scores(embedded, [("copy : a =", [" a", ""])], names=["line 7"])
    with pytest.raises(HeadEditError, match=r"line 8 has 61 tokens; .* context of 64"):
        scores(embedded, [("a " * 60, [" a a a a a", " b"])], names=["line 8"])
