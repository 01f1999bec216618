"""The edit of one site is the formula, head by head, and gives back the shape and dtype it was given."""

import pytest
import torch
from torch import nn

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.site_edit import SiteEdit
from headedit.specs import HeadSite

HEADS, WIDTH = 4, 8


def site_edit(groups: int = 1, **config) -> SiteEdit:
    site = HeadSite(
        layer=0,
        layers=1,
        kind="attention",
        path="p",
        name="p",
        heads=HEADS,
        head_dim=WIDTH,
        groups=groups,
        module=nn.Linear(HEADS * WIDTH, 3),
    )
    edit = SiteEdit(site, EditConfig(init_std=0.5, **config), torch.device("cpu")).eval()
    with torch.no_grad():
        for name, parameter in edit.named_parameters():
            if name.endswith("_gate"):
                parameter.copy_(torch.tensor([-9.0, -0.5, 0.5, 9.0]))
    return edit


def by_hand(edit: SiteEdit, z: torch.Tensor) -> torch.Tensor:
    """The formula with a loop over heads: z' = (1 + g_m·m) ⊙ z + g_a·a."""
    out = z.clone().float()
    gates = edit.gate_values()
    for h in range(HEADS):
        part = slice(h * WIDTH, (h + 1) * WIDTH)
        scale = gates["scale"][h] * edit.vectors["scale"][h] if "scale" in edit.vectors else torch.zeros(WIDTH)
        offset = gates["offset"][h] * edit.vectors["offset"][h] if "offset" in edit.vectors else torch.zeros(WIDTH)
        out[..., part] = torch.addcmul(offset, z[..., part].float(), 1 + scale)
    return out.to(z.dtype)


@pytest.mark.parametrize("vectors", ["both", "offset", "scale"])
@pytest.mark.parametrize("gates", ["separate", "shared", "none"])
@pytest.mark.parametrize("eval_gate", ["clip", "expectation"])
def test_every_variant_of_an_edit_computes_the_formula(vectors, gates, eval_gate):
    edit = site_edit(vectors=vectors, gates=gates, eval_gate=eval_gate)
    z = torch.randn(2, 5, HEADS * WIDTH)
    assert torch.equal(edit(z), by_hand(edit, z))
    assert not torch.equal(edit(z), z)
    there = {"both": {"offset", "scale"}}.get(vectors, {vectors})
    count = {"separate": len(there), "shared": 1, "none": 0}[gates]
    assert len(edit.gate_logits(None)) == count
    assert set(edit.vectors) == there


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype):
    edit = site_edit()
    z = torch.randn(2, 3, HEADS * WIDTH).to(dtype)
    assert edit(z).dtype == dtype
    if dtype != torch.float64:
        assert torch.equal(edit(z), by_hand(edit, z))
    small = torch.full((1, 1, HEADS * WIDTH), 100.0, dtype=torch.bfloat16)
    with torch.no_grad():
        edit.vectors["scale"].fill_(3e-3)  # 1 + 3e-3 is 1 in bfloat16, and must not vanish before it is multiplied
        edit.vectors["offset"].zero_()
        edit.gates["scale_gate"].fill_(9.0)
    assert (edit(small) > small).all()


@pytest.mark.parametrize("shape", [(HEADS * WIDTH,), (6, HEADS * WIDTH), (2, 3, 2, HEADS * WIDTH)])
def test_any_rank_comes_back_as_it_was(shape):
    edit, z = site_edit(), torch.randn(shape)
    assert torch.equal(edit(z), by_hand(edit, z))


def test_heads_split_into_groups_come_back_in_groups():
    edit, z = site_edit(groups=2), torch.randn(2, 5, HEADS * WIDTH)
    grouped = z.view(2, 5, 2, HEADS * WIDTH // 2)
    assert torch.equal(edit(grouped), edit(z).view_as(grouped))


def test_as_many_numbers_in_two_dimensions_are_no_heads_unless_the_spec_has_groups():
    halves = torch.randn(1, 2, HEADS * WIDTH // 2)  # two tokens with half of the heads each
    for groups in (1, 4):
        with pytest.raises(HeadEditError, match=r"p was given \(1, 2, 16\), but its spec says 4 heads of width 8 \(32"):
            site_edit(groups=groups)(halves)


def test_an_input_of_another_width_is_named():
    with pytest.raises(HeadEditError, match=r"p was given \(2, 3, 30\), but its spec says 4 heads of width 8 \(32"):
        site_edit()(torch.randn(2, 3, 30))


def test_training_draws_one_sample_a_forward_for_the_whole_batch():
    edit = site_edit().train()
    with torch.no_grad():
        edit.gates["offset_gate"].zero_()
    zeros = torch.zeros(3, 4, HEADS * WIDTH)
    torch.manual_seed(0)
    first, second = edit(zeros), edit(zeros)
    assert torch.equal(first, first[:1, :1].expand_as(first))
    assert not torch.equal(first, second)


def test_a_shared_gate_is_one_sample_for_both_vectors():
    edit = site_edit(gates="shared").train()
    with torch.no_grad():
        edit.vectors["offset"].fill_(1.0)
        edit.vectors["scale"].fill_(1.0)
        edit.gates["offset_gate"].zero_()
    z = torch.stack([torch.zeros(HEADS * WIDTH), torch.ones(HEADS * WIDTH)])
    seen = set()
    for _ in range(5):
        additive, both = edit(z).view(2, HEADS, WIDTH)[..., 0]
        assert torch.allclose(both - 1 - additive, additive, atol=1e-6)
        seen.add(additive[1].item())
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gates": "seperate"}, r"gates: .*Did you mean 'separate'\?"),
        ({"sites": []}, r"sites: the list is empty"),
        ({"sites": ["atention"]}, r"sites: .*Did you mean 'attention'\?"),
        ({"layers": "8-24"}, r"layers: found '8-24', expected a slice such as '8:24'"),
        ({"temperature": 0}, r"temperature: found 0\.0, expected a number above 0"),
        ({"stretch": (0.1, 1.1)}, r"stretch: .*expected γ below 0 and ζ above 1"),
        ({"init_std": -1.0}, r"init_std: found -1\.0"),
    ],
)
def test_an_impossible_config_is_refused(config, message):
    with pytest.raises(HeadEditError, match=message):
        EditConfig(**config)


@pytest.mark.parametrize(
    ("layers", "chosen"), [(None, [0, 1]), ("1:", [1]), (":1", [0]), ("-1:", [1]), ([0], [0]), ([-1], [1])]
)
def test_the_layers_of_a_config_are_edited(llama, layers, chosen):
    edits = headedit.attach(llama, config=EditConfig(layers=layers))
    assert [site.layer for site in edits.sites] == chosen


@pytest.mark.parametrize(("layers", "message"), [("5:", "no layer is left"), ([7], "layer 7 has no site")])
def test_layers_that_do_not_exist_are_refused(llama, layers, message):
    with pytest.raises(HeadEditError, match=message + "; layers with a site: 0 to 1"):
        headedit.attach(llama, config=EditConfig(layers=layers))
