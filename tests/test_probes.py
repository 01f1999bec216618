"""ITI finds the head that was made to tell two classes apart, leaves the model alone, and says what it cannot use."""

from dataclasses import replace

import numpy
import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity
from zoo import zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.data import prompt_ids
from headedit.data.encoding import ids_to_last_token
from headedit.demo import MODEL_FOLDER
from headedit.hf.loading import load_tokenizer
from headedit.interpret.evidence.iti import HeadProbes, _split, iti
from headedit.training.steering import probes
from headedit.training.steering.head_outputs import last_outputs
from headedit.training.steering.probes import fit_probes, held_out_accuracy

LAYER, HEAD = 1, 2


def random_rows(count=96, seed=3):
    """Token ids of several lengths; whether they add up to an odd number is no matter to a random model."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    rows = [{"input_ids": torch.randint(3, 128, (n,), generator=generator).tolist()} for n in lengths]
    return rows, [sum(row["input_ids"]) % 2 for row in rows]


def plant(model, shift):
    """The head puts out ``shift`` more for odd rows, less for even ones: its values do, and attention adds up to 1."""
    sign = None

    def read(module, args, kwargs):
        nonlocal sign
        sign = 2.0 * (kwargs["input_ids"].sum(1) % 2) - 1  # the padding is 0

    def add(module, args, output):
        width = len(shift)
        first = output.shape[-1] - (4 - HEAD) * width  # values stand last in GPT-2's joint projection
        output = output.clone()
        output[..., first : first + width] += sign[:, None, None] * shift
        return output

    gpt2 = model.config.model_type == "gpt2"
    values = model.transformer.h[LAYER].attn.c_attn if gpt2 else model.model.layers[LAYER].self_attn.v_proj
    model.register_forward_pre_hook(read, with_kwargs=True)
    values.register_forward_hook(add)


@pytest.fixture(params=["llama", "gpt2"])
def planted(request):
    """Edits on a model with one informative head, and the direction that it tells the classes apart by."""
    model = tiny_model(request.param, **({"num_key_value_heads": 4} if request.param == "llama" else {}))
    width = 16 if request.param == "llama" else 8
    shift = torch.randn(width, generator=torch.Generator().manual_seed(1))
    plant(model, shift)
    edits = headedit.attach(model)
    return edits, shift


def find(edits, **options):
    rows, labels = random_rows()
    return iti(edits, rows, labels, progress=False, **options)


def hooks(model):
    return {n: (list(m._forward_pre_hooks.values()), list(m._forward_hooks)) for n, m in model.named_modules()}


def outputs_by_hand(edits, rows):
    """Outputs of the base model's heads at the last token, a row at a time, so without any padding."""
    kept = {site.path: [] for site in edits.sites}
    handles = [
        site.module.register_forward_pre_hook(lambda m, args, to=kept[site.path]: to.append(args[0][0, -1].flatten()))
        for site in edits.sites
    ]
    with edits.disable_adapter():
        for row in rows:
            logits(edits.model, torch.tensor([row["input_ids"]]))
    for handle in handles:
        handle.remove()
    return [torch.stack(kept[site.path]).view(len(rows), site.heads, site.head_dim) for site in edits.sites]


