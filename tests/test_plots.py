"""Pictures show the numbers they are of, say what is on their axes, and mark what is not there."""

import json
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from tiny import randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.gate_set import GateIndex
from headedit.interpret.labels import with_error
from headedit.runs.history import History
from headedit.runs.pruning_path import Level, PruningPath


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def images(axis):
    return [numpy.ma.filled(image.get_array().astype(float), numpy.nan) for image in axis.get_images()]


def test_the_heatmap_shows_the_gates(llama, tmp_path):
    edits = headedit.attach(llama)
    randomise(edits)
    figure = headedit.plot.gates(edits)
    gates = edits.gates()
    offset, scale, bar = figure.axes
    assert numpy.array_equal(images(offset)[0], gates.additive.double().numpy())
    assert numpy.array_equal(images(scale)[0], gates.multiplicative.double().numpy())
    assert offset.get_images()[0].get_clim() == (0, 1)
    opened = edits.count_open()
    assert f"{opened['offset'][0]} of 8 open" in offset.get_title()
    assert f"{opened['scale'][0]} of 8 open" in scale.get_title()
    assert (offset.get_xlabel(), offset.get_ylabel()) == ("head  (lines: 2 per key-value head)", "layer")
    assert "0 closed, 1 open" in bar.get_ylabel()
    assert not figure.legends
    edits.save_pretrained(tmp_path)
    from_disk = headedit.plot.gates(tmp_path)
    assert numpy.array_equal(images(from_disk.axes[0])[0], images(offset)[0])


def test_layers_without_edited_heads_are_marked(llama):
    edits = headedit.attach(llama, config=EditConfig(layers=[0], vectors="scale"))
    figure = headedit.plot.gates(edits)
    offset, scale, _ = figure.axes
    assert numpy.isnan(images(offset)[0]).all()
    assert "none" in offset.get_title()
    assert not numpy.isnan(images(scale)[0][0]).any()
    assert numpy.isnan(images(scale)[0][1]).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no edited head"]
    assert any(patch.get_hatch() for patch in scale.patches)


@pytest.mark.parametrize(("layers", "heads"), [(4, 8), (80, 64)])
def test_pictures_of_any_size_fit_a_notebook(layers, heads):
    model = tiny_model("llama", num_hidden_layers=layers, num_attention_heads=heads, hidden_size=64, head_dim=2)
    figure = headedit.plot.gates(headedit.attach(model))
    width, height = figure.get_size_inches()
    assert 6 <= width <= 14
    assert height <= 12
    figure.canvas.draw()
    for axis in figure.axes[:2]:
        assert len(axis.get_xticks()) <= 16
        assert len(axis.get_yticks()) <= 16


def test_a_kind_of_site_that_the_edits_lack_is_refused(llama):
    with pytest.raises(HeadEditError, match="no site of kind 'mlp'; they have"):
        headedit.plot.gates(headedit.attach(llama), kind="mlp")
    with pytest.raises(HeadEditError, match="no saved edits here"):
        headedit.plot.gates("/nowhere")


def rows():
    gates = [{"offset": [0.2, 0.4], "scale": [0.6, 0.8]}]
    train = {"loss": 2.0, "penalty": 0.1, "open_offset": 2.0, "open_scale": 1.0, "gates": gates}
    train |= {"lambda_offset": 0.01, "lambda_scale": 0.02, "learning_rate": 0.1, "gate_learning_rate": 0.5}
    return [
        {"step": 2, **train},
        {"step": 4, "eval_loss": 1.5},
        {"step": 4, **train, "loss": 1.0},
    ]


def test_the_history_shows_what_was_logged(tmp_path):
    history = History(tmp_path / "history.jsonl", rows())
    history.restart(100)
    history.append({"step": 4, "kept": True})
    for source in (history, tmp_path, str(tmp_path / "history.jsonl")):
        figure = headedit.plot.history(source)
        losses, opened, gates, rates = figure.axes
        lines = {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()}
        assert lines["training loss"] == [[2, 2.0], [4, 1.0]]
        assert lines["validation loss"] == [[4, 1.5]]
        assert lines["edits kept"][0][0] == 4
        assert [line.get_ydata().tolist() for line in opened.get_lines()[:2]] == [[2.0, 2.0], [1.0, 1.0]]
        assert len(gates.get_lines()) == 4 + 1
        assert "λ = 0.01 and 0.02 nats per gate" in next(name for name in lines if name.startswith("penalty"))
        assert losses.get_ylabel() == "nats per token"
        assert [line.get_ydata().tolist() for line in rates.get_lines()[:2]] == [[0.1, 0.1], [0.5, 0.5]]
        assert rates.get_xlabel() == "optimiser step"
        assert not any(axis.get_legend() for axis in figure.axes)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(names) == len(set(names)) == 8


