"""The bench of cost: it measures what its rows are called, with methods that are what their names say."""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from rich.text import Text
from tiny import tiny_model
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError
from headedit.bench.cost import SHAPES, Shape, measure_cost, memory, methods, route_cost, scaling_cost, timing
from headedit.bench.cost.memory import keeps_memory, memory_kept, peak_of_process, peak_of_tensors
from headedit.bench.cost.shapes import build, random_ids
from headedit.bench.plots import cost as cost_plots
from headedit.cli import bench
from headedit.cli.bench_output import _cells
from headedit.io import optional
from headedit.specs import find_sites, find_spec

CPU = torch.device("cpu")
SMALL = Shape(layers=2, hidden=32, heads=2, batch=1, tokens=4)
IDS = random_ids(1000, 2, 6, "cpu")


def logits(prepared, ids=IDS):
    with torch.no_grad():
        return prepared.model.eval()(input_ids=ids).logits


@pytest.fixture(scope="module")
def base():
    return build(SMALL)


@pytest.fixture(scope="module")
def cost():
    return measure_cost(SMALL, methods=["edited", "loop"], repeats=6, progress=False)


def test_the_upper_bound_trains_one_vector_of_the_first_layer(base):
    prepared = methods.upper_bound(base)
    prepared.model.train()
    prepared.model(input_ids=IDS, labels=IDS).loss.backward()
    (vector,) = prepared.trained
    assert vector.shape == (32,)
    assert vector.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in prepared.model.parameters())


def test_merged_computes_the_same_as_edited(base):
    torch.testing.assert_close(logits(methods.merged(base)), logits(methods.edited(base)))


def test_a_twentieth_of_the_heads_is_open_after_hardening():
    model = methods.hardened(build(Shape(layers=5, hidden=64, heads=8))).model
    opened = [edit.is_open("scale").sum() for edit in model.headedit["default"]]
    assert sum(opened) == 2
    assert sum(edit.idle for edit in model.headedit["default"]) == sum(n == 0 for n in opened)


def test_the_rows_of_cost_name_what_was_measured(cost):
    assert cost.row("step", "edited")["against"] == "upper bound"
    assert cost.row("forward", "edited")["against"] == "bare"
    for workload in ("step", "forward", "prefill", "decode"):
        row = cost.row(workload, "edited")
        assert row["ratio"] == row["value"] / cost.row(workload, row["against"])["value"]
        assert row["low"] <= row["high"]
        row = cost.row(workload, "loop")
        tokens = 16 if workload == "decode" else 4
        assert row["tokens_per_second"] == pytest.approx(1000 * tokens / row["value"])
        assert row["runs"] == 2
        assert cost.row(workload, "edited")["runs"] == 6
    assert cost.row("operators, eval", "edited")["value"] == (2 * 1 + 10) / 2  # one for each of 2 sites, 10 for both
    assert cost.row("operators, eval", "loop")["value"] > 20
    assert 1 < cost.row("operators, train", "edited")["value"] < cost.row("operators, train", "loop")["value"] / 3
    assert cost.row("memory", "edited")["ratio"] > 1
    assert cost.row("step", "edited")["at_most"] == 1.03
    assert cost.row("attach", "edited")["at_most"] == 1000
    assert [cost.row(workload, "edited")["at_most"] for workload in ("forward", "prefill", "decode")] == [1.02] * 3
    assert {row["method"] for row in cost.rows} == {"bare", "upper bound", "edited", "loop"}
    assert json.loads(json.dumps(cost.to_dict()))["shape"]["layers"] == 2


def test_a_model_that_is_given_is_measured():
    model = tiny_model("gpt2")
    cost = measure_cost(Shape(batch=1, tokens=4), model=model, workloads=["operators"], progress=False)
    assert cost.row("operators, eval", "edited")["value"] == (2 * 1 + 10) / 2  # one for each of 2 sites, 10 for both
    assert cost.given
    assert not any(p.requires_grad for p in model.parameters())
    headedit.attach(model)  # nothing was left on it