def fit_by_hand(x, labels, l2):
    """Weights and intercept of one probe, by L-BFGS."""
    w = torch.zeros(x.shape[-1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-11, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(x @ w[:-1] + w[-1], labels.double(), reduction="sum")
        loss = loss + l2 / 2 * w[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return w.detach()


def test_the_head_that_carries_the_label_comes_first(planted):
    edits, shift = planted
    found = find(edits)
    assert found.accuracy.shape == found.sigma.shape == (2, 4)
    assert found.top(1) == [(LAYER, HEAD)]
    assert found.accuracy[LAYER, HEAD] == 1
    others = [found.accuracy[place] for place in found.top(8)[1:]]
    assert max(others) < 0.9
    assert others == sorted(others, reverse=True)
    assert cosine_similarity(found.direction[LAYER, HEAD], shift, dim=0) > 0.99
    assert torch.allclose(found.sigma[LAYER, HEAD], shift.norm(), rtol=0.05)
    assert (found.train + found.valid, found.kind) == (96, "attention")


def test_the_results_of_probes_equal_those_of_a_fit_by_hand(planted):
    edits, _ = planted
    randomise(edits)  # the base model is read, whatever the edits are
    rows, labels = random_rows()
    labels = torch.tensor(labels)
    found = iti(edits, rows, labels, l2=0.5, seed=7, progress=False)
    train, valid = _split(labels, 0.25, 7)
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(96))
    assert found.baseline == max(labels[valid].double().mean().item(), 1 - labels[valid].double().mean().item())
    for site, z in zip(edits.sites, outputs_by_hand(edits, rows), strict=True):
        for head in range(site.heads):
            seen = z[train, head].double()
            x = (z[:, head].double() - seen.mean(0)) / seen.std(0, correction=0)
            w = fit_by_hand(x[train], labels[train], 0.5)
            right = ((x[valid] @ w[:-1] + w[-1] > 0) == (labels[valid] == 1)).double().mean()
            assert found.accuracy[site.layer, head] == pytest.approx(right.item())
            shift = seen[labels[train] == 1].mean(0) - seen[labels[train] == 0].mean(0)
            unit = shift / shift.norm()
            assert torch.allclose(found.direction[site.layer, head].double(), unit, atol=1e-4)
            sigma = (seen @ unit).std(correction=0).item()
            assert found.sigma[site.layer, head].item() == pytest.approx(sigma, rel=1e-4)


def slopes(x, labels, l2):
    """The largest gradient of each head's loss at the weights that were fitted."""
    w = fit_probes(x, labels, l2).requires_grad_()
    scores = (x @ w[:, :-1, None]).squeeze(-1) + w[:, -1:]
    loss = binary_cross_entropy_with_logits(scores, labels.double().expand(len(x), -1), reduction="sum")
    (loss + l2 / 2 * w[:, :-1].square().sum()).backward()
    return w.grad.abs().amax(1)


@pytest.mark.parametrize("l2", [1e-6, 0.1, 1.0, 100.0])
def test_probes_that_are_fitted_together_reach_each_its_own_minimum(l2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 40, 6, generator=generator, dtype=torch.float64)
    labels = (torch.rand(40, generator=generator) > 0.3).long()
    x[1, :, 0] += 20 * labels  # parted without an error
    x[2] = 0  # a head that is silent
    x[3, :, 1] = x[3, :, 0]
    assert slopes(x, labels, l2).max() < 1e-6
    if l2 == 1.0:
        by_hand = torch.stack([fit_by_hand(features, labels, l2) for features in x])
        assert torch.allclose(fit_probes(x, labels, l2), by_hand, atol=1e-5)


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_probes_of_heads_wider_than_there_are_examples_reach_the_minimum_over_all_widths(l2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, 25, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1] * 5)
    x[1] = 0
    assert fit_probes(x, labels, l2).shape == (3, 26)
    assert slopes(x, labels, l2).max() < 1e-6


@pytest.mark.parametrize("l2", [1e-6, 1.0])
def test_probes_converge_on_outliers_on_which_whole_newton_steps_do_not(l2, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 40, 6, generator=generator, dtype=torch.float64)
    x = x / torch.rand(4, 40, 1, generator=generator, dtype=torch.float64) ** 2
    labels = (torch.rand(40, generator=generator) > 0.3).long()
    assert slopes(x, labels, l2).max() < 1e-6
    monkeypatch.setattr(probes, "_HALVINGS", 0)
    assert slopes(x, labels, l2).max() > 1


def test_a_head_without_output_has_the_accuracy_of_the_majority_class():
    labels = torch.tensor([0, 1, 1, 1] * 5)
    accuracy = held_out_accuracy(torch.zeros(1, 20, 3).double(), labels, torch.arange(12), torch.arange(12, 20), 1.0)
    assert accuracy.tolist() == [0.75]


def test_the_split_takes_the_same_share_of_each_class():
    truth = torch.tensor([0] * 40 + [1] * 8)
    train, valid = _split(truth, 0.25, 0)
    assert [int((truth[valid] == label).sum()) for label in (0, 1)] == [10, 2]
    assert len(train) == 36
    assert not torch.equal(valid, _split(truth, 0.25, 1)[1])
    for share, expected in ((0.01, [1, 1]), (0.99, [38, 6])):
        assert torch.bincount(truth[_split(truth, share, 0)[1]]).tolist() == expected


def test_probing_leaves_the_model_and_its_edits_unchanged(planted, ids):
    edits, _ = planted
    model = edits.model
    randomise(edits)
    with edits.disable_adapter():
        base = logits(model, ids)
    edited, parameters, random = logits(model, ids), edits.snapshot(), torch.get_rng_state()
    find(edits)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(logits(model, ids), edited)
    assert all(map(torch.equal, edits.snapshot(), parameters))
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), base)
    assert not torch.equal(edited, base)


