"""Files that anyone might hand in: each is read, or refused with a HeadEditError, within a second.

The suite tries some thousands, the same ones every time. HEADEDIT_FUZZ=40 tries 40 times as many, from other draws.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import CHANGES, dump_json, dump_yaml, mutate_bytes, mutate_data, mutate_safetensors, mutate_text
from tiny import randomise, tiny_model
from tokenizers_tiny import CHATML, MARKED, byte_level

import headedit
from headedit import HeadEditError
from headedit.data.config import DataConfig
from headedit.data.loading import load_data
from headedit.data.records import read_records
from headedit.edits.files.storage import read
from headedit.evaluation.answers.predictions import resume
from headedit.evaluation.reports.saved_runs import read_run as read_reports
from headedit.evaluation.tasks.records import load_examples, load_rows
from headedit.evaluation.tasks.task_files import find_task, read_task
from headedit.evaluation.tasks.templates import render
from headedit.interpret.report import page
from headedit.io.strict import read_assignments
from headedit.runs.history import History
from headedit.runs.pruning_path import PruningPath
from headedit.runs.run import Run
from headedit.specs.registry import packaged_folder
from headedit.specs.schema import read_spec
from headedit.training.config import read_run
from headedit.training.config.reading import shipped_configs
from headedit.training.sweep.config import SweepConfig, plan_sweep

PACKAGE = Path(headedit.__file__).parent
TIMES = int(os.environ.get("HEADEDIT_FUZZ", "1"))
SECONDS = 1.0


def fuzz(examples):
    """Settings of a test that tries so many examples, or a multiple of them."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        phases=[Phase.generate, *([Phase.shrink] if TIMES == 1 else [])],
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def attempt(call):
    """Calls; a HeadEditError is as good as a result, whatever else is raised or takes long is not."""
    started = time.process_time()
    with contextlib.suppress(HeadEditError):
        call()
    assert time.process_time() - started < SECONDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """The libraries that are imported on use, so that no example is charged for it."""
    read_run("cpu-small", {"model.name": "x", "data.train": "y", "training.learning_rate": 1.0})


# Specs.

SPECS = sorted(packaged_folder().glob("*.yaml"))


@given(st.integers(0, 1000), CHANGES)
@fuzz(300)
def test_a_spec_is_read_or_refused(folder, number, changes):
    file = folder / "spec.yaml"
    text = SPECS[number % len(SPECS)].read_text()
    file.write_bytes(mutate_text(text, changes, yaml.safe_load, dump_yaml))

    def use():
        spec = read_spec(file)
        spec.digest()
        (spec.position, spec.offset, spec.to_dict())

    attempt(use)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@given(changes=CHANGES)
@fuzz(100)
def test_a_spec_fits_a_model_or_is_refused(folder, llama, changes):
    file = folder / "llama.yaml"
    text = (packaged_folder() / "llama.yaml").read_text()
    spec = {**yaml.safe_load(text), "model_types": ["llama"]}
    file.write_text(dump_yaml({**mutate_data(spec, changes), "model_types": ["llama"]} if changes else spec))

    def use():
        headedit.attach(llama, spec=file)

    try:
        attempt(use)
    finally:
        if "headedit" in llama._modules:
            headedit.handle(llama).detach()