def test_a_method_that_is_unavailable_is_named(monkeypatch):
    monkeypatch.setattr(optional, "import_module", lambda name: (_ for _ in ()).throw(ImportError))
    cost = measure_cost(SMALL, workloads=["operators"], progress=False)
    assert set(cost.left_out) == {"lora", "ia3", "pyvene", "nnsight"}
    for name, package in (("lora", "peft"), ("pyvene", "pyvene"), ("nnsight", "nnsight")):
        with pytest.raises(HeadEditError, match=f"pip install {package}"):
            measure_cost(SMALL, methods=[name], progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shape(hidden=100), "hidden: found 100, expected a multiple of 16, for 8 heads of even width"),
        (lambda: Shape(kv_heads=3), "heads: found 8, expected a multiple of 3"),
        (lambda: Shape(dtype="float8"), "dtype: found 'float8', expected one of float32"),
        (lambda: measure_cost(SMALL, methods=["edted"]), "methods: found 'edted'. Did you mean 'edited'"),
        (lambda: measure_cost(SMALL, workloads=["steps"]), "workloads: found 'steps'. Did you mean 'step'"),
        (lambda: measure_cost(Shape(device="nowhere")), "device: 'nowhere' cannot be used"),
        (lambda: measure_cost(Shape(attention="flash")), r"attention: 'flash' is unavailable \(.*not supported"),
        (lambda: scaling_cost(["layer"]), "sweeps: found 'layer'. Did you mean 'layers'"),
        (lambda: cost_plots.scaling([]), "no rows"),
        (lambda: cost_plots.adapters([]), "no rows"),
    ],
)
def test_a_measurement_that_is_not_possible_is_refused(call, message):
    with pytest.raises(HeadEditError, match=message):
        call()