@pytest.mark.parametrize("fails", [False, True])
def test_probing_restores_hooks_and_modes_even_after_an_error(planted, fails):
    edits, _ = planted
    model = edits.model
    model.train()
    edits.sites[0].module.eval()
    edits.sites[0].module.register_forward_pre_hook(lambda module, args: None)
    before, modes = hooks(model), {name: module.training for name, module in model.named_modules()}
    if fails:
        with pytest.raises(IndexError):
            iti(edits, [{"input_ids": [500]}] * 8, [0, 1] * 4, progress=False)
    else:
        find(edits)
    assert hooks(model) == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert edits._choices.now().by_site.keys() == {site.name for site in edits.sites}


def test_the_same_seed_gives_the_same_probes_in_training_mode_too(planted):
    edits, _ = planted
    randomise(edits)
    first = find(edits)
    edits.model.train()  # gates and dropout would draw
    again = find(edits)
    for name in ("accuracy", "direction", "sigma"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.allclose(first.direction, find(edits, batch_size=1).direction, atol=1e-4)


@pytest.mark.parametrize("eval_gate", ["clip", "expectation"])
def test_apply_adds_its_offset_to_the_best_heads_and_to_no_other(eval_gate, ids):
    model = tiny_model("llama", num_key_value_heads=4)
    plant(model, torch.ones(16))
    edits = headedit.attach(model, config=EditConfig(eval_gate=eval_gate, gate_init=-1e4))
    found = find(edits)
    chosen = found.top(2)
    ablated = found.top(8)[-1]
    edits.set_head(*ablated, scale=0.0)
    edits.set_head(*chosen[0], scale=0.0)
    found.apply(edits, heads=2, strength=-3.0)
    seen = {}
    for site in edits.sites:
        site.module.register_forward_pre_hook(lambda m, args: seen.update({(m, 0): args[0]}), prepend=True)
        site.module.register_forward_pre_hook(lambda m, args: seen.update({(m, 1): args[0]}))
    logits(model, ids)
    for site in edits.sites:
        before, after = (seen[site.module, i].unflatten(-1, (4, 16)) for i in (0, 1))
        for head in range(4):
            place, z = (site.layer, head), before[..., head, :]
            if place in chosen:
                z = z - 3.0 * found.sigma[place] * found.direction[place]
            elif place == ablated:
                z = 0 * z
            assert torch.equal(after[..., head, :], z)
    assert edits.count_open()["any"] == (3, 8)


def test_several_sites_per_layer_and_heads_of_several_widths_are_probed(llama, tmp_path):
    path = tmp_path / "two.yaml"
    o_proj = "{path: 'layers.{layer}.self_attn.o_proj', heads: 4}"
    down_proj = "{path: 'layers.{layer}.mlp.down_proj', heads: 6}"
    path.write_text(f"model_types: [llama]\nsites: {{attention: [{o_proj}, {down_proj}]}}\n")
    edits = headedit.attach(llama, spec=path, config=EditConfig(layers=[1], vectors="offset"))
    found = find(edits)
    assert found.accuracy.isnan().tolist() == edits.gates().offset.isnan().tolist() == [[True] * 10, [False] * 10]
    assert found.direction.shape == (2, 10, 16)
    assert not found.direction[1, :4].isnan().any()
    assert found.direction[1, 4:, :8].norm(dim=-1).tolist() == pytest.approx([1.0] * 6)
    assert found.direction[1, 4:, 8:].isnan().all()
    found.apply(edits, heads=10, strength=2.0)
    for site, first in zip(edits.sites, (0, 4), strict=True):
        columns = slice(first, first + site.heads)
        expected = 2.0 * found.sigma[1, columns, None] * found.direction[1, columns, : site.head_dim]
        offset = next(edit.vectors["offset"] for where, edit in edits.module.pairs() if where is site)
        assert torch.allclose(offset, expected)


def test_heads_that_come_in_groups_are_read():
    edits = headedit.attach(zoo_model("deepseek_v4"))
    rows = [{"input_ids": row} for row in torch.randint(3, 90, (3, 6), generator=torch.Generator()).tolist()]
    shapes = []
    edits.sites[0].module.register_forward_pre_hook(lambda m, args: shapes.append(args[0].shape))
    by_hand = outputs_by_hand(edits, rows)
    found = last_outputs(edits, edits.sites, [row["input_ids"] for row in rows], batch_size=3, progress=False)
    assert len(shapes[0]) == 4
    assert shapes[0][-1] < edits.sites[0].width
    for ours, theirs in zip(found, by_hand, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_text_is_read_at_the_last_token_of_its_response():
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    pair = ("a b c", " c b a")
    ids = ids_to_last_token(pair, tokenizer, "Example 1")
    assert tokenizer.decode(ids[-1:]).strip() == "a"
    assert ids == prompt_ids(tokenizer, "".join(pair))
    assert ids[-1] != tokenizer.eos_token_id
    record = {"prompt": pair[0], "response": pair[1]}
    assert ids_to_last_token(record, tokenizer, "Example 1") == ids
    assert ids_to_last_token({"input_ids": ids}, None, "Example 1") == ids


def test_heads_of_equal_accuracy_are_ranked_by_layer_and_head():
    nan = float("nan")
    accuracy = torch.tensor([[nan, 0.5, 0.75], [0.75, 0.0, 0.75]])
    found = HeadProbes(
        kind="attention", accuracy=accuracy, direction=accuracy, sigma=accuracy, baseline=0.5, train=8, valid=4
    )
    assert found.top(5) == [(0, 2), (1, 0), (1, 2), (0, 1), (1, 1)]
    for k in (0, 6):
        with pytest.raises(HeadEditError, match=f"heads: found {k}, expected 1 to 5, the number of heads that were"):
            found.top(k)


ROWS, LABELS = random_rows(8)[0], [0, 1] * 4
BAD = {
    "there is nothing to probe with: the set of examples is empty": {"examples": [], "labels": []},
    r"labels: found 7 for 8 examples; give one for each": {"labels": LABELS[:7]},
    r"labels: found 2 for example 3, expected 0 or 1": {"labels": [0, 1, 2, 1, 0, 1, 0, 1]},
    r"labels: found 0\.5 for example 1, expected 0 or 1": {"labels": torch.full((8,), 0.5)},
    r"labels: found 'yes' for example 2, expected 0 or 1": {"labels": [0, "yes", *LABELS[2:]]},
    r"labels: found 3 examples of class 1, at least 4 are needed": {"labels": [0, 0, *LABELS[2:]]},
    r"labels: found 0 examples of class 0, at least 4": {"labels": [1] * 8},
    r"example 2 has 65 tokens, more than the model's context of 64\. Shorten": {
        "examples": [ROWS[0], {"input_ids": [5] * 65}, *ROWS[2:]]
    },
    r"example 1: is empty": {"examples": [{"input_ids": []}, *ROWS[1:]]},
    r"example 1: is text, and there is no tokenizer": {"examples": [("a", "b")] * 8},
    r"example 1: found the fields question; expected prompt/response": {
        "examples": [{"question": "a"}] * 8,
        "tokenizer": lambda text: [],
    },
    r"example 1: expected an object with named fields, found str": {
        "examples": ["ab"] * 8,
        "tokenizer": lambda text: [],
    },
    r"valid_share: found 1, expected a number between 0 and 1": {"valid_share": 1},
    r"l2: found 0, expected a number above 0": {"l2": 0},
    r"batch_size: found 0, expected 1 or more": {"batch_size": 0},
    r"batch_size: found 2\.5, expected a whole number": {"batch_size": 2.5},
    r"valid_share: found the text 'a', expected a finite number": {"valid_share": "a"},
    r"l2: found None, expected a number above 0": {"l2": None},
    r"seed: found the text 'x', expected a whole number": {"seed": "x"},
    r"the set of examples is NoneType, expected a list": {"examples": None},
    r"labels: found None, expected 0 or 1 for each example": {"labels": None},
    r"no site of kind 'mlp'; they have attention": {"kind": "mlp"},
}


@pytest.mark.parametrize("message", BAD)
def test_an_argument_of_iti_that_cannot_be_used_is_named(llama, message):
    edits = headedit.attach(llama)
    before = hooks(llama)
    options = {"examples": ROWS, "labels": LABELS, "progress": False, **BAD[message]}
    with pytest.raises(HeadEditError, match=f"(?i){message}"):
        iti(edits, options.pop("examples"), options.pop("labels"), **options)
    assert hooks(llama) == before


def test_what_is_no_handle_and_no_number_of_heads_is_refused_by_probes(llama):
    with pytest.raises(HeadEditError, match="Found a LlamaForCausalLM, expected the handle of edits"):
        iti(llama, ROWS, LABELS)
    with pytest.raises(HeadEditError, match="Found a LlamaForCausalLM, expected the handle of edits"):
        headedit.head_norms(llama, ROWS)
    edits = headedit.attach(llama)
    with pytest.raises(HeadEditError, match="The set of examples is int, expected a list"):
        headedit.head_norms(edits, 5)
    found = iti(edits, ROWS, LABELS, progress=False)
    with pytest.raises(HeadEditError, match=r"heads: found 2\.5, expected a whole number"):
        found.top(2.5)
    with pytest.raises(HeadEditError, match="strength: found the text 'a', expected a finite number"):
        found.apply(edits, heads=1, strength="a")
    with pytest.raises(HeadEditError, match="Found a LlamaForCausalLM, expected the handle of edits"):
        found.apply(llama, heads=1)
    with pytest.raises(HeadEditError, match=r"Cannot draw a HeadEdits; give what headedit\.iti or headedit.steer"):
        headedit.plot.probes(edits)


def test_heads_that_cannot_be_read_are_named(llama):
    edits = headedit.attach(llama)
    narrow = [replace(edits.sites[0], head_dim=8)]
    with pytest.raises(
        HeadEditError, match=r"an input of shape \(1, 2, 64\), but its spec says 4 heads of width 8 \(32"
    ):
        last_outputs(edits, narrow, [[5, 6]], batch_size=1, progress=False)
    hook = llama.model.layers[0].self_attn.v_proj.register_forward_hook(lambda m, args, output: output * float("inf"))
    with pytest.raises(HeadEditError, match=r"layers\.0\.self_attn\.o_proj: a head's output is not finite"):
        iti(edits, ROWS, LABELS, progress=False)
    hook.remove()
    llama.model.layers[1].self_attn.forward = lambda hidden_states, **rest: (hidden_states, None)
    with pytest.raises(HeadEditError, match=r"layers\.1\.self_attn\.o_proj did not run in a forward pass"):
        iti(edits, ROWS, LABELS, progress=False)
    assert not any(len(site.module._forward_pre_hooks) > 1 for site in edits.sites)


def test_probes_of_other_edits_are_not_applied(planted):
    edits, _ = planted
    found = find(edits)
    for heads in (0, 9):
        with pytest.raises(HeadEditError, match=f"heads: found {heads}, expected 1 to 8"):
            found.apply(edits, heads=heads)
    with pytest.raises(HeadEditError, match="heads: found 48, expected 1 to 8"):
        found.apply(edits)
    model = edits.detach()
    other = headedit.attach(model, config=EditConfig(layers=[LAYER]))
    before = other.snapshot()
    with pytest.raises(HeadEditError, match=r"no attention head \d of width \d+ in layer 0, which was probed"):
        found.apply(other, heads=8)
    assert all(map(torch.equal, before, other.snapshot()))
    other.detach()
    with pytest.raises(HeadEditError, match="no offset"):
        found.apply(headedit.attach(model, config=EditConfig(vectors="scale")), heads=1)


def test_the_picture_of_probes_shows_the_accuracies_and_outlines_the_open_heads(planted):
    edits, _ = planted
    found = find(edits)
    for layer in range(2):
        for head in range(4):
            edits.set_head(layer, head)
    found.apply(edits, heads=1)
    figure = headedit.plot.probes(found, edits)
    axis, bar = figure.axes
    image = axis.get_images()[0]
    assert numpy.array_equal(numpy.asarray(image.get_array()), found.accuracy.numpy())
    assert image.get_clim() == (found.baseline, 1)
    assert image.get_cmap().name == "cividis"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("head", "layer")
    assert bar.get_ylabel().replace("\n", " ") == "probe accuracy on held-out examples"
    assert bar.get_yticklabels()[0].get_text() == f"{found.baseline:.2f}"
    (outline,) = axis.patches
    assert (outline.get_x() + 0.47, outline.get_y() + 0.47) == pytest.approx((HEAD, LAYER))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["open head (1)"]
    assert f"best 1.00, majority class {found.baseline:.2f}" in figure.get_suptitle()


def test_the_picture_of_probes_needs_no_edits_and_refuses_other_edits(llama):
    edits = headedit.attach(llama, config=EditConfig(layers=[0]))
    found = find(edits)
    figure = headedit.plot.probes(found, title="mine")
    assert figure.get_suptitle() == "mine"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no edited head"]
    assert all(patch.get_hatch() for patch in figure.axes[0].patches)
    other = headedit.attach(tiny_model("llama", num_hidden_layers=3))
    with pytest.raises(HeadEditError, match="have 3 layers of 4 attention heads, but the probes are of 2 of 4"):
        headedit.plot.probes(found, other)
