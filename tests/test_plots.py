"""Pictures show the numbers they are of, say what is on their axes, and mark what is not there."""

import numpy
import pytest
from tiny import randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.gate_set import GateIndex
from headedit.runs.history import History
from headedit.runs.pruning_path import Level, PruningPath


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
    assert (offset.get_xlabel(), offset.get_ylabel()) == ("head  (lines: 2 share a key-value head)", "layer")
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
        losses, opened, gates, prices, rates = figure.axes
        lines = {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()}
        assert lines["training loss"] == [[2, 2.0], [4, 1.0]]
        assert lines["validation loss"] == [[4, 1.5]]
        assert lines["edits kept"][0][0] == 4
        assert [line.get_ydata().tolist() for line in opened.get_lines()[:2]] == [[2.0, 2.0], [1.0, 1.0]]
        assert len(gates.get_lines()) == 4 + 1
        assert losses.get_ylabel() == "nats per token"
        assert [line.get_ydata().tolist() for line in prices.get_lines()[:2]] == [[0.01, 0.01], [0.02, 0.02]]
        assert [line.get_ydata().tolist() for line in rates.get_lines()[:2]] == [[0.1, 0.1], [0.5, 0.5]]
        assert (prices.get_ylabel(), rates.get_xlabel()) == ("nats per gate", "optimiser step")


def test_a_history_without_a_price_has_no_panel_for_it():
    plain = {key: value for key, value in rows()[0].items() if not key.startswith("lambda")}
    titles = [axis.get_title() for axis in headedit.plot.history(History(None, [plain])).axes]
    assert titles == [
        "Loss on the response tokens",
        "Open gates",
        "Every single gate (0 closed, 1 open)",
        "Learning rates",
    ]


def test_of_very_many_gates_an_even_selection_is_drawn():
    gates = [{"offset": [i / 4999 for i in range(5000)]}]
    figure = headedit.plot.history(History(None, [{**rows()[0], "gates": gates}]))
    lines = figure.axes[2].get_lines()
    assert lines[0].get_label() == "offset gates, 200 of 5,000"
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
    assert [label.get_text() for label in upper.get_xticklabels()] == ["3", "2", "1", "1"]
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "kept: 3 gates on 2 heads" in texts


def test_a_path_without_validation_cannot_be_drawn(tmp_path):
    bare = PruningPath([Level(order=[GateIndex(0, "offset", 0)], vectors={})], 1)
    with pytest.raises(HeadEditError, match="has no validation losses"):
        headedit.plot.path(bare)
    with pytest.raises(HeadEditError, match=r"holds no path\.json"):
        headedit.plot.path(tmp_path)


def test_stages_are_named_where_they_begin():
    trained = {**rows()[0]}
    logged = [{**trained, "step": step, "stage": "search" if step <= 4 else "refit"} for step in (2, 4, 6)]
    first = headedit.plot.history(History(None, logged)).axes[0]
    placed = {text.get_text().strip(): text.get_position()[0] for text in first.texts}
    assert placed == {"search": 0, "refit": 4}
