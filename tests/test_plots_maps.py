"""Maps of heads: types, effect sizes, key-value heads, kinds of layer, several edits, several seeds."""

import json
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from tiny import COMMON, randomise, tiny_model
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.gate_set import GateIndex
from headedit.interpret.head_map import HeadMap
from headedit.interpret.palette import COLOURS, LAYERS
from headedit.interpret.plots.effects import effect_sizes
from headedit.runs.selection import Competitor, select
from headedit.runs.stability import expected_jaccard, jaccard


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def image(axis):
    return numpy.ma.filled(axis.get_images()[0].get_array().astype(float), numpy.nan)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def close_all(edits):
    for site in edits.sites:
        for head in range(site.heads):
            edits.set_head(site.layer, head, kind=site.kind)


def chosen(heads, **changes):
    """Edits of a tiny model that add an offset to some heads, (layer, head)."""
    edits = headedit.attach(tiny_model("llama", **changes))
    close_all(edits)
    for layer, head in heads:
        edits.set_head(layer, head, offset=torch.ones(edits.sites[0].head_dim))
    return edits


def hybrid():
    """Three layers with linear heads, and a fourth with attention heads."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    linear = {"linear_num_value_heads": 8, "linear_num_key_heads": 2, "linear_key_head_dim": 4}
    config = CONFIG_MAPPING["qwen3_next"](
        **{**COMMON, **experts, **linear, "linear_value_head_dim": 4, "num_hidden_layers": 4, "head_dim": 8},
        shared_expert_intermediate_size=16,
    )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()


def test_the_type_map_shows_offset_scale_both_and_none(llama, tmp_path):
    edits = headedit.attach(llama)
    close_all(edits)
    edits.set_head(0, 1, offset=torch.ones(16))
    edits.set_head(0, 2, scale=0.5)
    edits.set_head(1, 3, scale=0.5, offset=torch.ones(16))
    edits.save_pretrained(tmp_path)
    for source in (edits, edits.module, tmp_path):
        figure = headedit.plot.types(source)
        assert image(figure.axes[0]).tolist() == [[0, 1, 2, 0], [0, 0, 0, 3]]
        assert legend(figure) == ["none: 5", "offset: 1", "scale: 1", "both: 1"]
        shown = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
        colours = figure.axes[0].get_images()[0].get_cmap().colors
        assert shown == [pytest.approx(plt.matplotlib.colors.to_rgba(colour)) for colour in colours]


def test_the_effect_sizes_are_norms_of_the_effective_vectors(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    offset, scale, *_ = headedit.plot.effects(edits).axes
    gates = edits.gates()
    vectors = {
        name: torch.stack([edit.vectors[name].detach() for edit in edits.module]) for name in ("offset", "scale")
    }
    expected = gates.offset * vectors["offset"].norm(dim=-1)
    assert numpy.allclose(image(offset), expected)
    assert numpy.allclose(image(scale), gates.scale * vectors["scale"].square().mean(-1).sqrt())
    layer, head = divmod(int(expected.argmax()), 4)
    assert offset.get_title().endswith(f"largest L{layer}H{head}")
    low, high = offset.get_images()[0].get_clim()
    assert high == pytest.approx(expected.max().item())
    assert low == pytest.approx(expected[expected > 0].min().item())
    assert offset.get_title().startswith("Offset: norm ")
    assert scale.get_title().startswith("Scale: root mean square\nof the change ")


def test_one_large_head_does_not_hide_the_others():
    edits = chosen([(0, 0), (0, 1), (1, 2)])
    edits.set_head(0, 1, offset=torch.full((edits.sites[0].head_dim,), 100.0))
    axis, _, bar, _ = headedit.plot.effects(edits).axes
    assert bar.get_yticklabels()[-1].get_text() == "400"
    drawn = axis.get_images()[0]
    colours = drawn.to_rgba(drawn.get_array())[..., :3]
    small, large, unchanged = colours[0, 0], colours[0, 1], colours[0, 2]
    assert min(abs(a - b).max() for a, b in ((small, large), (small, unchanged), (large, unchanged))) > 0.3


def test_the_effect_sizes_can_be_shares_of_the_heads_output(llama):
    edits = headedit.attach(llama)
    close_all(edits)
    edits.set_head(1, 2, offset=torch.full((16,), 3.0))
    seen = []
    hook = edits.sites[1].module.register_forward_pre_hook(lambda module, args: seen.append(args[0]), prepend=True)
    norms = headedit.head_norms(edits, [{"input_ids": [5, 6, 7]}], progress=False)
    hook.remove()
    assert norms.shape == (2, 4)
    assert torch.allclose(norms[1], seen[0][0, -1].view(4, 16).norm(dim=-1))
    offset, *_ = headedit.plot.effects(edits, norms=norms).axes
    assert image(offset)[1, 2] == pytest.approx(12 / norms[1, 2].item())
    assert (image(offset) > 0).sum() == 1
    assert offset.get_title().startswith("Offset: share of the norm\nof the head's output\n")
    with pytest.raises(HeadEditError, match=r"norms: found shape \(3, 4\), expected \(2, 4\)"):
        headedit.plot.effects(edits, norms=torch.ones(3, 4))
    with pytest.raises(HeadEditError, match="examples is empty"):
        headedit.head_norms(edits, [])


def test_a_share_of_the_output_of_a_head_that_has_none_is_drawn_above_all(llama):
    with torch.no_grad():
        llama.model.layers[0].self_attn.v_proj.weight[:16] = 0  # of the heads 0 and 1
    edits = headedit.attach(llama)
    randomise(edits)
    edits.set_head(0, 0, offset=torch.ones(16))
    norms = headedit.head_norms(edits, [{"input_ids": [5, 6, 7]}], progress=False)
    figure = headedit.plot.effects(edits, norms=norms)
    figure.canvas.draw()
    axis = figure.axes[0]
    drawn = image(axis)
    silent = numpy.isinf(effect_sizes(HeadMap.of(edits), "attention", norms)[0])
    assert silent[0, 0]
    assert drawn[silent].min() > drawn[~silent].max()
    assert axis.get_images()[0].get_clim()[1] == pytest.approx(drawn[~silent].max())
    assert axis.get_title().endswith(f"{silent.sum()} above all: no output without the edit")
    only = headedit.attach(tiny_model("llama"), config=EditConfig(gate_init=-10.0))
    only.set_head(0, 0, offset=torch.ones(16))
    assert "above all" in headedit.plot.effects(only, norms=torch.zeros(2, 4)).axes[0].get_title()


def test_a_gate_map_for_a_folder_that_does_not_exist_is_refused(llama, tmp_path):
    drawn = headedit.plot.gate_map(headedit.attach(llama))
    with pytest.raises(HeadEditError, match=r"the folder .*missing does not exist; make it first"):
        drawn.save(tmp_path / "missing" / "gates.svg")


def test_edits_that_change_nothing_have_the_size_0(llama):
    edits = headedit.attach(llama, config=EditConfig(vectors="scale"))
    offset, scale, *_ = headedit.plot.effects(edits).axes
    assert offset.get_title().endswith("none")
    assert scale.get_title().endswith("all 0")
    assert numpy.isnan(image(offset)).all()
    assert not image(scale).any()


def test_heads_that_share_a_key_value_head_are_drawn_as_a_group(tmp_path):
    edits = chosen([(0, 0), (0, 1), (1, 3), (1, 7)], num_attention_heads=8, hidden_size=64)
    edits.save_pretrained(tmp_path)
    for source in (edits, tmp_path):
        axis, bar = headedit.plot.groups(source).axes
        assert image(axis).tolist() == [[0.5, 0], [0.25, 0.25]]
        assert [text.get_text() for text in axis.texts] == ["2", "0", "1", "1"]
        assert axis.get_xlabel() == "key-value head  (shared by 4 heads)"
        assert axis.figure.get_suptitle() == "3 of 4 key-value heads have an edited head"
        assert "share" in bar.get_ylabel()
    given = headedit.plot.groups(edits.module, key_value_heads=4)
    assert image(given.axes[0]).tolist() == [[1, 0, 0, 0], [0, 0.5, 0, 0.5]]
    offset = headedit.plot.gates(edits).axes[0]
    assert [line.get_xdata()[0] for line in offset.get_lines()] == [3.5]
    assert offset.get_xlabel() == "head  (lines: 4 per key-value head)"


def test_an_unknown_number_of_key_value_heads_is_refused_or_can_be_given(llama, tmp_path):
    edits = headedit.attach(llama)
    with pytest.raises(HeadEditError, match="is not known; give it"):
        headedit.plot.groups(edits.module)
    with pytest.raises(HeadEditError, match="found 3, which does not divide the 4 heads"):
        headedit.plot.groups(edits, key_value_heads=3)
    falcon = headedit.plot.groups(headedit.attach(tiny_model("falcon", multi_query=True, num_kv_heads=4)))
    assert falcon.axes[0].get_xlabel() == "key-value head  (shared by 4 heads)"
    gpt2 = headedit.attach(tiny_model("gpt2"))
    plain = headedit.plot.gates(gpt2).axes[0]
    assert not plain.get_lines()
    assert plain.get_xlabel() == "head"
    gpt2.save_pretrained(tmp_path)
    for source in (gpt2, tmp_path):
        own = headedit.plot.groups(source)
        assert own.get_suptitle() == "No heads share a key-value head: 8 of 8 are edited"
        assert own.axes[0].get_xlabel() == "key-value head  (one for each head)"


def strip(axis):
    """Colours of the strip beside a map, from the top."""
    found = [patch for patch in axis.patches if not patch.get_clip_on()]
    return [plt.matplotlib.colors.to_hex(patch.get_facecolor()) for patch in found]


def test_layers_are_marked_by_kind():
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    edits = headedit.attach(tiny_model("gemma3_text", num_hidden_layers=3, layer_types=kinds))
    for draw in (headedit.plot.gates, headedit.plot.types, headedit.plot.effects, headedit.plot.groups):
        figure = draw(edits)
        assert strip(figure.axes[0]) == [LAYERS[kind] for kind in ("sliding", "sliding", "full")]
        assert legend(figure)[-2:] == ["layer: sliding", "layer: full"]
    assert not strip(headedit.plot.gates(headedit.attach(tiny_model("llama"))).axes[0])


def test_the_maps_of_a_hybrid_show_every_kind_of_head():
    model = hybrid()
    edits = headedit.attach(model, config=EditConfig(sites=["attention", "linear"]))
    figure = headedit.plot.gates(edits)
    attention, _, linear, _, _ = figure.axes
    assert numpy.isnan(image(attention)).all(1).tolist() == [True, True, True, False]
    assert numpy.isnan(image(linear)).all(1).tolist() == [False, False, False, True]
    assert image(linear).shape == (4, 8)
    assert attention.get_ylabel() == "attention heads\nlayer"
    assert legend(figure) == ["layer: linear", "layer: full", "no edited head"]
    assert len(headedit.plot.gates(edits, kind="linear").axes) == 3
    types = headedit.plot.types(edits)
    assert [axis.get_title() for axis in types.axes] == ["attention heads", "linear heads"]
    assert legend(types)[3] == "both: 28"  # fresh gates are open: 3 layers of 8, and one of 4
    edits.detach()
    alone = headedit.plot.gates(headedit.attach(model))
    assert strip(alone.axes[0]) == [LAYERS[kind] for kind in ("linear", "linear", "linear", "full")]


def test_ragged_heads_are_drawn_as_they_are(llama, tmp_path):
    path = tmp_path / "ragged.yaml"
    rule = "{path: 'layers.{layer}.self_attn.o_proj', heads: per_layer}"
    path.write_text(f"model_types: [llama]\nsites: {{attention: {rule}}}\n")
    llama.config.per_layer = [2, 8]
    edits = headedit.attach(llama, spec=path)
    assert torch.isnan(edits.gates().offset).tolist() == [[False] * 2 + [True] * 6, [False] * 8]
    assert len(headedit.plot.gates(edits).axes[0].patches) == 1
    assert numpy.isnan(image(headedit.plot.types(edits).axes[0])).tolist() == [[False] * 2 + [True] * 6, [False] * 8]
    groups = headedit.plot.groups(edits).axes[0]  # two key-value heads in each layer, of 1 and of 4 heads
    assert groups.get_xlabel() == "key-value head  (shared by 1 or 4 heads)"
    assert [text.get_text() for text in groups.texts] == ["1", "1", "4", "4"]


def test_the_comparison_of_two_edits_shows_common_and_different_heads(tmp_path):
    first, second = [(0, 0), (0, 1), (1, 2)], [(0, 1), (1, 2), (1, 3), (0, 3)]
    chosen(second).save_pretrained(tmp_path)
    figure = headedit.plot.compare({"arc": chosen(first), "boolq": tmp_path})
    one, two, overlap, difference = (axis for part in figure.subfigs for axis in part.axes)
    assert image(one).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert image(two).tolist() == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert (one.get_title(), two.get_title()) == ("arc:  3 heads", "boolq:  4 heads")
    lines = {line.get_label(): line.get_xydata().tolist() for line in overlap.get_lines()}
    by_chance = expected_jaccard(3, 4, 8)
    assert lines == {"these edits": [[pytest.approx(2 / 5), 0]], "chance": [[pytest.approx(by_chance), 0]]}
    assert [text.get_text() for text in overlap.texts] == ["index", "0.40", "chance", f"{by_chance:.2f}"]
    assert [label.get_text() for label in overlap.get_yticklabels()] == ["arc – boolq"]
    assert image(difference).tolist() == [[1, 3, 0, 2], [0, 0, 3, 2]]
    texts = [text.get_text() for text in difference.get_legend().get_texts()]
    assert texts == ["neither: 3", "only arc: 1", "only boolq: 2", "both: 2"]


def test_the_comparison_of_more_edits_counts_the_edits_of_each_head():
    sets = {"a": [(0, 0)], "b": [(0, 0), (1, 1)], "c": [(0, 0), (1, 1), (1, 2)], "d": [], "a long name of an edit": []}
    figure = headedit.plot.compare({name: chosen(heads) for name, heads in sets.items()})
    *maps, overlap, counts = (axis for part in figure.subfigs for axis in part.axes)
    assert maps[4].get_title() == "a long name of …:  0 heads"
    assert image(counts).tolist() == [[3, 0, 0, 0], [0, 2, 1, 0]]
    assert [text.get_text() for text in counts.get_legend().get_texts()][:4] == [
        "0 of 5: 5",
        "1 of 5: 1",
        "2 of 5: 1",
        "3 of 5: 1",
    ]
    index = next(line for line in overlap.get_lines() if line.get_label() == "these edits").get_xdata()
    assert index.tolist() == [pytest.approx(jaccard(set(a), set(b))) for a, b in combinations(sets.values(), 2)]


def test_the_overlap_of_very_many_edits_is_a_table():
    sets = {f"edits {i}": [(0, i % 3), (1, i % 2)] for i in range(7)}
    figure = headedit.plot.compare({name: chosen(heads) for name, heads in sets.items()})
    table = figure.subfigs[1].axes[0]
    texts = {text.get_position(): text.get_text() for text in table.texts}
    names = list(sets)
    assert texts == {
        (i, j): f"{jaccard(set(sets[names[i]]), set(sets[names[j]])):.2f}" for i in range(7) for j in range(i + 1, 7)
    }
    assert f"(by chance {expected_jaccard(2, 2, 8):.2f})" in table.get_title()


def test_no_colour_means_two_things_in_a_comparison():
    maps = [COLOURS[name] for name in ("offset", "scale", "both")]
    sets = [COLOURS[name] for name in ("first_set", "second_set", "both_sets")]
    assert len({*maps, *sets, COLOURS["jaccard"]}) == 6 + (COLOURS["jaccard"] not in sets)
    assert COLOURS["none"] == COLOURS["neither_set"]


def test_edits_that_cannot_be_compared_are_refused(llama):
    edits = headedit.attach(llama)
    with pytest.raises(HeadEditError, match="give two edits or more by name"):
        headedit.plot.compare({"one": edits})
    other = headedit.attach(tiny_model("llama", num_hidden_layers=3))
    with pytest.raises(HeadEditError, match="'b' has 3 layers of 4 attention heads, but 'a' has 2 layers of 4"):
        headedit.plot.compare({"a": edits, "b": other})
    with pytest.raises(HeadEditError, match="Cannot draw a int"):
        headedit.plot.types(3)


def test_the_picture_of_stability_counts_the_seeds_that_chose_a_head(tmp_path):
    for seed, heads in ((4, [(0, 0), (1, 1)]), (5, [(0, 0), (1, 2)]), (6, [(0, 0), (1, 1), (1, 2)])):
        chosen(heads).save_pretrained(tmp_path if seed == 4 else tmp_path / f"seed-{seed}")
    loss = {"mean": 0.5, "std": 0.1, "values": [0.4, 0.5, 0.6]}
    found = {"seeds": [4, 5, 6], "heads": [2, 2, 3], "jaccard": 5 / 9, "chance": 0.2}
    (tmp_path / "run.json").write_text(json.dumps({"stability": {**found, "validation_loss": loss, "metric": None}}))
    figure = headedit.plot.stability(tmp_path)
    heads, agreement, numbers, losses, bar = figure.axes[0], *figure.axes[2:], figure.axes[1]
    assert image(heads).tolist() == [[3, 0, 0, 0], [0, 2, 2, 0]]
    assert heads.get_title() == "Heads chosen by any seed: 3,  by every seed: 1"
    assert [patch.get_height() for patch in agreement.patches] == [pytest.approx(5 / 9), 0.2]
    assert [label.get_text() for label in agreement.get_xticklabels()] == ["seeds", "chance"]
    assert numbers.get_lines()[0].get_ydata().tolist() == [2, 2, 3]
    assert losses.get_lines()[0].get_ydata().tolist() == loss["values"]
    assert [label.get_text() for label in losses.get_xticklabels()] == ["4", "5", "6"]
    assert bar.get_ylabel() == "seeds that chose the head"
    assert numbers.get_title() == "2.33 ± 0.58\nmean ± st. dev."
    assert losses.get_title() == "0.50 ± 0.10\nmean ± st. dev."


def test_the_picture_of_stability_shows_selection_probabilities_where_there_are_some(tmp_path):
    for seed in (0, 1):
        chosen([(0, 0)]).save_pretrained(tmp_path if seed == 0 else tmp_path / f"seed-{seed}")
    first, second = GateIndex(0, "offset", 0), GateIndex(1, "scale", 3)
    orders = [[Competitor(first), Competitor(second)], [Competitor(first)]] * 4
    found = {"seeds": [0, 1], "heads": [1, 1], "jaccard": 1.0, "chance": 0.1}
    record = {"stability": found, "selection": select(orders, 32, rate=0.2).to_dict()}
    (tmp_path / "run.json").write_text(json.dumps(record))
    heads, probability = headedit.plot.stability(tmp_path).axes[:3:2]
    assert image(heads).tolist() == [[2, 0, 0, 0], [0, 0, 0, 0]]
    assert image(probability)[0, 0] == 1.0
    assert probability.get_title() == "Selection probability, first seed"


def test_a_run_with_a_single_seed_has_no_stability(tmp_path):
    with pytest.raises(HeadEditError, match=r"run\.json: cannot be read"):
        headedit.plot.stability(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(HeadEditError, match="a single seed; fit with seeds=3"):
        headedit.plot.stability(tmp_path)


@pytest.mark.parametrize(("layers", "heads"), [(4, 8), (80, 64)])
def test_maps_of_any_size_fit_a_notebook_and_their_texts_do_not_overlap(layers, heads):
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 64, "head_dim": 2}
    edits = chosen([(0, 0)], **sizes)
    for draw in (headedit.plot.gates, headedit.plot.types, headedit.plot.effects, headedit.plot.groups):
        figure = draw(edits)
        width, height = figure.get_size_inches()
        assert 6 <= width <= 8.5
        assert height <= 10
        figure.canvas.draw()
        for axis in figure.axes[:2]:
            for labels, side in ((axis.get_xticklabels(), 0), (axis.get_yticklabels(), 1)):
                ends = sorted(label.get_window_extent().get_points()[:, side].tolist() for label in labels)
                assert all(end + 3 <= start for (_, end), (start, _) in pairwise(ends))