def test_a_price_that_varies_has_a_panel_and_a_constant_one_has_none():
    constant, risen = rows()[0], {**rows()[0], "step": 4, "lambda_offset": 0.03}
    titles = ["Loss on the response tokens", "Open gates", "Every single gate  (0 closed, 1 open)", "Learning rates"]
    assert [axis.get_title() for axis in headedit.plot.history(History(None, [constant])).axes] == titles
    figure = headedit.plot.history(History(None, [constant, risen]))
    prices = next(axis for axis in figure.axes if axis.get_ylabel() == "nats per gate")
    assert [line.get_ydata().tolist() for line in prices.get_lines()] == [[0.01, 0.03], [0.02, 0.02]]


def test_lines_of_a_history_end_where_a_stage_ends():
    stages = [{**rows()[0], "step": step, "stage": "search 1" if step < 5 else "refit"} for step in (2, 4, 6)]
    strip, losses, opened, gates, _ = headedit.plot.history(History(None, stages)).axes
    assert [text.get_text() for text in strip.texts] == ["search 1", "refit"]
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in strip.patches] == [(0, 4), (4, 6)]
    for line in (losses.get_lines()[0], opened.get_lines()[0], gates.get_lines()[0]):
        assert numpy.isnan(line.get_ydata()).tolist() == [False, False, True, False]
        assert line.get_markevery() == [3]  # a stage with one value is a dot


def test_the_names_of_short_stages_stand_above_the_strip():
    stages = [{**rows()[0], "step": step, "stage": "search" if step < 100 else "a long name"} for step in (50, 99, 100)]
    strip = headedit.plot.history(History(None, stages)).axes[0]
    assert [text.get_text() for text in strip.texts] == ["search", "2"]
    assert strip.get_title() == "Stages  (2: a long name)"


