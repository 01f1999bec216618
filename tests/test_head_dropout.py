"""Dropout of heads: what a training pass leaves out, and how much of it recipes take by default."""

import pytest
import torch
from tiny import logits, randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.gate_set import all_gates, close, freeze_gates
from headedit.edits.site_edit import affine_all
from headedit.training.recipes import make_recipe
from headedit.training.recipes.dropout import LARGEST, default_dropout, with_dropout

ROWS = [{"input_ids": [3, 4 + i % 5, 5 + i % 7, 9], "labels": [-100, -100, 5 + i % 7, 9]} for i in range(24)]


def edited(**config):
    edits = headedit.attach(tiny_model("llama"), config=EditConfig(**config))
    randomise(edits)
    if edits.config.gates != "none":
        freeze_gates(edits.module, all_gates(edits.module))
    return edits


@pytest.mark.parametrize("gates", ["separate", "shared", "none"])
def test_a_pass_leaves_heads_out_and_raises_the_others(gates):
    edits = edited(gates=gates)
    edits.model.train()
    site = next(iter(edits.module))
    z = torch.randn(2, 5, site.heads * site.head_dim)
    whole = (1 + site.vectors["scale"]) * z.unflatten(-1, (site.heads, -1)) + site.vectors["offset"]
    raised = z.unflatten(-1, (site.heads, -1)) + (whole - z.unflatten(-1, (site.heads, -1))) / 0.75
    left_out = 0
    with edits.head_dropout(0.25), torch.no_grad():
        for _ in range(200):
            found = site(z).unflatten(-1, (site.heads, -1))
            for head in range(site.heads):
                bare = torch.equal(found[..., head, :], z.unflatten(-1, (site.heads, -1))[..., head, :])
                assert bare or torch.allclose(found[..., head, :], raised[..., head, :], atol=1e-5)
                left_out += bare
    assert 0.15 < left_out / (200 * site.heads) < 0.35


def test_nothing_is_left_out_in_eval_mode_with_deterministic_gates_and_after_the_context(ids):
    edits = edited()
    expected = logits(edits.model.eval(), ids)
    with edits.head_dropout(0.5):
        assert torch.equal(logits(edits.model.eval(), ids), expected)
        with edits.deterministic_gates():
            assert torch.equal(logits(edits.model.train(), ids), expected)
        assert not torch.allclose(logits(edits.model.train(), ids), expected)
    assert torch.equal(logits(edits.model.train(), ids), expected)


def test_sites_together_leave_out_the_heads_that_they_leave_out_one_by_one():
    edits = edited()
    edits.model.train()
    with edits.head_dropout(0.5):
        torch.manual_seed(3)
        together = affine_all(list(edits.module))
        torch.manual_seed(3)
        single = [site.affine(None) for site in edits.module]
    for ours, theirs in zip(together, single, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_a_checkpointed_layer_leaves_the_same_heads_out_when_it_is_recomputed(ids):
    gradients = []
    for checkpointed in (False, True):
        edits = edited()
        model = edits.model.train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        with edits.head_dropout(0.5):
            model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([vector.grad for vector in edits.vector_parameters()])
    assert any(bool((gradient == 0).all(-1).any()) for gradient in gradients[0])  # of a head that was left out
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_no_probability_is_refused(share, tmp_path):
    edits = edited()
    with pytest.raises(HeadEditError, match="from 0 to below 1"), edits.head_dropout(share):
        pass
    with pytest.raises(HeadEditError, match=r"dropout: found .*, expected a share from 0 to below 1"):
        make_recipe("localise", {"dropout": share})


def test_dropout_falls_as_labelled_tokens_outnumber_trained_values():
    assert default_dropout(1_000, 50) == default_dropout(1_000, 1_000) == LARGEST
    assert default_dropout(1_000, 1_500) == LARGEST / 2
    assert default_dropout(1_000, 2_000) == default_dropout(96, 6_200) == 0.0


def test_only_labelled_tokens_and_values_whose_gates_are_open_count():
    edits = edited()
    close(edits.module, all_gates(edits.module)[2:])
    values = 2 * next(iter(edits.module)).head_dim
    stage = with_dropout(make_recipe("ungated", {}).vector_stage(), edits, ROWS)
    assert stage.dropout == pytest.approx(default_dropout(values, 48))  # 24 rows of two
    assert 0 < stage.dropout < LARGEST


def test_a_refit_has_none_and_a_search_half_of_that_of_its_refit():
    edits = edited()
    assert with_dropout(make_recipe("refit", {}).vector_stage(), edits, ROWS).dropout == 0.0
    recipe = make_recipe("localise", {"dropout": 0.3})
    assert with_dropout(recipe.search_stage(), edits, ROWS).dropout == 0.15
    assert with_dropout(recipe.refit_stage(), edits, ROWS).dropout == 0.3


def test_a_run_trains_with_its_dropout_and_leaves_none_behind(tmp_path):
    found = []
    for dropout in (0.0, 0.5):
        edits = headedit.attach(tiny_model("llama"))
        options = {"recipe": "ungated", "epochs": 2, "progress": False, "dropout": dropout}
        headedit.fit(edits, ROWS, output_dir=tmp_path / str(dropout), **options)
        assert {site.dropout for site in edits.module} == {0.0}
        found.append(torch.cat([vector.flatten() for vector in edits.vector_parameters()]))
    assert not torch.allclose(*found)