@pytest.mark.parametrize(("options", "attention"), [([], "sdpa"), (["--attention", "eager"], "eager")])
def test_the_attention_is_chosen_and_recorded(options, attention, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    for model in ([], ["--model", str(tmp_path / "model")]):
        quick = ["--repeats", "1", "--layers", "1", "--hidden", "16", "--heads", "2", "--batch", "1", "--tokens", "4"]
        chosen = ["--workloads", "operators", "--methods", "edited", "--output", str(tmp_path / "cost.json")]
        CliRunner().invoke(bench.app, [*quick, *chosen, *options, *model], catch_exceptions=False)
        assert json.loads((tmp_path / "cost.json").read_text())["machine"]["attention"] == attention


def test_the_named_shapes_have_the_size_of_their_names():
    sizes = {}
    for name in ("125M", "1B", "8B"):
        model = build(Shape(**{**vars(SHAPES[name]), "device": "meta"}))
        sizes[name] = sum(p.numel() for p in model.parameters())
        edits = headedit.attach(model)
        sites = find_sites(model, find_spec(model))
        assert edits.get_nb_trainable_parameters()[0] == sum(2 * site.width + 2 * site.heads for site in sites)
    assert sizes["8B"] == 8_030_261_248
    assert 1.2e9 < sizes["1B"] < 1.6e9
    assert 1.2e8 < sizes["125M"] < 1.4e8


def test_a_model_is_built_in_its_dtype_with_the_same_weights_each_time():
    shape = Shape(layers=1, hidden=16, heads=2, dtype="bfloat16")
    one, other = build(shape), build(shape)
    assert {p.dtype for p in one.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_variants_run_in_turn_and_each_starts_a_round(monkeypatch):
    calls, clock = [], iter(range(10_000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))

    def variant(name):
        return lambda: lambda: calls.append(name)

    found = timing.alternate({"a": variant("a"), "b": variant("b")}, 2, CPU)
    assert "".join(calls) == "abbaabbaab"
    assert found["b"].milliseconds == [1000, 1000]


def test_a_less_exact_variant_runs_in_every_fifth_round_next_to_its_reference(monkeypatch):
    calls, clock = [], iter(range(10_000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    variants = {name: lambda name=name: lambda: calls.append(name) for name in "abc"}
    found = timing.alternate(variants, 11, CPU, every_nth={"c"})
    assert "".join(calls) == "abbaabcbcaabbaabbacababbaabbaabc"
    assert [len(found[name].milliseconds) for name in "abc"] == [11, 11, 3]
    assert len(found["c"].reference) == 3
    assert len(found["b"].reference) == 11


def test_a_ratio_compares_times_of_the_same_rounds(monkeypatch):
    taken = {"a": iter([0, 0, 0, *range(1, 12)]), "c": iter([0, 10, 60, 110])}
    monkeypatch.setattr(timing, "_timed", lambda run, device: run())
    variants = {name: timing.as_is(lambda name=name: next(taken[name])) for name in "ac"}
    found = timing.alternate(variants, 11, CPU, every_nth={"c"})["c"]
    assert (found.milliseconds, found.reference) == ([10, 60, 110], [1, 6, 11])


def test_ratios_are_of_medians_and_quartiles_are_of_ratios_per_round():
    found = timing.Timing([2.0, 4.0, 60.0], [1.0, 4.0, 30.0])
    assert (found.median, found.ratio, found.quartiles) == (4.0, 1.0, (1.5, 2.0))


def test_the_peak_of_tensors_is_exact():
    def run():
        held = torch.empty(1000, dtype=torch.float32)
        for _ in range(3):
            torch.empty(500, dtype=torch.float32)
        return held

    assert peak_of_tensors(run, CPU) == 6000


def test_garbage_of_before_that_is_freed_in_a_run_does_not_count_against_it():
    class Model:
        def __init__(self):
            self.weights, self.itself = torch.zeros(1000), self

    def run():
        gc.collect()
        torch.zeros(1000)

    gc.disable()  # so that the model is still there when the measurement begins
    try:
        Model()
        assert peak_of_tensors(run, CPU) == 4000
    finally:
        gc.enable()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only on Linux")
def test_the_peak_of_the_process_includes_touched_memory():
    size = 64 * 2**20
    low = peak_of_process(lambda: None)
    high = peak_of_process(lambda: bytearray(size).replace(b"a", b"b"))
    assert high - low > 0.9 * size


_FAULTS = """
import resource, torch
from headedit.bench.cost.memory import memory_kept, peak_of_process

CPU = torch.device("cpu")

def run():
    for _ in range(10):
        torch.empty(80 * 2**20, dtype=torch.uint8).fill_(1)  # larger than what glibc keeps on its own

def faults():
    run()
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
with memory_kept(CPU):
    kept = faults()
held = peak_of_process(lambda: None)
with memory_kept(CPU):
    run()
print(returned, kept, held, peak_of_process(lambda: None))
"""


@pytest.mark.skipif(not keeps_memory(CPU), reason="only where glibc allocates")
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only on Linux")
def test_a_pass_with_kept_memory_has_no_page_faults_again():
    done = subprocess.run([sys.executable, "-c", _FAULTS], check=True, capture_output=True, text=True)
    returned, kept, held, held_after = map(int, done.stdout.split())  # in a process that is new
    assert kept < 0.2 * returned
    assert held_after - held < 40 * 2**20


@pytest.mark.parametrize("largest", [2**30, 2**25])
def test_memory_is_kept_as_far_as_glibc_allows(monkeypatch, largest):
    called = []

    def function(name):
        def call(*given):
            called.append((name, *given))
            return given[-1] <= largest

        return call

    monkeypatch.setattr(memory, "_glibc", function)
    with memory_kept(torch.device("cuda")):
        pass
    assert not called
    with memory_kept(CPU):
        accepted = [value for name, option, value in called if option == -3 and value <= largest]
        assert accepted == [largest]
    assert called[-3:] == [("mallopt", -3, 2**25), ("mallopt", -1, 2**26), ("malloc_trim", 0)]


def test_memory_is_left_alone_where_glibc_does_not_allocate(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda name: None)
    with memory_kept(CPU):
        pass
    assert keeps_memory(torch.device("cuda"))
    assert not keeps_memory(CPU)


@pytest.fixture(scope="module")
def scaled():
    sweeps = {
        "layers": (Shape(hidden=32, heads=2, batch=1, tokens=4), (2, 4, 8)),
        "heads": (Shape(layers=2, hidden=64, batch=1, tokens=4), (4, 8, 16)),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headedit.bench.cost.scaling.SWEEPS", sweeps)
        yield scaling_cost(repeats=1, progress=False)


def test_operators_parameters_and_bytes_scale_at_most_linearly(scaled):
    layers = [row for row in scaled if row["sweep"] == "layers"]
    for key, most in (("step_operators", 1), ("forward_operators", 1), ("parameters", 1), ("bytes", 1.01)):
        first, second, third = (row[key] for row in layers)
        assert third - second <= most * 2 * (second - first)
        assert third > second > first
    heads = [row for row in scaled if row["sweep"] == "heads"]
    for key in ("step_operators", "forward_operators"):
        assert len({row[key] for row in heads}) == 1  # nothing is done head by head
    assert heads[-1]["parameters"] - heads[0]["parameters"] == 2 * 2 * 12
    assert all(row["hardened_bytes"] < row["bytes"] for row in layers)


def test_the_picture_of_scaling_has_a_column_per_sweep(scaled):
    figure = cost_plots.scaling(scaled)
    assert len(figure.axes) == 6
    assert [axis.get_xlabel() for axis in figure.axes if axis.get_xlabel()] == ["layers", "heads per layer"]
    labels = {line.get_label() for axis in figure.axes for line in axis.get_lines()}
    assert {"training step", "forward pass", "training step of the upper bound", "whole"} <= labels
    low, high = figure.axes[2].get_ylim()
    assert low <= 0.95
    assert high >= 1.05
    assert all(low < row[key] < high for row in scaled for key in ("step_ratio", "forward_ratio"))


def test_a_routed_batch_is_measured_by_number_of_adapters():
    rows = route_cost(
        Shape(layers=1, hidden=32, heads=2, batch=4, tokens=3), numbers=[1, 3, 6], repeats=2, progress=False
    )
    assert [row["adapters"] for row in rows] == [1, 3, 6]
    assert all(row["rows"] == 4 and row["forward_ms"] > 0 and row["enter_ms"] > 0 for row in rows)
    assert [row["add_ms"] is None for row in rows] == [True, False, False]
    figure = cost_plots.adapters(rows)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines["over the bare model"].get_ydata()) == [row["against_bare"] for row in rows]


def test_the_bench_command_prints_and_writes_the_cost(tmp_path):
    quick = ["--repeats", "1", "--layers", "1", "--hidden", "16", "--heads", "2", "--batch", "1", "--tokens", "4"]
    chosen = ["--methods", "edited", "--workloads", "forward,operators", "--output", str(tmp_path / "cost.json")]
    done = CliRunner().invoke(bench.app, [*quick, *chosen], catch_exceptions=False)
    assert "headedit bench (medians of 1)" in done.stdout
    assert "1 layers of width 16, 2 heads, float32" in done.stdout
    written = json.loads((tmp_path / "cost.json").read_text())
    assert {row["workload"] for row in written["rows"]} == {"forward", "operators, eval", "operators, train"}
    with pytest.raises(HeadEditError, match="--shape: found '2B'"):
        CliRunner().invoke(bench.app, ["--shape", "2B"], catch_exceptions=False)


def test_the_route_and_scaling_commands_print_and_write(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "headedit.bench.cost.scaling.SWEEPS", {"layers": (Shape(hidden=16, heads=2, batch=1, tokens=2), (1, 2))}
    )
    for command in (
        ["scaling", "--sweeps", "layers"],
        ["route", "--adapters", "1,2", "--layers", "1", "--hidden", "16", "--batch", "2", "--tokens", "2"],
    ):
        arguments = [*command, "--repeats", "1", "--output", str(tmp_path)]
        done = CliRunner().invoke(bench.app, arguments, catch_exceptions=False)
        assert "ratio" in done.stdout or "against" in done.stdout
        assert "…" not in done.stdout  # every column has room at 80 characters
        assert len(json.loads((tmp_path / f"{command[0]}.json").read_text())["rows"]) == 2
        assert (tmp_path / f"{command[0]}.png").stat().st_size > 1000
    with pytest.raises(HeadEditError, match="--adapters: found '0'"):
        CliRunner().invoke(bench.app, ["route", "--adapters", "0"], catch_exceptions=False)


@pytest.mark.parametrize("command", [[], ["scaling"], ["route"]])
def test_the_help_of_bench_scaling_and_route_has_an_example(command):
    printed = CliRunner().invoke(bench.app, [*command, "--help"]).stdout
    text = " ".join(printed.replace("│", " ").split())
    assert " ".join(["headedit bench", *command]) in text.split("Example:")[1]


def test_a_ratio_above_the_largest_allowed_is_marked(cost):
    row = cost.row("step", "edited")
    assert _cells({**row, "ratio": 1.5})[4] == Text("1.500", style="red")
    assert _cells({**row, "ratio": 1.0})[4] == "1.000"