# Edits.


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The files of saved edits by name, full and hardened."""
    found = []
    for hardened in (False, True):
        edits = headedit.attach(tiny_model("llama"))
        randomise(edits)
        place = tmp_path_factory.mktemp("edits")
        edits.save_pretrained(place, hardened=hardened)
        found.append({file.name: file.read_bytes() for file in place.iterdir()})
    return found


@given(st.integers(0, 1), st.integers(0, 15), CHANGES)
@fuzz(100)
def test_a_folder_of_edits_is_read_or_refused(folder, stored, llama, form, which, changes):
    place = folder / "edits"
    place.mkdir(exist_ok=True)
    files = dict(stored[form])
    name = sorted(files)[which % len(files)]
    if name.endswith(".json"):
        files[name] = mutate_text(files[name].decode(), changes, json.loads, dump_json)
    elif name.endswith(".safetensors"):
        files[name] = mutate_safetensors(files[name], changes)
        files = {other: _with_hash(payload, stored[form][name], files[name]) for other, payload in files.items()}
    else:
        files[name] = mutate_bytes(files[name], changes)
    for other, payload in files.items():
        (place / other).write_bytes(payload)
    attempt(lambda: read(place).gates())
    try:
        attempt(lambda: headedit.load(llama, place))
    finally:
        if "headedit" in llama._modules:
            headedit.handle(llama).detach()


def _with_hash(payload, before, after):
    """A file that names the hash of the tensors, with the hash of the changed ones."""
    return payload.replace(hashlib.sha256(before).hexdigest().encode(), hashlib.sha256(after).hexdigest().encode())


# Data.

RECORDS = [
    {"prompt": "a b", "response": "c"},
    {"prompt": "a", "completion": "b", "system": "s"},
    {"instruction": "i", "answer": "x", "input": ""},
    {"instruction": "i", "output": "y", "input": "z"},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"input_ids": [1, 5, 6], "labels": [-100, 5, 6]},
]
TOKENIZERS = [byte_level(CHATML), byte_level(MARKED), byte_level()]
TEMPLATES = [None, "alpaca", "chatml", "chat", "plain"]


def as_lines(rows):
    rows = rows if isinstance(rows, list) else [rows]
    return "".join(dump_json(row) + "\n" for row in rows)


def as_csv(rows):
    text = io.StringIO()
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    writer = csv.writer(text)
    writer.writerow(list(rows[0]) if rows else [])
    writer.writerows([[str(value) for value in row.values()] for row in rows])
    return text.getvalue()


def loaded_lines(text):
    return [json.loads(line) for line in text.splitlines()]


@given(st.integers(0, 6), st.sampled_from([".jsonl", ".json", ".csv"]), st.integers(0, 119), CHANGES)
@fuzz(600)
def test_a_data_file_is_read_or_refused(folder, kind, ending, options, changes):
    file = folder / f"data{ending}"
    rows = [RECORDS[kind], *RECORDS[:3], RECORDS[kind]]
    dump, load = {
        ".jsonl": (as_lines, loaded_lines),
        ".json": (dump_json, json.loads),
        ".csv": (as_csv, lambda text: [dict(row) for row in csv.DictReader(io.StringIO(text))]),
    }[ending]
    file.write_bytes(mutate_text(dump(rows), changes, load, dump))
    attempt(lambda: read_records(file, skip_broken=options % 2 == 0))
    attempt(
        lambda: load_data(
            DataConfig(train=str(file), skip_malformed=options % 2 == 0, template=TEMPLATES[options // 2 % 5]),
            TOKENIZERS[options // 10 % 3],
            context=64,
            progress=False,
        )
    )


@given(CHANGES)
@fuzz(100)
def test_a_parquet_file_is_read_or_refused(folder, changes):
    pandas = pytest.importorskip("pandas")
    payload = io.BytesIO()
    pandas.DataFrame([RECORDS[0], RECORDS[4], RECORDS[5]])[["prompt", "response"]].to_parquet(payload)
    file = folder / "data.parquet"
    file.write_bytes(mutate_bytes(payload.getvalue(), changes))
    attempt(lambda: read_records(file, skip_broken=True))


@given(st.integers(0, 6), CHANGES)
@fuzz(600)
def test_examples_in_python_are_encoded_or_refused(kind, changes):
    from headedit.data.encoding import encode

    rows = mutate_data([RECORDS[kind], ("a", "b")], changes)
    attempt(lambda: encode(rows, TOKENIZERS[0], max_length=64, name="training", progress=False))


# Tasks.

TASKS = sorted((PACKAGE / "evaluation" / "tasks" / "shipped").glob("*.yaml"))
OWN_TASK = """\
prompt: "{% for o in options %}{{ labels[loop.index0] }}. {{ o | trim }}\\n{% endfor %}{{ q.text ~ n }}"
answer: right
options: choices
response: "so {{ answer }}"
group: kind
metrics: [accuracy]
"""
QUESTIONS = [{"q": {"text": "which"}, "n": 3, "choices": ["a", "b"], "right": "b", "kind": "x"}] * 2


@given(st.integers(0, 100), CHANGES, CHANGES, st.booleans())
@fuzz(300)
def test_a_task_and_its_records_are_read_or_refused(folder, number, changes, others, skip):
    file = folder / "task.yaml"
    text = OWN_TASK if number % 2 else TASKS[number % len(TASKS)].read_text()
    file.write_bytes(mutate_text(text, changes, yaml.safe_load, dump_yaml) if number % 3 else text.encode())
    rows = mutate_data(QUESTIONS, others)

    def use():
        task = read_task(file)
        load_examples(task, load_rows(task, rows), TOKENIZERS[0], limit=1, seed=0, skip_broken=skip)

    attempt(use)


PIECES = [
    "{{ q }}",
    "{{ q.text }}",
    "{{ n ** n }}",
    "{{ 'ab' * n }}",
    "{% for a in range(n) %}",
    "{% endfor %}",
    "{% if q %}",
    "{% endif %}",
    "{{ q | tojson }}",
    "{{ choices | join(', ') }}",
    "{% set x = [x, x] %}",
    "{{ x ~ x }}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(n) }}",
    "{{ q.text.center(n) }}",
    "{{ choices[n] }}",
    "{{ choices[::-1] }}",
    "{{ n / 0 }}",
    "{{ '%s %d' % (q, n) }}",
    "{{ '{:>9}'.format(n) }}",
    "{% set x %}",
    "{% endset %}",
    "{{ lipsum(n) }}",
    "{{ x | sort }}",
    "{{ dict(a=n) | dictsort }}",
    "{{ n | round(n) }}",
    "{{ q is mapping }}",
    "{{ n in choices }}",
    "{{ q == choices }}",
    "{{ namespace(a=q).a }}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{{ loop.index }}",
    "{{ cycler(1, 2).next() }}",
    "{{ 'a' | indent(n) }}",
    "{{ q | batch(n) | list }}",
    "{{ q.__class__ }}",
    "{{ self }}",
    "{{ caller() }}",
    "{{ 10**9 }}",
    "{% call f(1) %}",
    "{% endcall %}",
    "{% raw %}",
    "{% endraw %}",
    "{# #}",
    "{{",
    "}}",
    "{%",
    "%}",
    "-",
    "text ",
    "\n",
    "{{ x | sum(start=[]) }}",
    "{{ choices | map('upper') | list }}",
    "{{ (n, n) in {} }}",
    "{{ 'a'.join(choices) }}",
    "{{ q.text.replace('', 'x' * n) }}",
    "{{ n.to_bytes(n, 'big') }}",
    "{% block b %}",
    "{% endblock %}",
    "{{ self.b() }}",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=8), st.sampled_from([0, 3, 40, 99999, 10**12, -1, "a", None, [], 2.5])
)
@fuzz(1000)
def test_a_template_of_any_pieces_is_rendered_or_refused(pieces, number):
    attempt(lambda: render("".join(pieces), {**QUESTIONS[0], "n": number, "x": "x"}, "record 1"))


@given(st.sampled_from(["scoring", "prompt", "options", "num_beams", "metrics", "data", "only", "nothing"]), CHANGES)
@fuzz(400)
def test_a_change_of_a_task_is_taken_or_refused(key, changes):
    value = mutate_data([1], changes)
    attempt(lambda: find_task("boolq", **{key: value[0] if isinstance(value, list) and value else value}))


# Runs and sweeps.

CONFIGS = sorted(shipped_configs().values())
RUN = """\
model: {name: ./model, dtype: float32, device: cpu}
data: {train: [a.jsonl, b.jsonl], valid: 0.1, template: alpaca, max_length: 64}
edits: {layers: "0:2", sites: [attention], gates: separate, stretch: [-0.1, 1.1]}
recipe: {name: jola, epochs: 2, batch_size: 4}
training: {learning_rate: 1e-3, warmup_ratio: 0.1}
logging: {report_to: none, every: 5}
seed: 1
output: out
"""
SWEEP = """\
base: cpu-small
output: out/{task}
set: {model.name: m, data.train: "{task}.json"}
tasks: {one: {epochs: 1}, two: {}}
fields: {recipe.name: [jola, localise], layers: ["0:2", "1:3"]}
seeds: [0, 1]
evaluate: {tasks: [boolq], limit: 5, changes: {num_beams: 1}}
"""


@given(st.integers(0, 100), CHANGES, CHANGES)
@fuzz(150)
def test_the_file_of_a_run_and_its_overrides_are_read_or_refused(folder, number, changes, others):
    file = folder / "run.yaml"
    text = RUN if number % 3 else CONFIGS[number % len(CONFIGS)].read_text()
    file.write_bytes(mutate_text(text, changes, yaml.safe_load, dump_yaml))
    overrides = mutate_data({"epochs": 1, "training.learning_rate": 1e-3, "model": {"name": "x"}}, others)

    def use():
        config = read_run(file, overrides if number % 2 and isinstance(overrides, dict) else None)
        config.arguments()
        config.save(folder / "saved")
        assert read_run(folder / "saved" / "run.yaml").to_dict() == config.absolute().to_dict()

    attempt(use)


@given(CHANGES)
@fuzz(400)
def test_settings_of_a_command_are_read_or_refused(changes):
    text = mutate_bytes(b"training.learning_rate=1e-3", changes).decode("utf-8", "surrogateescape")

    def use():
        values = read_assignments([text, "epochs=2"])
        read_run(None, {"model.name": "x", "data.train": "a.json", **values})

    attempt(use)


@given(CHANGES)
@fuzz(150)
def test_a_sweep_is_planned_or_refused(folder, changes):
    file = folder / "sweep.yaml"
    file.write_bytes(mutate_text(SWEEP, changes, yaml.safe_load, dump_yaml))
    attempt(lambda: plan_sweep(SweepConfig.read(file)))


# What runs and evaluations leave behind.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The files of a run by name."""
    from headedit.edits.gate_set import GateIndex
    from headedit.runs.pruning_path import Level

    place = tmp_path_factory.mktemp("run")
    edits = headedit.attach(tiny_model("llama"))
    randomise(edits)
    edits.save_pretrained(place)
    spread = {"mean": 1.0, "std": 0.1, "values": [1.0, 1.1]}
    record = {
        "recipe": "localise",
        "settings": {"epochs": 2, "scale_lr": 0.05, "heads": None},
        "seed": 0,
        "base_model": "m",
        "train_examples": 12,
        "valid_examples": 6,
        "steps": 46,
        "kept_step": 46,
        "best_eval_loss": 5.9,
        "seconds": 4.05,
        "test_loss": 1.5,
        "test_loss_base": 2.5,
        "open": {"any": {"open": 8, "of": 8}, "offset": {"open": 8, "of": 8}},
        "controls": {"random heads": {"gates": 12, "validation_loss": 5.9, "metric": None}},
        "stability": {
            "seeds": [0, 1],
            "heads": [8, 8],
            "jaccard": 1.0,
            "chance": 1.0,
            "validation_loss": spread,
            "metric": None,
        },
    }
    (place / "run.json").write_text(json.dumps(record))
    gates = [{"offset": [0.5, 0.1], "scale": [0.5, 0.2]}] * 2
    rates = {"learning_rate": 0.1, "gate_learning_rate": 0.1, "lambda_offset": 0.1, "lambda_scale": 0.0}
    common = {"open_offset": 4.0, "open_scale": 4.0, "gates": gates, "penalty": 0.1, **rates}
    rows = [{"step": i, "epoch": i, "stage": f"s{i // 2}", "loss": 1 / i, **common} for i in (1, 2, 3)]
    rows += [{"step": 3, "epoch": 3, "eval_loss": 0.5}, {"step": 3, "kept": True}]
    (place / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "data.json").write_text(json.dumps({"train": {"read": 12, "sources": ["a"]}, "overlap": {}, "seed": 0}))
    order = [GateIndex(0, "offset", 1), GateIndex(1, "scale", 2)]
    levels = [
        Level(
            order=order[:n],
            vectors={"0.offset": edits.module.site_edits[0].vectors["offset"][:1].detach().clone()},
            loss=1.0 / n,
            standard_error=0.1,
        )
        for n in (2, 1)
    ]
    PruningPath(levels, 1).save(place)
    (place / "run.yaml").write_text(RUN)
    return {file.name: file.read_bytes() for file in place.iterdir()}


