"""Options that share one row with their prompt, as a tree of tokens, have the likelihoods that they have alone."""

import pytest
import torch
from test_eval_shared_prompts import NOT_CAUSAL, OPTIONS, TYPES, Numbers, alone, prompts, spread, text

import headedit
from headedit.evaluation.answers.likelihood import option_scores
from headedit.evaluation.answers.option_trees import OptionTrees
from headedit.evaluation.answers.rows import RowReader
from headedit.evaluation.answers.tree_masks import tree_inputs

READ_AS_TREES = {"llama", "gpt2", "mixtral", "qwen2", "qwen3", "phi3"}
RECURRENT = {"falcon_h1", "zamba", "qwen3_5_moe", "mamba"}


def trees(model, tokens=200):
    reader = RowReader(model, 0)
    return OptionTrees(reader, lambda rows: reader.read(rows, use_cache=False)[0], tokens)


def plain(model, heads, options=OPTIONS):
    return [[alone(model, head, tail) for tail in options] for head in heads]


def watched(model, monkeypatch):
    """The shapes of the input ids and of the masks of the model's passes."""
    shapes = []
    run = type(model).forward.__get__(model)

    def forward(input_ids, attention_mask=None, position_ids=None, past_key_values=None, **inputs):
        shapes.append((tuple(input_ids.shape), attention_mask.dim()))
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        return run(input_ids=input_ids, **given, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    return shapes


def answered(model, heads, **options):
    asked = [(text(head), list(map(text, OPTIONS))) for head in heads]
    batches = option_scores(model, Numbers(), asked, progress=False, **options)
    found = dict(pair for batch in batches for pair in batch)
    return [found[i].values for i in range(len(heads))]


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - NOT_CAUSAL))
@torch.no_grad()
def test_a_tree_gives_the_likelihoods_of_plain_passes_or_is_not_used(model_type):
    model = spread(model_type)
    found = trees(model).scores([(head, OPTIONS) for head in prompts()])
    if model_type in READ_AS_TREES:
        assert found is not None
    if model_type in RECURRENT:
        assert found is None
    if found is not None:
        for values, expected in zip(found, plain(model, prompts()), strict=True):
            assert values == pytest.approx(expected, abs=2e-3, rel=2e-4)


def test_one_pass_reads_the_prompt_and_all_its_options(monkeypatch):
    model = spread("llama")
    shapes = watched(model, monkeypatch)
    answered(model, prompts((9, 9, 9)))
    # five tokens of the options come before others: 8, 8 10, 8 10 11, 13 and 13 14; the longest is compared
    assert shapes == [((3, 9 + 5), 4), ((1, 9 + 3), 2)]


def test_what_all_prompts_begin_with_is_run_once_for_trees_too(monkeypatch):
    model = spread("llama")
    heads = [prompts((17,))[0] + rest for rest in prompts((3, 7, 1, 4, 7))]
    expected = plain(model, heads)
    shapes = watched(model, monkeypatch)
    for values, wanted in zip(answered(model, heads, batch_size=8), expected, strict=True):
        assert values == pytest.approx(wanted, abs=2e-3, rel=2e-4)
    assert shapes == [((1, 17), 2), ((5, 7 + 5), 4), ((1, 24 + 3), 2)]


@pytest.mark.parametrize("fault", ["mask", "positions", "refuses"])
def test_a_model_that_reads_a_tree_otherwise_is_noticed(monkeypatch, fault):
    model = spread("llama")
    expected = plain(model, prompts())
    run = type(model).forward.__get__(model)
    masks = []

    def forward(input_ids, attention_mask=None, position_ids=None, past_key_values=None, **inputs):
        masks.append(attention_mask.dim())
        if attention_mask.dim() == 4:
            if fault == "refuses":
                raise ValueError("The attention mask should have two dimensions.")
            if fault == "mask":
                attention_mask = torch.ones_like(input_ids)
            else:
                position_ids = torch.arange(input_ids.shape[1])[None]
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        return run(input_ids=input_ids, **given, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    for values, wanted in zip(answered(model, prompts(), batch_size=2), expected, strict=True):
        assert values == pytest.approx(wanted, abs=2e-3, rel=2e-4)
    assert 4 in masks[:2]
    assert 4 not in masks[2:]


@torch.no_grad()
def test_edits_act_on_the_tokens_of_a_tree_as_in_a_pass_of_their_own():
    model = spread("llama")
    edits = headedit.attach(model)
    for site in edits.sites:
        for head in range(site.heads):
            edits.set_head(site.layer, head, scale=0.3, offset=torch.full((site.head_dim,), 0.1 * (head + 1)))
    found = trees(model).scores([(head, OPTIONS) for head in prompts()])
    for values, expected in zip(found, plain(model, prompts()), strict=True):
        assert values == pytest.approx(expected, abs=2e-3, rel=2e-4)
    with edits.disable_adapter():
        base = trees(model).scores([(head, OPTIONS) for head in prompts()])
    assert max(abs(a - b) for x, y in zip(found, base, strict=True) for a, b in zip(x, y, strict=True)) > 0.01


@torch.no_grad()
def test_passes_hold_no_more_tokens_than_they_may(monkeypatch):
    model = spread("llama")
    shapes = watched(model, monkeypatch)
    found = trees(model, tokens=40).scores([(head, OPTIONS) for head in prompts()])
    assert [shape for shape, dims in shapes if dims == 4] == [(1, 26), (2, 19), (2, 14)]
    for values, expected in zip(found, plain(spread("llama"), prompts()), strict=True):
        assert values == pytest.approx(expected, abs=2e-3, rel=2e-4)


def test_a_token_of_a_tree_sees_what_comes_before_it():
    mask, positions = tree_inputs([(5, [1, 1, 3]), (3, [])], 2, torch.float32, torch.device("cpu"))
    seen = (mask == 0)[:, 0].int().tolist()
    assert seen[0] == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 0, 1, 1],
    ]
    assert positions.tolist() == [[2, 3, 4, 4, 5], [2, 3, 4, 5, 6]]