@pytest.mark.parametrize(("valid", "step"), [(10, 6), (0, 4)])
def test_the_history_shows_the_validation_loss_that_the_record_has(tmp_path, valid, step):
    stages = [{**rows()[0], "step": n, "stage": "search 1" if n < 5 else "refit"} for n in (2, 4, 6)]
    history = History(tmp_path / "history.jsonl", stages)
    history.restart(100)
    record = {"recipe": "localise", "valid_examples": valid, "held_out": {"base": 2.5, "edited": 0.5, "examples": 10}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    lines = {line.get_label(): line for line in headedit.plot.history(tmp_path).axes[1].get_lines()}
    assert lines["validation loss of the chosen edits"].get_xydata().tolist() == [[step, 0.5]]
    assert set(lines["validation loss of the base model"].get_ydata()) == {2.5}


def test_of_very_many_gates_an_even_selection_is_drawn():
    gates = [{"offset": [i / 4999 for i in range(5000)]}]
    figure = headedit.plot.history(History(None, [{**rows()[0], "gates": gates}]))
    lines = figure.axes[2].get_lines()
    assert figure.axes[2].get_title() == "Single gates, 200 of 5,000 offset gates  (0 closed, 1 open)"
    last = [line.get_ydata()[-1] for line in lines]
    assert (len(last), last[0], last[-1]) == (200, 0, 1)
    assert numpy.diff(last).max() < 0.0055


def test_a_history_without_steps_is_refused(tmp_path):
    with pytest.raises(HeadEditError, match="no step was logged"):
        headedit.plot.history(History(None, [{"step": 1, "eval_loss": 1.0}]))
    with pytest.raises(HeadEditError, match="there is no history of a run here"):
        headedit.plot.history(tmp_path)


def levels():
    losses = {4: 0.5, 3: 0.4, 2: 0.45, 1: 2.0}
    order = [GateIndex(0, "offset", 1), GateIndex(0, "scale", 1), GateIndex(1, "offset", 0), GateIndex(1, "scale", 3)]
    found = [Level(order=order[:k], vectors={}, loss=loss, standard_error=0.01) for k, loss in losses.items()]
    return PruningPath(found, 3)


def test_the_path_shows_loss_gates_heads_and_what_was_kept():
    figure = headedit.plot.path(levels())
    (axis,) = figure.axes
    curve = next(line for line in axis.get_lines() if len(line.get_xdata()) == 4)
    assert list(curve.get_xdata()) == [4, 3, 2, 1]
    assert list(curve.get_ydata()) == [0.5, 0.4, 0.45, 2.0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("open gates", "validation loss (nats per token)")
    upper = axis.child_axes[0]
    assert [label.get_text() for label in upper.get_xticklabels()] == ["3", "2", "1"]  # no number twice
    assert upper.get_xticks().tolist() == [4, 3, 1]
    assert "kept: 3 gates on 2 heads" in legend(figure)
    diamond = next(line for line in axis.get_lines() if line.get_marker() == "D")
    assert diamond.get_xydata().tolist() == [[3, 0.4]]


def test_the_path_shows_the_base_model_and_the_refits_that_decided(tmp_path):
    with_vectors = [replace(level, vectors={"0.offset": torch.ones(1, 8)}) for level in levels().levels]
    found = PruningPath(with_vectors, 3, base_loss=3.0, refits={3: 0.2, 4: 0.25})
    found.save(tmp_path)
    assert (PruningPath.read(tmp_path).base_loss, PruningPath.read(tmp_path).refits) == (3.0, {3: 0.2, 4: 0.25})
    (axis,) = headedit.plot.path(found).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines["validation loss of a refit"].get_xydata().tolist() == [[3, 0.2], [4, 0.25]]
    assert set(lines["validation loss of the base model"].get_ydata()) == {3.0}
    file = tmp_path / "path.json"
    older = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("base_loss", "refits")}
    file.write_text(json.dumps(older))
    assert PruningPath.read(tmp_path).base_loss is None


def test_ticks_of_a_long_path_keep_their_distance():
    order = [GateIndex(site, "offset", head) for site in range(20) for head in range(10)]
    sizes = [200, 180, 165, 150, 120, 104, 103, 100, 90, 3, 2, 1]
    found = [Level(order=order[:k], vectors={}, loss=1 / k, standard_error=0.0) for k in sizes]
    ticks = sorted(headedit.plot.path(PruningPath(found, 103)).axes[0].get_xticks().tolist())
    assert 103 in ticks
    assert all(high / low > 1.2 for low, high in pairwise(ticks))


def test_parameters_are_those_of_the_open_gates_with_other_methods_next_to_them():
    found = [replace(level, vectors={"0.offset": torch.ones(level.gates, 8)}) for level in levels().levels]
    figure = headedit.plot.parameters(PruningPath(found, 3), others={"LoRA": (4096, 0.3)})
    (axis,) = figure.axes
    curve = next(line for line in axis.get_lines() if len(line.get_xdata()) == 4)
    assert list(curve.get_xdata()) == [32, 24, 16, 8]
    assert "kept: 24 parameters on 2 heads" in legend(figure)
    assert next(line for line in axis.get_lines() if line.get_label() == "LoRA").get_xydata().tolist() == [[4096, 0.3]]


def test_a_method_without_parameters_is_a_line_and_one_that_is_no_pair_is_refused():
    found = PruningPath(
        [replace(level, vectors={"0.offset": torch.ones(level.gates, 8)}) for level in levels().levels], 3
    )
    (axis,) = headedit.plot.parameters(found, others={"prompt": (0, 0.3)}).axes
    line = next(line for line in axis.get_lines() if line.get_label() == "prompt")
    assert list(line.get_ydata()) == [0.3, 0.3]
    for others in ({"LoRA": 5}, {"LoRA": (5,)}, {"LoRA": ("5", 0.3)}, [("LoRA", (5, 0.3))]):
        with pytest.raises(HeadEditError, match=r"others: found .*expected the number of parameters and the loss"):
            headedit.plot.parameters(found, others=others)
    with pytest.raises(HeadEditError, match="others: a comparison has its own methods"):
        headedit.plot.parameters([{"method": "lora", "parameters": 9, "score": 0.8}], others={"LoRA": (9, 0.3)})


def test_every_task_of_a_comparison_is_drawn_from_its_own_largest_number_of_examples():
    lines = [
        {"task": task, "size": size, "method": "lora", "parameters": 9000, "score": size / 1000}
        for task, size in (("trec", 8), ("trec", 200), ("sst2", 64))
    ]
    left, right = headedit.plot.parameters(lines).axes
    assert (left.get_title(), right.get_title()) == ("trec, from 200 examples", "sst2, from 64 examples")
    points = [bars.lines[0].get_xydata().tolist() for axis in (left, right) for bars in axis.containers]
    assert points == [[[9000, 0.2]], [[9000, 0.064]]]


@pytest.mark.parametrize("name", ["history", "path", "parameters", "stability", "selection"])
def test_a_picture_of_a_run_says_what_it_takes(name, llama):
    for given in (headedit.attach(llama), None, 5):
        with pytest.raises(
            HeadEditError, match=r"Cannot draw .*; give the run that headedit\.fit returned, or the folder"
        ):
            getattr(headedit.plot, name)(given)
        if hasattr(given, "detach"):
            given.detach()


def test_a_comparison_is_drawn_by_the_parameters_of_each_method():
    common = {"task": "trec", "size": 200, "metric": "accuracy"}
    lines = [
        {**common, "method": name, "parameters": n, "score": 0.8} for name, n in (("lora", 9000), ("localise", 90))
    ]
    figure = headedit.plot.parameters([*lines, {**lines[0], "size": 8, "score": 0.1}])
    (axis,) = figure.axes
    points = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axis.containers}
    assert points == {"lora": [[9000, 0.8]], "localise": [[90, 0.8]]}
    assert axis.get_ylabel() == "accuracy"
    with pytest.raises(HeadEditError, match="no line has a method"):
        headedit.plot.parameters([{"method": "lora"}])


