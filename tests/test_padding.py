"""Answers in a batch are the answers alone, for every type, whatever the type makes of padding."""

import pytest
import torch
from tokenizers_tiny import byte_level
from zoo import WITH_HEADS, zoo_model

from headedit.data.batches import batches
from headedit.evaluation.answers.generation import by_length
from headedit.evaluation.answers.likelihood import option_scores
from headedit.evaluation.answers.padding import batches_of, takes_padding
from headedit.specs.tiny import tiny_configs

OTHER_INPUTS = {"blt", "musicgen", "musicgen_melody", "reformer"}
TYPES = sorted(set(WITH_HEADS) - OTHER_INPUTS)


def ids_of(length, seed):
    return torch.randint(3, 60, (1, length), generator=torch.Generator().manual_seed(seed))


def answer(model, ids, mask):
    """New tokens, [rows, 4], and the logits of the first of them, [rows, vocabulary]."""
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences[:, ids.shape[1] :], found.logits[0]


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_a_spec_says_on_which_sides_padding_changes_nothing(model_type):
    model = zoo_model(model_type)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4.0)  # so that answers depend on the inputs
    long, short = ids_of(9, 1), ids_of(5, 2)
    filler, hidden = torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
    seen = torch.ones_like(short)
    alone, first = answer(model, short, seen)
    limit = 1e-3 * float(first.std())
    if takes_padding(model, "left"):
        ids = torch.cat([long, torch.cat([filler, short], 1)])
        together, logits = answer(model, ids, torch.cat([torch.ones_like(long), torch.cat([hidden, seen], 1)]))
        assert torch.equal(together[1:], alone)
        torch.testing.assert_close(logits[1:], first, rtol=0, atol=limit)
    if takes_padding(model, "right"):
        ids = torch.cat([long, torch.cat([short, filler], 1)])
        mask = torch.cat([torch.ones_like(long), torch.cat([seen, hidden], 1)])
        found = model(ids, attention_mask=mask).logits[1, :5]
        torch.testing.assert_close(found, model(short, attention_mask=seen).logits[0], rtol=0, atol=limit)
    same = torch.cat([short, ids_of(5, 3)])
    together, logits = answer(model, same, torch.ones_like(same))
    assert torch.equal(together[:1], alone)
    torch.testing.assert_close(logits[:1], first, rtol=0, atol=limit)


def test_only_equal_lengths_share_a_batch_where_padding_changes_answers(caplog):
    model = zoo_model("xlm")
    lengths = [5, 9, 5, 9, 9, 3]
    found = list(by_length(lengths, 2, False, "", equal_for=model))
    assert found == [[1, 3], [4], [0, 2], [5]]
    assert "only inputs of equal length share a batch: 4 batches for 6 inputs" in caplog.text
    assert list(by_length(lengths, 2, False, "")) == [[1, 3], [4, 0], [2, 5]]
    assert list(batches_of([], [], 2, equal=True)) == []


def test_a_type_without_a_spec_is_not_trusted_with_padding():
    assert not takes_padding(torch.nn.Linear(2, 2), "left")
    assert [takes_padding(zoo_model("bart"), side) for side in ("left", "right")] == [False, True]
    assert [takes_padding(zoo_model("llama"), side) for side in ("left", "right")] == [True, True]


@pytest.mark.parametrize(("model_type", "said"), [("cpmant", True), ("llama", False)])
def test_scoring_of_options_says_where_equal_lengths_alone_share_a_pass(model_type, said, caplog):
    asked = [("a b", [" c", " d e f"]), ("a b c d", [" e f", " c d e f g"])]
    values = tiny_configs()[model_type]
    model, tokenizer = zoo_model(model_type, {**values, "vocab_size": 420}), byte_level()
    together = dict(row for batch in option_scores(model, tokenizer, asked, progress=False) for row in batch)
    for i, question in enumerate(asked):
        alone = dict(row for batch in option_scores(model, tokenizer, [question], batch_size=1) for row in batch)
        assert together[i].values == pytest.approx(alone[0].values, abs=1e-4)
    assert ("only inputs of equal length share a batch" in caplog.text) == said


def test_batches_for_evidence_have_equal_lengths_where_padding_changes_answers():
    rows = [{"input_ids": [3] * n, "labels": [3] * n} for n in (5, 9, 5, 7)]
    found = {}
    for model_type in ("cpmant", "llama"):
        batched = batches(zoo_model(model_type), rows, 4, what="", progress=False)
        found[model_type] = [chosen.tolist() for chosen, _, _ in batched]
    assert found == {"cpmant": [[0, 2], [3], [1]], "llama": [[0, 2, 3, 1]]}