def mutated(files, which, changes):
    """The files, one of them changed."""
    name = sorted(files)[which % len(files)]
    if name.endswith(".json"):
        payload = mutate_text(files[name].decode(), changes, json.loads, dump_json)
    elif name.endswith(".jsonl"):
        payload = mutate_text(files[name].decode(), changes, loaded_lines, as_lines)
    elif name.endswith(".safetensors"):
        payload = mutate_safetensors(files[name], changes)
    else:
        payload = mutate_bytes(files[name], changes)
    return {**files, name: payload}


@given(st.integers(0, 63), CHANGES)
@fuzz(60)
def test_the_folder_of_a_run_is_reported_or_refused(folder, run, which, changes):
    place = folder / "run"
    place.mkdir(exist_ok=True)
    for name, payload in mutated(run, which, changes).items():
        (place / name).write_bytes(payload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "pictures", lambda *args: [])  # which take a second; see the next test
        attempt(lambda: page.report(place))
    attempt(lambda: Run.read(place).stability)
    attempt(lambda: PruningPath.read(place).first(gates=1))
    attempt(lambda: History.read(place).column("loss"))


@given(st.sampled_from(["history.jsonl", "path.json", "run.json", "path.safetensors"]), CHANGES)
@fuzz(6)
def test_the_plots_of_a_run_are_drawn_or_refused(folder, run, name, changes):
    import matplotlib.pyplot as plt

    place = folder / "plotted"
    place.mkdir(exist_ok=True)
    for other, payload in mutated(run, sorted(run).index(name), changes).items():
        (place / other).write_bytes(payload)
    for seed in (1,):
        (place / f"seed-{seed}").mkdir(exist_ok=True)
        for other, payload in run.items():
            (place / f"seed-{seed}" / other).write_bytes(payload)
    draw = {"h": headedit.plot.history, "p": headedit.plot.path, "r": headedit.plot.stability}[name[0]]
    try:
        attempt(lambda: draw(place))
    finally:
        plt.close("all")