def test_a_path_without_validation_cannot_be_drawn(tmp_path):
    bare = PruningPath([Level(order=[GateIndex(0, "offset", 0)], vectors={})], 1)
    with pytest.raises(HeadEditError, match="has no validation losses"):
        headedit.plot.path(bare)
    with pytest.raises(HeadEditError, match=r"holds no path\.json"):
        headedit.plot.path(tmp_path)


def subtitle(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: artist.get_gid() == "subtitle")]


def test_the_subtitle_names_model_task_and_recipe_and_can_be_left_out(llama, tmp_path):
    llama.config._name_or_path = "/home/me/my-model"
    edits = headedit.attach(llama)
    edits.save_pretrained(tmp_path)
    assert subtitle(headedit.plot.gates(edits)) == ["my-model"]
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "jola", "base_model": "my-model"}))
    (tmp_path / "run.yaml").write_text("data: {train: data/trec/train.jsonl}\n")
    History(tmp_path / "history.jsonl", rows()).restart(9)
    for draw in (headedit.plot.gates, headedit.plot.types, headedit.plot.effects, headedit.plot.history):
        assert subtitle(draw(tmp_path)) == ["my-model  ·  trec  ·  jola"]
        assert subtitle(draw(tmp_path, subtitle=False)) == []
        assert subtitle(draw(tmp_path, subtitle="mine $5")) == [r"mine \$5"]
    assert subtitle(headedit.plot.compare({"a": edits, "b": tmp_path})) == ["my-model"]


def test_title_and_subtitle_do_not_overlap_the_axes_or_each_other(llama):
    figure = headedit.plot.gates(headedit.attach(llama), title="two\nlines")
    figure.canvas.draw()
    (below,) = figure.findobj(lambda artist: artist.get_gid() == "subtitle")
    title, text = (artist.get_window_extent() for artist in (figure._suptitle, below))
    assert title.y0 >= text.y1 - 1
    assert text.y0 >= max(axis.title.get_window_extent().y1 for axis in figure.axes[:2])


def test_a_value_has_as_many_decimals_as_its_error():
    assert with_error(5.98932, 0.0011) == "5.9893 ± 0.0011"
    assert with_error(24.0, 6.2449) == "24.0 ± 6.2"
    assert with_error(1234.4, 210.0) == "1234 ± 210"
    assert with_error(2.0, 0.0) == "2 ± 0"


def test_the_validation_loss_of_kept_edits_stands_at_their_step(tmp_path):
    history = History(tmp_path / "history.jsonl", rows())
    history.restart(100)
    history.append({"step": 2, "kept": True})
    record = {"recipe": "jola", "valid_examples": 9, "held_out": {"base": 2.5, "edited": 0.5, "examples": 9}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    lines = {line.get_label(): line for line in headedit.plot.history(tmp_path).axes[0].get_lines()}
    assert lines["validation loss of the chosen edits"].get_xydata().tolist() == [[2, 0.5]]


def test_the_base_model_of_a_path_is_taken_from_the_record_of_its_run(tmp_path):
    PruningPath([replace(level, vectors={"0.offset": torch.ones(1, 8)}) for level in levels().levels], 3).save(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"held_out": {"base": 2.5, "edited": 0.5, "examples": 9}}))
    (axis,) = headedit.plot.path(tmp_path).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines["validation loss of the base model"].get_ydata()) == {2.5}
