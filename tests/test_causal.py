"""Switching heads off and patching them gives the numbers of plain hooks, and leaves model and edits as they were."""

import sys

import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch.nn.functional import cross_entropy
from zoo import zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.interpret.evidence.attribution import attribute, integrate
from headedit.interpret.evidence.causal import leave_one_out, patch
from headedit.interpret.evidence.heads import edited_heads, switched_off

pytest.importorskip("nnsight")


def rows_of(count=10, seed=3):
    """Token ids of several lengths; the last half of each carries labels, which are other random tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in torch.randint(4, 9, (count,), generator=generator).tolist():
        ids, labels = torch.randint(3, 128, (2, n), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (n // 2) + labels[n // 2 :]})
    return rows


def losses_by_hand(model, rows):
    """Mean loss of each example by itself, without any padding."""
    found = []
    for row in rows:
        scores = logits(model, torch.tensor([row["input_ids"]]))[0, :-1]
        found.append(cross_entropy(scores, torch.tensor(row["labels"][1:])))
    return torch.stack(found)


class Reference:
    """The edited model by plain hooks on the base model: one head may be left alone, or given from elsewhere."""

    def __init__(self, edits):
        self.edits, self.model = edits, edits.model

    def run(self, row, *, edited, skip=None, put=None):
        """Loss of one row, and what every site was given; ``skip`` is (path, head), ``put`` has its output besides."""
        kept, hooks = {}, []

        def act(site, edit):
            def hook(module, args):
                z = args[0].clone()
                heads = z.view(*z.shape[:-1], site.heads, site.head_dim)
                for head in range(site.heads):
                    if edited and skip != (site.path, head):
                        acting = {name: vector[head] for name, vector in edit.effective().items()}
                        heads[..., head, :] = heads[..., head, :] * (1 + acting["scale"]) + acting["offset"]
                    if put is not None and put[:2] == (site.path, head):
                        heads[..., head, :] = put[2]
                kept[site.path] = heads.clone()
                return (z, *args[1:])

            return hook

        with self.edits.disable_adapter(), torch.no_grad():
            for site, edit in self.edits.module.pairs():
                hooks.append(site.module.register_forward_pre_hook(act(site, edit)))
            loss = losses_by_hand(self.model, [row])[0]
        for hook in hooks:
            hook.remove()
        return loss, kept


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def edited(request):
    edits = headedit.attach(tiny_model(request.param))
    randomise(edits)
    return edits


def test_leaving_one_edit_out_gives_the_losses_of_plain_hooks(edited):
    rows, reference = rows_of(), Reference(edited)
    found = leave_one_out(edited, rows, heads="all", batch_size=4, progress=False)
    assert [head.name for head in found.heads] == [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    for j, row in enumerate(rows):
        assert torch.allclose(found.before[j], reference.run(row, edited=True)[0], atol=1e-5)
        for i, head in enumerate(found.heads):
            loss, _ = reference.run(row, edited=True, skip=(head.site.path, head.index))
            assert torch.allclose(found.after[i, j], loss, atol=1e-5)
    assert torch.allclose(found.effects, found.after.mean(1) - found.before.mean(), atol=1e-6)
    assert torch.allclose(found.errors, (found.after - found.before).std(1) / 10**0.5)
    assert found.effects.abs().max() > 100 * 1e-5
    for i, head in enumerate(found.heads):
        assert head.is_open or torch.equal(found.after[i], found.before)


def test_a_head_left_out_equals_a_head_without_an_edit_to_the_bit(edited):
    rows = [row for row in rows_of(40) if len(row["input_ids"]) == 6]
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    found = leave_one_out(edited, rows, heads=[(0, 1), (1, 2)], batch_size=len(rows), progress=False)
    for i, (layer, head) in enumerate([(0, 1), (1, 2)]):
        before = edited.snapshot()
        edited.set_head(layer, head)
        by_token = cross_entropy(logits(edited.model, ids)[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        assert torch.equal(found.after[i], by_token.sum(1) / (labels[:, 1:] != -100).sum(1))
        edited.restore(before)


def test_patching_gives_the_losses_of_plain_hooks(edited):
    rows, reference = rows_of(), Reference(edited)
    gains = patch(edited, rows, into="base", batch_size=4, progress=False)
    losses = patch(edited, rows, into="edited", batch_size=4, progress=False)
    assert len(gains.heads) == len(losses.heads) == 8
    for j, row in enumerate(rows):
        edited_loss, edited_heads_given = reference.run(row, edited=True)
        base_loss, base_heads_given = reference.run(row, edited=False)
        assert torch.allclose(gains.before[j], base_loss, atol=1e-5)
        assert torch.allclose(losses.before[j], edited_loss, atol=1e-5)
        for i, head in enumerate(gains.heads):
            path = head.site.path
            source = edited_heads_given[path][..., head.index, :]
            loss, _ = reference.run(row, edited=False, put=(path, head.index, source))
            assert torch.allclose(gains.after[i, j], loss, atol=1e-5)
            source = base_heads_given[path][..., head.index, :]
            loss, _ = reference.run(row, edited=True, put=(path, head.index, source))
            assert torch.allclose(losses.after[i, j], loss, atol=1e-5)
    assert gains.effects.abs().max() > 100 * 1e-5
    assert losses.effects.abs().max() > 100 * 1e-5


def state(edits):
    """All that a function may leave behind."""
    modules = dict(edits.model.named_modules())
    return (
        {name: (list(m._forward_pre_hooks), list(m._forward_hooks), m.training) for name, m in modules.items()},
        {
            name: {key: id(m.__dict__[key]) for key in ("forward", "__nnsight__") if key in m.__dict__}
            for name, m in modules.items()
        },
        {name: (p.requires_grad, p.grad) for name, p in edits.model.named_parameters()},
        edits.strength,
    )


ACTIONS = {
    "leave_one_out": leave_one_out,
    "patch into base": lambda *args, **options: patch(*args, into="base", **options),
    "patch into edited": lambda *args, **options: patch(*args, into="edited", **options),
    "attribute": attribute,
    "integrate": integrate,
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_the_model_and_its_edits_are_unchanged_even_after_an_error(action, fails, llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    wanted, vectors, rows = logits(llama, ids), edits.snapshot(), rows_of()
    llama.train()
    edits.sites[0].module.eval()
    before = state(edits)
    if fails:
        runs = []

        def stop(module, args):
            runs.append(1)
            if len(runs) == 5:
                raise RuntimeError("stopped")

        hook = llama.lm_head.register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="stopped"):
            ACTIONS[action](edits, rows, batch_size=2, progress=False)
        hook.remove()
    else:
        ACTIONS[action](edits, rows, progress=False)
    assert state(edits) == before
    assert all(map(torch.equal, edits.snapshot(), vectors))
    llama.eval()
    assert torch.equal(logits(llama, ids), wanted)


def test_a_model_that_is_traced_already_can_still_be_traced(llama, ids):
    import nnsight

    edits = headedit.attach(llama)
    randomise(edits)
    expected = logits(llama, ids)
    wrapped = nnsight.NNsight(llama)
    leave_one_out(edits, rows_of(), progress=False)
    with torch.no_grad(), wrapped.trace(input_ids=ids):
        heads = wrapped.model.layers[0].self_attn.o_proj.input.save()
        out = wrapped.lm_head.output.save()
    assert heads.shape == (2, 7, 64)
    assert torch.equal(out, expected)


def test_plain_gradients_are_the_same_once_nnsight_has_patched_backward(llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    leave_one_out(edits, rows_of(), progress=False)
    vectors = edits.vector_parameters()
    wanted = torch.autograd.grad(llama(input_ids=ids, labels=ids).loss, vectors)
    llama(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.equal(vector.grad, slope) for vector, slope in zip(vectors, wanted, strict=True))


def test_switched_off_heads_are_the_base_model_to_the_bit(llama, ids):
    edits = headedit.attach(llama)
    base = logits(llama, ids)
    randomise(edits)
    wanted = logits(llama, ids)
    assert not torch.equal(wanted, base)
    with switched_off(edits, edited_heads(edits)):
        assert torch.equal(logits(llama, ids), base)
    assert torch.equal(logits(llama, ids), wanted)


def test_one_pass_estimates_all_effects_of_small_edits(edited):
    rows = rows_of()
    edited.strength = 0.01
    found = attribute(edited, rows, batch_size=4, progress=False)
    exact = leave_one_out(edited, rows, heads="all", batch_size=4, progress=False)
    patched = patch(edited, rows, into="edited", batch_size=4, progress=False)
    size = exact.effects.abs().max()
    assert size > 1e-6
    assert torch.allclose(found.attribution, exact.effects, atol=0.1 * size)
    assert torch.allclose(found.patch, patched.effects, atol=0.1 * patched.effects.abs().max())
    assert found.loss == pytest.approx(exact.before.mean().item(), abs=1e-6)
    with edited.disable_adapter():
        assert found.base_loss == pytest.approx(losses_by_hand(edited.model, rows).mean().item(), abs=1e-5)


def test_attribution_is_the_gradient_along_the_vectors(edited):
    rows = rows_of(6)
    found = attribute(edited, rows, batch_size=2, progress=False)
    losses = [
        cross_entropy(edited.model(torch.tensor([r["input_ids"]])).logits[0, :-1], torch.tensor(r["labels"][1:]))
        for r in rows
    ]
    vectors = edited.vector_parameters()
    slopes = torch.autograd.grad(sum(losses) / len(rows), vectors)
    by_vector = iter([-(v.detach() * g).sum(-1) for v, g in zip(vectors, slopes, strict=True)])
    by_site = [next(by_vector) + next(by_vector) for _ in edited.module]
    assert torch.allclose(found.attribution, torch.cat(by_site), atol=1e-6)


def test_integrated_gradients_add_up_to_the_gain_of_all_edits(edited):
    rows = rows_of(6)
    found = attribute(edited, rows, progress=False)
    shares = integrate(edited, rows, steps=32, batch_size=4, progress=False)
    gain = found.base_loss - found.loss
    assert abs(gain) > 1e-3
    assert shares.sum().item() == pytest.approx(gain, rel=0.01)
    edited.strength = 0.5
    half = integrate(edited, rows, steps=32, progress=False)
    assert not torch.allclose(half, shares, atol=1e-4)
    assert edited.strength == 0.5


def test_contributions_equal_those_computed_by_hand(edited):
    rows, reference = rows_of(), Reference(edited)
    found = attribute(edited, rows, batch_size=4, progress=False)
    given = [reference.run(row, edited=True)[1] for row in rows]
    assert len(found.heads) == 8
    for i, head in enumerate(found.heads):
        after = torch.cat([g[head.site.path][0, :, head.index] for g in given])
        acting = {name: vector[head.index] for name, vector in head.edit.effective().items()}
        before = torch.where(acting["scale"] == -1, torch.nan, (after - acting["offset"]) / (1 + acting["scale"]))
        added = (after - before).square().sum(1).mean().sqrt()
        own = before.square().sum(1).mean().sqrt()
        assert torch.allclose(found.contribution[i], added, rtol=1e-3, atol=1e-5)
        assert torch.allclose(found.share[i], added / own, rtol=1e-2, atol=1e-5)
        assert torch.allclose(found.rms[i], before.square().mean(0).sqrt(), rtol=1e-2, atol=1e-4)
        cosine = torch.cosine_similarity(after, before, dim=1).mean()
        assert torch.allclose(found.cosine[i], cosine, atol=1e-3)


def test_modules_that_run_several_times_per_pass_are_attributed_but_not_patched():
    model = zoo_model("hrm_text")
    edits = headedit.attach(model)
    randomise(edits)
    rows = [{**row, "labels": row["input_ids"]} for row in rows_of(4)]
    found = leave_one_out(edits, rows, progress=False)
    assert found.effects.abs().max() > 0
    estimates = attribute(edits, rows, progress=False)
    assert estimates.attribution.isfinite().all()
    with pytest.raises(HeadEditError, match=r"runs \d times in a forward pass.*Use leave_one_out"):
        patch(edits, rows, into="base", progress=False)


def test_modules_that_do_not_get_every_token_once_are_attributed_but_not_patched():
    edits = headedit.attach(zoo_model("jetmoe"))
    randomise(edits)
    rows = [{**row, "labels": row["input_ids"]} for row in rows_of(4)]
    assert attribute(edits, rows, progress=False).patch.isnan().all()
    with pytest.raises(HeadEditError, match="the tokens of two runs cannot be matched"):
        patch(edits, rows, into="edited", progress=False)


def test_linear_mixers_and_mlps_are_heads_of_their_own_kind():
    edits = headedit.attach(zoo_model("qwen3_5_text"), config=EditConfig(sites=["attention", "linear", "mlp"]))
    randomise(edits)
    kinds = {head.kind for head in edited_heads(edits)}
    assert kinds == {"attention", "linear", "mlp"}
    found = patch(edits, rows_of(4), into="edited", progress=False)
    exact = leave_one_out(edits, rows_of(4), heads="all", progress=False)
    first = [i for i, head in enumerate(found.heads) if head.layer == 0 and head.kind == "linear"]
    assert torch.allclose(found.effects[first], exact.effects[first], atol=1e-5)  # nothing lies below them


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_lora_put_on_after_the_edits_changes_no_number(action, llama):
    peft = pytest.importorskip("peft")
    edits = headedit.attach(llama)
    randomise(edits)

    def numbers():
        found = ACTIONS[action](edits, rows_of(), progress=False)
        parts = [getattr(found, name, None) for name in ("effects", "attribution", "patch", "contribution")]
        return [part for part in (*parts, found) if isinstance(part, torch.Tensor)]

    expected = numbers()
    peft.get_peft_model(llama, peft.LoraConfig(target_modules=["o_proj"], r=2)).eval()  # the identity, until trained
    assert all(map(torch.equal, numbers(), expected))
    assert expected[0].abs().max() > 0


MISTAKES = {
    "expected the handle of edits": lambda edits, rows: leave_one_out(edits.model, rows),
    "There is no edited head 4 in layer 1; edited layers": lambda edits, rows: leave_one_out(
        edits, rows, heads=[(1, 4)]
    ),
    "heads: found 'some', expected 'open', 'all' or a": lambda edits, rows: leave_one_out(edits, rows, heads="some"),
    "into: found 'bas', expected 'base' or 'edited'": lambda edits, rows: patch(edits, rows, into="bas"),
    "the set of examples is empty": lambda edits, rows: attribute(edits, []),
    "steps: found 0, expected 1 or more": lambda edits, rows: integrate(edits, rows, steps=0),
    "batch_size: found 0, expected 1 or more": lambda edits, rows: attribute(edits, rows, batch_size=0),
    "batch_size: found 2.5, expected 1 or more, a whole": lambda edits, rows: attribute(edits, rows, batch_size=2.5),
    "batch_size: found '4', expected 1 or more, a whole": lambda edits, rows: attribute(edits, rows, batch_size="4"),
    "steps: found 2.5, expected a whole number": lambda edits, rows: integrate(edits, rows, steps=2.5),
    r"heads: found \(1, 2\), expected 'open', 'all' or a list": lambda edits, rows: leave_one_out(
        edits, rows, heads=(1, 2)
    ),
    r"heads: found \[\(0.5, 1\)\], expected 'open', 'all' or": lambda edits, rows: leave_one_out(
        edits, rows, heads=[(0.5, 1)]
    ),
    r"heads: found \[\('a', 1\)\], expected 'open', 'all' or": lambda edits, rows: patch(
        edits, rows, into="base", heads=[("a", 1)]
    ),
    "heads: found None, expected 'open', 'all' or a list": lambda edits, rows: leave_one_out(edits, rows, heads=None),
    "Example 1: is text, and there is no tokenizer": lambda edits, rows: attribute(edits, [("a", "b")]),
    "Example 3: has no labelled token": lambda edits, rows: attribute(edits, [*rows, labelled([3, 4], [4, -100])]),
    "Example 3: has 2 input_ids but 0 labels": lambda edits, rows: attribute(edits, [*rows, labelled([3, 4], [])]),
    "Example 3: has the token id 500, but the model.s embedding has 128": lambda edits, rows: attribute(
        edits, [*rows, labelled([3, 500], [3, 4])]
    ),
    "Example 3 has 65 tokens, more than the model's context of 64": lambda edits, rows: attribute(
        edits, [*rows, labelled([3] * 65, [3] * 65)]
    ),
}


def labelled(ids, labels):
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("message", sorted(MISTAKES))
def test_a_mistake_in_an_intervention_is_explained(message, llama):
    edits = headedit.attach(llama)
    randomise(edits)
    with pytest.raises(HeadEditError, match=message):
        MISTAKES[message](edits, rows_of(2))


def test_edits_that_have_no_effect_are_refused(llama, monkeypatch):
    edits = headedit.attach(llama, config=EditConfig(gate_init=-10.0))
    with pytest.raises(HeadEditError, match="every gate is closed"):
        leave_one_out(edits, rows_of(2))
    randomise(edits)
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with pytest.raises(HeadEditError, match="pip install 'nnsight"):
        leave_one_out(edits, rows_of(2))
    monkeypatch.undo()
    edits.detach()
    with pytest.raises(HeadEditError, match="These edits are detached"):
        leave_one_out(edits, rows_of(2))
    edits = headedit.attach(llama, config=EditConfig(vectors="scale"))
    randomise(edits)
    edits.merge_adapter()
    with pytest.raises(HeadEditError, match=r"merged into the weights.*unmerge_adapter"):
        attribute(edits, rows_of(2))
