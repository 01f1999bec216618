"""Planted problems are what they say, and the bench over them measures what its columns are called."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError
from headedit.bench.compare.methods import ORACLE, Problem, method
from headedit.bench.plots import recovery as recovery_plots
from headedit.bench.recovery import localisation
from headedit.bench.recovery.planted import f1, plant, token_accuracy, write
from headedit.cli import bench
from headedit.edits.gate_set import GateIndex
from headedit.io import bars

SHAPES = ("llama", "qwen3", "gpt2")
QUICK = {"epochs": 1, "min_steps": 1}
CHANGES = {"localise": QUICK, "no gate": QUICK, ORACLE: QUICK}


@pytest.fixture(scope="module", params=SHAPES)
def planted(request):
    return plant(request.param, 7, examples=12, test_examples=40)


def test_the_same_seed_plants_the_same_problem_and_another_seed_another():
    first, again, other = (plant("llama", seed, examples=4, test_examples=4) for seed in (1, 1, 2))
    assert (first.truth, first.train, first.test) == (again.truth, again.train, again.test)
    assert all(torch.equal(value, again.values[gate]) for gate, value in first.values.items())
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.truth != other.truth
    assert first.train[0]["input_ids"] != other.train[0]["input_ids"]


def test_a_larger_training_set_contains_the_smaller_and_the_test_set_stays():
    few, many = (plant("gpt2", 3, examples=n, test_examples=5) for n in (4, 9))
    assert many.train[:4] == few.train
    assert len(many.train) == 9
    assert many.test == few.test
    assert many.truth == few.truth
    assert not {tuple(r["input_ids"]) for r in many.train} & {tuple(r["input_ids"]) for r in many.test}


def test_three_offsets_and_three_scales_are_planted_in_five_heads(planted):
    offset, scale = planted.truth["offset"], planted.truth["scale"]
    assert (len(offset), len(scale), len(offset & scale), len(offset | scale)) == (3, 3, 1, 5)
    assert set(planted.effects) == set(planted.values)


def test_the_planted_vectors_reproduce_every_label_and_the_unedited_model_only_a_few(planted):
    model = planted.fresh()
    assert token_accuracy(model, planted.test) == planted.base_agreement < 0.5
    edits = headedit.attach(model)
    write(edits, planted.values)
    assert token_accuracy(model, planted.test) == 1.0
    assert token_accuracy(model, planted.train, batch_size=5) == 1.0
    row = planted.test[0]
    predicted = model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax(-1)[0].tolist()
    assert row["labels"] == [-100, *predicted[:-1]]
    assert edits.count_effective_parameters() == 6 * 16


def test_each_planted_vector_has_the_smallest_effect_or_more(planted):
    assert planted.min_effect == min(planted.effects.values()) >= 0.1
    edits = headedit.attach(planted.fresh())
    rows = planted.test + planted.train
    for gate, effect in planted.effects.items():
        write(edits, {other: value for other, value in planted.values.items() if other != gate})
        assert 1 - token_accuracy(edits.model, rows) == pytest.approx(effect, abs=0.08)


def test_the_planted_offsets_have_the_given_strength():
    edits = headedit.attach(plant("llama", 7, edits=0, examples=1, test_examples=1).model)
    strong, weak = (plant("llama", 7, examples=1, test_examples=1, strength=s, min_effect=0.0) for s in (4.0, 2.0))
    for gate, value in strong.values.items():
        assert torch.allclose(value, 2 * weak.values[gate])
    seen = {}
    for i, site in enumerate(edits.sites):
        site.module.register_forward_pre_hook(lambda m, args, i=i: seen.update({i: args[0]}))
    prompts = torch.randint(3, 128, (100, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        edits.model(input_ids=prompts)
    ratios = []
    for (i, vector, head), value in weak.values.items():
        unit = seen[i].view(-1, 8, 16)[:, head].square().mean().sqrt() if vector == "offset" else 1.0
        ratios.append(float(value.square().mean().sqrt() / unit))
    assert sum(ratios) / len(ratios) == pytest.approx(2.0, rel=0.3)


def test_vectors_are_drawn_again_until_they_have_the_smallest_effect():
    at_once = plant("llama", 7, examples=1, test_examples=1, min_effect=0.0)
    redrawn = plant("llama", 7, examples=1, test_examples=1, min_effect=at_once.min_effect + 0.02)
    assert redrawn.min_effect >= at_once.min_effect + 0.02
    assert redrawn.values.keys() != at_once.values.keys()


def test_a_problem_without_planted_edits_has_the_unedited_models_labels():
    nothing = plant("qwen3", 7, edits=0, examples=3, test_examples=3)
    assert nothing.base_agreement == 1.0
    assert nothing.truth == {"offset": set(), "scale": set()}
    assert nothing.effects == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "lama"}, r"There is no shape 'lama'\. Did you mean 'llama'\?"),
        ({"examples": 0}, r"examples: found 0"),
        ({"tokens": 1}, r"tokens: found 1, expected 2 to 64"),
        ({"edits": 40}, r"edits: found 40, expected 0 to 33"),
    ],
)
def test_an_impossible_problem_is_refused(arguments, message):
    with pytest.raises(HeadEditError, match=message):
        plant(arguments.pop("shape", "llama"), 0, **arguments)


def test_an_effect_that_no_draw_reaches_is_refused(monkeypatch):
    monkeypatch.setattr("headedit.bench.recovery.planted._DRAWS", 2)
    with pytest.raises(HeadEditError, match=r"min_effect: in 2 draws of 6 edits .* expected 100\.0%"):
        plant("llama", 0, examples=1, test_examples=1, min_effect=1.0)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    assert f1({(0, 1), (0, 2)}, {(0, 1), (0, 2)}) == 1.0
    assert f1({(0, 1), (0, 2), (0, 3)}, {(0, 1)}) == pytest.approx(0.5)
    assert f1({(0, 1)}, {(1, 0)}) == 0.0
    assert f1(set(), {(1, 0)}) == 0.0
    assert f1(set(), set()) == 1.0
    everywhere = {(site, head) for site in range(4) for head in range(8)}
    assert f1(everywhere, {(0, 1), (1, 1), (2, 1)}) == pytest.approx(2 * 3 / 35)


def test_token_accuracy_counts_only_labelled_tokens_and_keeps_the_mode(llama):
    ids = [5, 6, 7, 8]
    best = llama(input_ids=torch.tensor([ids])).logits.argmax(-1)[0].tolist()
    wrong = (best[1] + 1) % 128
    rows = [{"input_ids": ids, "labels": [-100, best[0], wrong, -100]}, {"input_ids": ids[:2], "labels": [3, best[0]]}]
    llama.train()
    assert token_accuracy(llama, rows) == pytest.approx(2 / 3)
    assert llama.training
    with pytest.raises(HeadEditError, match="no token has a label"):
        token_accuracy(llama, [{"input_ids": ids, "labels": [-100] * 4}])


def problem_of(planted, truth=True):
    return Problem(
        fresh=planted.fresh,
        train=planted.train,
        score=lambda model: token_accuracy(model, planted.test),
        seed=0,
        truth=planted.truth if truth else None,
    )


def test_the_oracle_edits_only_the_planted_heads_and_beats_the_unedited_model():
    planted = plant("llama", 7, examples=60, test_examples=40)
    outcome = method(ORACLE, planted=True)(problem_of(planted), {"epochs": 5, "min_steps": 1})
    assert outcome.score > planted.base_agreement + 0.2
    assert outcome.score == token_accuracy(outcome.model, planted.test)
    assert (outcome.parameters, outcome.gates, outcome.heads) == (6 * 16, 6, 5)
    assert outcome.found is None
    assert not outcome.model.training
    opened = {
        GateIndex(site, vector, head)
        for site, edit in enumerate(outcome.model.headedit.default)
        for vector in edit.vectors
        for head, is_open in enumerate(edit.is_open(vector).tolist())
        if is_open
    }
    assert opened == set(planted.values)
    with pytest.raises(HeadEditError, match="The oracle needs planted heads"):
        method(ORACLE, planted=True)(problem_of(planted, truth=False), {})


@pytest.fixture(scope="module")
def small():
    arguments = {"changes": CHANGES, "examples": 8, "test_examples": 8, "tokens": 8, "progress": False}
    return localisation.bench_localise(["llama", "gpt2"], [0], ["localise", "no gate"], **arguments)


def test_the_bench_has_a_row_per_run_with_the_oracles_accuracy(small):
    runs = [(row["shape"], row["recipe"]) for row in small.rows]
    assert runs == [(shape, name) for shape in ("llama", "gpt2") for name in ("localise", "no gate", "oracle")]
    for row in small.rows:
        own = next(r for r in small.rows if r["shape"] == row["shape"] and r["recipe"] == "oracle")
        assert row["oracle"] == own["accuracy"]
        assert (row["f1_offset"] is None) == (row["f1_scale"] is None) == (row["recipe"] != "localise")
        reference = plant(row["shape"], 0, examples=8, test_examples=8, tokens=8)
        assert row["unedited"] == reference.base_agreement
    free = next(row for row in small.rows if row["recipe"] == "no gate")
    assert (free["parameters"], free["gates"], free["heads"]) == (1024, 64, 32)


def test_the_summary_has_rows_for_all_shapes_together_and_for_each(small):
    assert [row["shape"] for row in small.summary] == [shape for shape in ("all", "llama", "gpt2") for _ in range(3)]
    mine = [row for row in small.rows if row["recipe"] == "localise"]
    total = small.summary[0]
    assert (total["recipe"], total["runs"]) == ("localise", 2)
    assert total["f1_offset"] == pytest.approx(sum(row["f1_offset"] for row in mine) / 2)
    assert total["f1_offset_min"] == min(row["f1_offset"] for row in mine)
    assert total["accuracy"] == pytest.approx(sum(row["accuracy"] for row in mine) / 2)
    assert total["ratio"] == pytest.approx(sum(row["accuracy"] / row["oracle"] for row in mine) / 2)
    assert total["seconds_max"] == max(row["seconds"] for row in mine)


def test_the_bench_is_written_as_json_and_markdown(small):
    again = json.loads(json.dumps(small.to_dict()))
    assert again["rows"] == small.rows
    assert again["settings"]["problem"] == {"examples": 8, "test_examples": 8, "tokens": 8}
    text = small.markdown()
    assert "## all, 1 seeds" not in text
    assert "## all, 1 seed\n" in text
    (line,) = re.findall(r"## llama, 1 seed\n\n.*?\n.*?\n.*?\n(\| no gate .*?)\n", text, flags=re.DOTALL)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    row = next(r for r in small.summary if (r["shape"], r["recipe"]) == ("llama", "no gate"))
    assert cells[1:5] == [""] * 4
    assert cells[5] == f"{row['accuracy']:.3f}"
    assert cells[-2] == "1,024"
    assert re.search(rf"\| unedited \|  \|  \|  \|  \| {row['unedited']:.3f} \|", text)


def test_several_processes_give_the_same_rows_as_one(small):
    arguments = {"changes": CHANGES, "examples": 8, "test_examples": 8, "tokens": 8, "progress": False}
    again = localisation.bench_localise(["llama", "gpt2"], [0], ["localise", "no gate"], jobs=2, **arguments)
    plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in (small.rows, again.rows)]
    assert plain[0] == plain[1]


def test_the_curve_has_a_row_per_size_and_editing_without_planted_heads_does_harm(monkeypatch):
    arguments = {"changes": {"no gate": QUICK}, "test_examples": 8, "tokens": 8, "progress": False}
    curve = localisation.bench_curve((8, 16), ["no gate"], seeds=[0], **arguments)
    assert [row["examples"] for row in curve.rows] == [8, 16]
    assert "## 16 examples" in curve.markdown()
    assert [row["accuracy"] for row in curve.summary] == [row["accuracy"] for row in curve.rows]
    nothing = localisation.bench_nothing(["llama"], [0], ["unedited", "no gate"], examples=8, **arguments)
    unedited, edited = nothing.rows
    assert (unedited["accuracy"], unedited["parameters"]) == (1.0, 0)
    assert edited["loss"] > unedited["loss"]
    assert f"| unedited | 0 | {unedited['loss']:.3f} |" in nothing.markdown()
    with pytest.raises(HeadEditError, match="The oracle needs planted heads"):
        localisation.bench_nothing(["llama"], [0], ["oracle"], examples=8, **arguments)


def test_a_mistake_in_the_bench_is_reported_before_any_work(monkeypatch):
    monkeypatch.setattr("headedit.bench.recovery.planted_runs.run_units", lambda *a, **k: pytest.fail("work was done"))
    for arguments, message in (
        ({"shapes": ["lama"]}, "There is no shape 'lama'"),
        ({"recipes": ["localize"]}, r"There is no method 'localize'\. Did you mean 'localise'\?"),
        ({"recipes": ["jola"], "changes": {"jola": {"epoch": 1}}}, "recipe jola: unknown key 'epoch'"),
        ({"seeds": []}, "nothing to run"),
    ):
        with pytest.raises(HeadEditError, match=message):
            localisation.bench_localise(**{"recipes": ["localise"], "seeds": [0], **arguments})
    monkeypatch.undo()
    with pytest.raises(HeadEditError, match="jobs: found 0"):
        localisation.bench_localise(["llama"], [0], ["localise"], jobs=0)


def test_the_picture_of_localisation_shows_every_run_and_the_means(small):
    figure = recovery_plots.localisation(small.rows)
    offset, scale, accuracy = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["Offset heads", "Scale heads", "Token accuracy"]
    assert (offset.get_xlabel(), scale.get_xlabel()) == ("F1, planted against chosen",) * 2
    assert [label.get_text() for label in offset.get_yticklabels()] == ["localise", "no gate", "oracle"]
    drawn = sorted(x for line in scale.get_lines() if line.get_marker() in "os" for x in line.get_xdata())
    assert drawn == sorted(row["f1_scale"] for row in small.rows if row["f1_scale"] is not None)
    assert [text.get_text() for text in offset.texts] == ["does not choose"] * 2
    mean = sum(row["oracle"] for row in small.rows) / len(small.rows)
    dashed = [line for line in accuracy.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [pytest.approx(mean)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["llama, one run", "gpt2, one run", "mean", "oracle, mean", "unedited, mean"]
    assert figure.get_size_inches()[0] == 9
    with pytest.raises(HeadEditError, match="nothing to draw"):
        recovery_plots.localisation([])


def test_the_picture_of_the_curve_has_a_line_per_recipe():
    rows = [
        {"recipe": name, "examples": size, "accuracy": size / 1000 + seed / 10, "unedited": 0.1}
        for name in ("localise", "jola")
        for size in (50, 200)
        for seed in (0, 1)
    ]
    (axis,) = recovery_plots.curve(rows).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert list(lines) == ["localise", "jola", "unedited"]
    assert lines["jola"].get_xydata().tolist() == [[50, pytest.approx(0.1)], [200, pytest.approx(0.25)]]
    assert lines["jola"].get_marker() != lines["localise"].get_marker()
    assert axis.get_xscale() == "log"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("training examples", "token accuracy on unseen examples")


def test_the_localise_command_writes_json_markdown_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(bars, "is_shown", lambda: True)
    arguments = ["localise", "--shapes", "llama", "--seeds", "1", "--first-seed", "4", "--recipes", "localise"]
    arguments += ["--examples", "8", "--set", "epochs=1", "--set", "min_steps=1", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(bench.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "localise.json",
        "localise.md",
        "localise.png",
    ]
    written = json.loads((tmp_path / "out" / "localise.json").read_text())
    assert [(row["seed"], row["recipe"]) for row in written["rows"]] == [(4, "localise"), (4, "oracle")]
    assert f"{written['summary'][0]['accuracy']:.3f}" in done.stdout
    assert "localise, llama 4" in done.stderr
    assert "localise, llama 4" not in done.stdout


@pytest.mark.parametrize("command", [[], ["localise"]])
def test_the_help_of_bench_and_localise_has_an_example(command):
    printed = CliRunner().invoke(bench.app, [*command, "--help"]).stdout
    text = re.sub(r"\s+", " ", printed.replace("│", " "))
    assert " ".join(["headedit bench", *command]) in text.split("Example:")[1]


def test_the_bench_command_without_a_subcommand_measures_cost(tmp_path):
    quick = ["--repeats", "1", "--layers", "1", "--hidden", "16", "--batch", "1", "--tokens", "4"]
    done = CliRunner().invoke(bench.app, [*quick, "--output", str(tmp_path / "cost.json")], catch_exceptions=False)
    assert "headedit bench (medians of 1)" in done.stdout
    assert json.loads((tmp_path / "cost.json").read_text())["repeats"] == 1
    with pytest.raises(HeadEditError, match="multiple of 16"):
        CliRunner().invoke(bench.app, ["--hidden", "100"], catch_exceptions=False)