@given(CHANGES)
@fuzz(300)
def test_a_report_and_predictions_of_an_evaluation_are_read_or_refused(folder, changes):
    report = {
        "task": "t",
        "n": 3,
        "metric": "accuracy",
        "scoring": "generation",
        "base": None,
        "left_out": [],
        "score": {"metrics": {"accuracy": 0.5}, "interval": [0.1, 0.9], "groups": {}, "unparsed": 0, "seconds": 1.0},
        "constant": {"answer": "a", "value": 0.3},
        "settings": {"model": "m", "weights": "0"},
    }
    line = {
        "system": "model",
        "row": 0,
        "where": "w",
        "text": "t",
        "prediction": None,
        "answers": ["a"],
        "tokens": 1,
        "seconds": 0.1,
        "scores": [0.1],
    }
    header = {"kind": "headedit predictions", "task": {"name": "t"}, "weights": "0"}
    file = folder / "report.json"
    file.write_bytes(mutate_text(json.dumps(report), changes, json.loads, dump_json))
    attempt(lambda: read_reports(file))
    file = folder / "p.predictions.jsonl"
    file.write_bytes(mutate_text(as_lines([header, line, line]), changes, loaded_lines, as_lines))
    attempt(lambda: resume(file, {"task": {"name": "t"}, "weights": "0"}, {"weights": "weights"}))
