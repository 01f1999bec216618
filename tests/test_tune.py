"""``headedit tune``: the published IST runs as one config and one command, and adapters of PEFT in any other run."""

import json
import random
import signal
from types import SimpleNamespace

import pytest
import torch
from run_inputs import save_model, save_records

from headedit import HeadEditError
from headedit.cli.main import main
from headedit.cli.train import NOTHING_LEARNT
from headedit.cli.tune import mean_of
from headedit.data.batches import ListedRows
from headedit.hf.loading import load_tokenizer
from headedit.training.config import read_run
from headedit.training.config.reading import tune_configs
from headedit.training.sparse.sparse_tuning import SparseTuning
from headedit.training.tuning import run as run_module
from headedit.training.tuning.config import read_tune
from headedit.training.tuning.rows import LearnsPrompts
from headedit.training.tuning.run import tune

peft = pytest.importorskip("peft")

CONFIGS = ["llama-dora-ist", "llama-lora-ist"]
ANSWERS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "social_i_qa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "ARC-Challenge": ["answer1", "answer2", "answer3", "answer4"],
    "ARC-Easy": ["answer1", "answer2", "answer3", "answer4"],
    "openbookqa": ["answer1", "answer2", "answer3", "answer4"],
}
ON_CPU = ["model.dtype=float32", "training.fp16=false"]
SHORT = {
    "data.valid": 8,
    "method": {"name": "lora", "rank": 4, "targets": ["q_proj", "down_proj"]},
    "training": {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-2},
    "logging.every": 1,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny Llama of 4 layers, commonsense_170k.json, and a folder of records for each task."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "model", num_hidden_layers=4)
    (folder / "made").mkdir()
    made = save_records(folder / "made", "commonsense", 40)
    (folder / "made" / "commonsense.json").rename(folder / "commonsense_170k.json")
    assert made.endswith("commonsense.json")
    draw = random.Random(0)
    for task, answers in ANSWERS.items():
        (folder / "dataset" / task).mkdir(parents=True)
        for split in ("train", "test"):
            rows = [
                {
                    "instruction": f"Question {i}?\n\nAnswer format: {'/'.join(answers)}",
                    "input": "",
                    "output": f"the correct answer is {answer}",
                    "answer": answer,
                }
                for i, answer in enumerate(draw.choices(answers, k=2))
            ]
            (folder / "dataset" / task / f"{split}.json").write_text(json.dumps(rows))
    return folder


def config(inputs, output, **changes):
    given = {
        "model.name": str(inputs / "model"),
        "data.train": str(inputs / "commonsense_170k.json"),
        "output": str(output),
        **SHORT,
    }
    return read_tune(None, given | changes)


def tuned(inputs, output, *, resume=False, **changes):
    return tune(config(inputs, output, **changes), resume=resume, progress=False)


def trainable(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_have_every_setting_of_the_published_scripts(name):
    run = read_tune(name)
    assert list(tune_configs()) == CONFIGS
    dora = name == "llama-dora-ist"
    assert run.model.name == ("meta-llama/Meta-Llama-3-8B" if dora else "yahma/llama-7b-hf")
    assert (run.method.name, run.method.rank, run.method.alpha) == ("dora" if dora else "lora", 32, 64)
    assert run.method.targets == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    assert run.method.dropout == 0.05
    assert (run.data.train, run.data.valid, run.data.max_length) == ("commonsense_170k.json", 120, 256)
    sparse = run.sparse
    assert (sparse.name, sparse.share, sparse.rollout_share, sparse.rollouts) == ("ist", 0.25, 0.5, 3)
    assert (sparse.every, sparse.batch_size, sparse.attenuation, sparse.rate) == (10, 16, 0.25, 10)
    assert run.training == {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 3.0,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 100.0,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "fp16": True,
        "eval_strategy": "steps",
        "eval_steps": 80.0,
        "save_strategy": "steps",
        "save_steps": 80.0,
        "save_total_limit": 3,
        "load_best_model_at_end": True,
    }
    assert run.arguments()["logging_steps"] == 10
    assert (run.train_on_inputs, run.seed, run.data.seed) == (True, 42, 42)
    tasks = ["boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_c", "arc_e", "obqa"]
    assert (run.evaluate.tasks, run.evaluate.data, run.evaluate.batch_size) == (tasks, "dataset", 1)
    assert run.evaluate.changes == {"max_new_tokens": 32, "num_beams": 4}


@pytest.mark.parametrize(("name", "sparse"), [("llama-lora-ist", "ist"), ("llama-dora-ist", "rst")])
def test_a_published_run_is_one_command_from_the_records_to_eight_reports(name, sparse, inputs, tmp_path, capsys):
    """On a tiny Llama with files in the published forms; rank, alpha and output are given as to the script."""
    output = tmp_path / "r4"
    words = ["tune", name, "--rank", "4", "--alpha", "8", "--output", str(output), "--sparse", sparse]
    words += ["--model", str(inputs / "model"), "--data", str(inputs / "commonsense_170k.json")]
    words += ["--task-data", str(inputs / "dataset")]
    smaller = ["data.valid=8", "training.eval_steps=2", "training.save_steps=2", "training.warmup_steps=1"]
    smaller += ["sparse.every=2", "sparse.batch_size=4", "evaluate.batch_size=8", "evaluate.changes.max_new_tokens=4"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *(word for setting in [*ON_CPU, *smaller] for word in ("--set", setting))])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    shape = json.loads((output / "adapter_config.json").read_text())
    assert (shape["r"], shape["lora_alpha"], shape["use_dora"]) == (4, 8, name == "llama-dora-ist")
    record = json.loads((output / "tune.json").read_text())
    assert (record["steps"], record["train_examples"], record["held_out"]["examples"]) == (6, 32, 8)
    assert sum(layer["times_trained"] for layer in record["layers"]) == 6  # int(4 · 0.25) = 1 layer per step
    assert any(layer["score"] for layer in record["layers"]) == (sparse == "ist")
    reports = sorted(file.stem for file in (output / "eval").glob("*.json"))
    assert reports == ["arc_c", "arc_e", "boolq", "hellaswag", "obqa", "piqa", "siqa", "winogrande"]
    assert "mean over 8 tasks" in (output / "eval" / "summary.md").read_text()
    assert not (output / "checkpoints").exists()
    again = read_tune(output)
    assert (again.method.rank, again.sparse.name, again.evaluate.batch_size) == (4, sparse, 8)


@pytest.mark.parametrize(
    ("method", "sparse", "named"),
    [
        ({"name": "lora", "rank": 2}, None, "lora_A"),
        ({"name": "lora", "rank": 2}, "rst", "lora_B"),
        ({"name": "dora", "rank": 2}, "ist", "lora_magnitude_vector"),
        ({"name": "ia3"}, "ist", "ia3_l"),
        ({"name": "ia3", "targets": ["k_proj", "down_proj"]}, None, "ia3_l"),
        ({"name": "ln"}, None, "layernorm"),
        ({"name": "ln"}, "ist", "layernorm"),
    ],
)
def test_every_method_trains_its_own_parameters_and_is_read_by_peft(method, sparse, named, inputs, tmp_path):
    changes = {"method": method, **({} if sparse is None else {"sparse": {"name": sparse, "share": 0.5, "every": 2}})}
    found = tuned(inputs, tmp_path / "out", **{**changes, "sparse": changes.get("sparse")})
    names = trainable(found.model)
    assert any(named in name for name in names)
    assert (found.record["layers"] is None) == (sparse is None)
    assert found.record["held_out"]["tuned"] < found.record["held_out"]["base"]
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        ours = found.inner(input_ids=ids).logits
        read = peft.PeftModel.from_pretrained(found.model.unload(), str(tmp_path / "out")).eval()
        assert torch.equal(read(input_ids=ids).logits, ours)
        with read.disable_adapter():
            assert not torch.equal(read(input_ids=ids).logits, ours)


def test_weights_in_sixteen_bits_get_an_adapter_in_thirty_two(inputs, tmp_path):
    """With bf16 as mixed precision, and the roll-outs of IST."""
    changes = {
        "model.dtype": "bfloat16",
        "model.device": "cpu",
        "training.bf16": True,
        "sparse": {"name": "ist", "every": 2},
    }
    found = tuned(inputs, tmp_path / "out", **changes)
    assert next(found.inner.parameters()).dtype == torch.bfloat16
    assert {value.dtype for value in trainable(found.model).values()} == {torch.float32}
    assert any(layer["score"] for layer in found.record["layers"])
    assert found.record["held_out"]["tuned"] < found.record["held_out"]["base"]


def test_a_run_that_was_stopped_ends_with_the_same_adapter_bit_for_bit(inputs, tmp_path, monkeypatch):
    """With dropout and IST, stopped in the third of eight steps by the signal of Ctrl-C."""
    changes = {
        "method.dropout": 0.2,
        "sparse": {"name": "ist", "every": 2, "batch_size": 4},
        "data.valid": None,
    }
    whole = tuned(inputs, tmp_path / "whole", **changes)
    plain = SparseTuning.on_step_end

    def stopping(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if int(self.times_trained.sum()) == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(SparseTuning, "on_step_end", stopping)
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3, which is saved"):
            tuned(inputs, tmp_path / "stopped", **changes)
    with pytest.raises(HeadEditError, match=r"holds a run that was stopped; continue it with --resume"):
        tuned(inputs, tmp_path / "stopped", **changes)
    with pytest.raises(HeadEditError, match=r"the run in it has another 'seed', 0 for 1"):
        tuned(inputs, tmp_path / "stopped", resume=True, seed=1, **changes)
    resumed = tuned(inputs, tmp_path / "stopped", resume=True, **changes)
    assert resumed.record["layers"] == whole.record["layers"]
    ours, theirs = trainable(resumed.model), trainable(whole.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    finished = tuned(inputs, tmp_path / "stopped", resume=True, **changes)
    assert finished.record == resumed.record
    with pytest.raises(HeadEditError, match=r"holds a finished run\. Choose another output folder"):
        tuned(inputs, tmp_path / "stopped", **changes)


def test_a_checkpoint_that_is_not_complete_is_not_resumed_from(inputs, tmp_path, monkeypatch):
    changes = {"data.valid": None, "training.save_strategy": "steps", "training.save_steps": 2}
    whole = tuned(inputs, tmp_path / "whole", **changes)
    plain = run_module.mark_complete

    def killed(folder, *args):
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt
        plain(folder, *args)

    monkeypatch.setattr(run_module, "mark_complete", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(inputs, tmp_path / "killed", **changes)
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-4").is_dir()
    monkeypatch.setattr(run_module, "mark_complete", plain)
    resumed = tuned(inputs, tmp_path / "killed", resume=True, **changes)
    theirs = trainable(whole.model)
    assert all(torch.equal(value, theirs[name]) for name, value in trainable(resumed.model).items())


def test_prompts_are_learned_where_the_config_says_so(inputs, tmp_path):
    rows = ListedRows([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])
    assert LearnsPrompts(rows)[0] == {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    assert [row["labels"] for row in LearnsPrompts(rows)[:1]] == [[5, 6, 7]]
    assert rows[0]["labels"] == [-100, -100, 7]
    short = {"training.max_steps": 1, "training.save_strategy": "no", "data.valid": None}
    losses = [
        json.loads((tmp_path / str(on) / "history.jsonl").read_text().splitlines()[0])["loss"]
        for on in (True, False)
        if tuned(inputs, tmp_path / str(on), train_on_inputs=on, **short)
    ]
    assert losses[0] != losses[1]


MISTAKES = {
    "bottleneck": ({"method": "bottleneck"}, r"method: 'bottleneck' is not here: .*does not work with transformers 5"),
    "prefixes": ({"method": "prefix-tuning"}, r"method: 'prefix-tuning' is not here"),
    "a method": ({"method": "lorra"}, r"method: there is no 'lorra'\. Did you mean 'lora'\?"),
    "a rank": ({"method.rank": 0}, r"method: rank: found 0, expected a number above 0"),
    "a rank of ia3": ({"method": {"name": "ia3", "rank": 4}}, r"rank: is for lora and dora, and 'ia3' has none"),
    "a dropout": ({"method.dropout": 1.0}, r"method: dropout: found 1\.0, expected a share"),
    "a sparse method": ({"sparse": "isst"}, r"name: found 'isst'.*Did you mean 'ist'"),
    "a share": ({"sparse": {"name": "ist", "share": 0}}, r"share: found 0"),
    "an argument": ({"training.learning_rat": 1}, r"unknown key 'learning_rat'"),
    "an argument elsewhere": ({"training.seed": 1}, r"training: 'seed' is given as seed, not here"),
    "a key": ({"lora_r": 8}, r"unknown key 'lora_r'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_config_is_named(mistake, inputs, tmp_path):
    changes, message = MISTAKES[mistake]
    given = {"model.name": "m", "data.train": "d.json", "method": "lora"}
    with pytest.raises(HeadEditError, match=message):
        read_tune(None, given | changes)


def test_a_mistake_that_the_model_shows_is_named_before_training(inputs, tmp_path):
    with pytest.raises(
        HeadEditError, match=r"PEFT cannot put 'lora' on a model of the type 'llama': .*method\.targets"
    ):
        tuned(inputs, tmp_path / "out", method={"name": "lora", "targets": ["c_attn"]})
    with pytest.raises(HeadEditError, match=r"training: fp16: needs a GPU.*training\.fp16=false"):
        tuned(inputs, tmp_path / "out", **{"training.fp16": True})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    with pytest.raises(HeadEditError, match=r"holds adapter_config\.json, which is not of a run of headedit tune"):
        tuned(inputs, tmp_path / "mine")
    assert not (tmp_path / "out").exists()


def test_a_run_that_learns_nothing_says_so_and_ends_with_its_own_exit_code(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "_held_out", lambda *given: {"examples": 8, "base": 1.0, "tuned": 1.02})
    words = ["tune", "--model", str(inputs / "model"), "--data", str(inputs / "commonsense_170k.json"), "--rank", "2"]
    settings = ["data.valid=8", "training.max_steps=4"]
    given = [word for setting in settings for word in ("--set", setting)]
    given += ["--set", "logging.report_to=tensorboard", "--set", "logging.every=1"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *given, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert ended.value.code == NOTHING_LEARNT, printed.err
    assert "nothing learnt: The tuned model is worse than the base on 8 held-out examples" in printed.out
    assert list((tmp_path / "out" / "logs").glob("events.*"))


def test_a_tracker_that_is_not_there_is_refused_before_the_model_is_loaded(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    given = config(inputs, tmp_path / "out", **{"logging.report_to": "wandb", "model.name": "no/such-model"})
    with pytest.raises(HeadEditError, match=r"pip install wandb"):
        tune(given, progress=False)


def test_several_processes_are_refused_by_name(inputs, tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(HeadEditError, match=r"headedit tune runs in one process, and this is one of 2"):
        tuned(inputs, tmp_path / "out")


def test_a_config_of_the_other_command_is_named_as_one():
    with pytest.raises(HeadEditError, match=r"is a config of another command: headedit tune llama-lora-ist"):
        read_run("llama-lora-ist")
    with pytest.raises(HeadEditError, match=r"It is a config of headedit train: headedit train cpu-small"):
        read_tune("cpu-small")
    with pytest.raises(HeadEditError, match=r"Did you mean 'llama-lora-ist'\?"):
        read_tune("llama-lora-its")


@pytest.mark.parametrize(
    ("read", "section", "command"), [(read_run, "method: lora", "tune"), (read_tune, "recipe: {name: jola}", "train")]
)
def test_a_file_of_the_other_command_is_named_as_one(read, section, command, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: {{name: m}}\ndata: {{train: d.json}}\n{section}\n")
    with pytest.raises(HeadEditError, match=rf"so it is a config of another command: headedit {command} .*run\.yaml"):
        read(tmp_path / "run.yaml")


def test_config_list_and_show_have_the_configs_of_tune(capsys):
    for words in (["config", "list"], ["config", "show", "llama-dora-ist"]):
        with pytest.raises(SystemExit):
            main(words)
    printed = capsys.readouterr().out
    assert "headedit tune CONFIG" in printed
    assert "name: dora" in printed


def test_a_tokenizer_whose_padding_the_model_does_not_have_pads_with_another_token(inputs, tmp_path):
    model = save_model(tmp_path / "model", num_hidden_layers=1)
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([f"[{i}]" for i in range(500)])
    tokenizer.pad_token = "[499]"
    tokenizer.save_pretrained(model)
    run = tuned(inputs, tmp_path / "out", **{"model.name": model, "training.num_train_epochs": 1})
    assert run.record["steps"] == 4


def test_the_mean_over_tasks_is_in_per_cent_for_accuracy_alone():
    def reports(metric, *values):
        return [SimpleNamespace(metric=metric, score=SimpleNamespace(value=value)) for value in values]

    assert mean_of(reports("accuracy", 0.5, 0.75)) == "mean over 2 tasks: 62.50"
    assert mean_of(reports("bleu", 30.0, 40.0)) == "mean over 2 tasks: 35.00"
    assert mean_of(reports("bleu", 30.0)) is None
    assert mean_of([*reports("bleu", 30.0), *reports("accuracy", 0.5)]) is None
