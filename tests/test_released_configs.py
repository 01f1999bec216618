"""Configs of the published projects become runs: every key of theirs is mapped, or named with the reason why not."""

import dataclasses
import json

import pytest
import yaml
from run_inputs import save_model
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError, RunConfig
from headedit.cli import import_edits
from headedit.cli.main import main
from headedit.data import data_from_list
from headedit.data.sources import read_rows
from headedit.errors import RELEASED_MODELS
from headedit.evaluation.tasks.task_files import find_task
from headedit.hf.loading import load_model
from headedit.training.config import read_run
from headedit.training.config.released import read_flags, read_released
from headedit.training.config.released.flags import FLAGS, command_in

JOLA = """
model_config:
  pretrained_model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
  device: cuda
  cache_dir: /data/cache
  applied_module: attention
  base_model_name: llama3.1_8B_chat
training_config:
  learning_rate: 0.005
  lr_scheduler_type: cosine
  warmup_steps: 50
  per_device_train_batch_size: 8
  per_device_eval_batch_size: 8
  num_train_epochs: 20
  evaluation_strategy: epoch
  save_strategy: epoch
  load_best_model_at_end: True
  save_total_limit: 1
  report_to: wandb
  logging_strategy: epoch
  seed: 42
  do_train: True
  do_eval: True
  bf16: False
  output_dir: ./output
data_config:
  train_size: 200
  task_name: common_reason
  data_path: /data/commonsense/ARC-c
jola_config:
  gate_lambda: 0.00004
  gate_scheduler: expon
"""

FORK = """
model_config:
  pretrained_model_name_or_path: embraceableAI/OLMo-2-1124-13B-Instruct-16k-Context-FT-ChatML
  device: cuda
  cache_dir: null
  applied_module: attention
  base_model_name: olmo2_13b_instruct_16k
training_config:
  learning_rate: 0.0001
  lr_scheduler_type: cosine
  warmup_steps: 100
  weight_decay: 0.01
  per_device_train_batch_size: 4
  per_device_eval_batch_size: 4
  gradient_accumulation_steps: 4
  num_train_epochs: 10
  max_steps: null
  evaluation_strategy: epoch
  save_strategy: epoch
  load_best_model_at_end: true
  save_total_limit: 3
  metric_for_best_model: eval_loss
  greater_is_better: false
  report_to: wandb
  logging_strategy: steps
  logging_steps: 10
  logging_first_step: true
  seed: 42
  dataloader_pin_memory: true
  do_train: true
  do_eval: true
  do_predict: false
  bf16: true
  fp16: false
  dataloader_num_workers: 4
  max_grad_norm: 1.0
  output_dir: ./output/olmo2
  overwrite_output_dir: true
  save_steps: 500
  eval_steps: 500
  early_stopping_patience: 3
  early_stopping_threshold: 0.001
data_config:
  train_size: 5000
  valid_size: 500
  test_size: 500
  task_name: sharegpt
  data_path: sharegpt_training_data_combined_final_solution_correctness_100.jsonl
  format_type: chatml
  max_length: 30000
  split_ratio: 0.8
jola_config:
  gate_lambda: 0.00004
  gate_scheduler: expon
  gate_warmup_steps: 100
hardware_config:
  device_map: auto
  torch_dtype: bfloat16
  use_flash_attention: true
  use_gradient_checkpointing: true
logging_config:
  project_name: jola-olmo2
  run_name: olmo2-13b
  tags: [olmo2, jola]
"""

ON_A_CPU = {
    "model_config.device": "cpu",
    "training_config.warmup_steps": 50,
    "training_config.per_device_train_batch_size": 1,
    "training_config.per_device_eval_batch_size": 1,
    "training_config.gradient_accumulation_steps": 8,
    "training_config.num_train_epochs": 3,
    "training_config.load_best_model_at_end": False,
    "training_config.save_total_limit": 1,
    "training_config.report_to": None,
    "training_config.logging_steps": 50,
    "training_config.dataloader_pin_memory": False,
    "training_config.dataloader_num_workers": 0,
    "training_config.bf16": False,
    "training_config.save_steps": 1000,
    "training_config.eval_steps": 1000,
    "training_config.early_stopping_patience": 2,
    "data_config.train_size": 100,
    "data_config.valid_size": 20,
    "data_config.test_size": 20,
    "data_config.max_length": 1024,
    "jola_config.gate_warmup_steps": 50,
    "hardware_config.device_map": None,
    "hardware_config.torch_dtype": "float32",
    "hardware_config.use_flash_attention": False,
}

WITHOUT_COUNTERPART = {
    JOLA: {
        "model_config.cache_dir",
        "model_config.base_model_name",
        "training_config.do_train",
        "training_config.do_eval",
        "training_config.bf16",
        "jola_config.gate_lambda",
    },
    FORK: {
        "model_config.cache_dir",
        "model_config.device",
        "model_config.base_model_name",
        "training_config.max_steps",
        "training_config.logging_strategy",
        "training_config.do_train",
        "training_config.do_eval",
        "training_config.do_predict",
        "training_config.bf16",
        "training_config.fp16",
        "training_config.overwrite_output_dir",
        "training_config.save_steps",
        "training_config.eval_steps",
        "data_config.split_ratio",
        "jola_config.gate_lambda",
        "jola_config.gate_warmup_steps",
    },
}


def keys_of(text):
    return [f"{section}.{key}" for section, keys in yaml.safe_load(text).items() for key in keys]


def saved(text, folder, changes=None):
    data = yaml.safe_load(text)
    for path, value in (changes or {}).items():
        section, key = path.split(".")
        data.setdefault(section, {})[key] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


@pytest.mark.parametrize("text", [JOLA, FORK], ids=["jola", "fork"])
def test_every_key_of_the_published_files_is_mapped_or_named_with_a_reason(text, tmp_path):
    found = read_released(saved(text, tmp_path))
    assert [line.key for line in found.lines] == keys_of(text)
    assert {line.key for line in found.lines if not line.run} == WITHOUT_COUNTERPART[text]
    assert all(line.run or line.reason for line in found.lines)
    for line in found.lines:
        if not line.run:
            assert f"#   {line.key}: " in found.text()
            assert line.reason in found.text()


def test_the_file_of_jola_becomes_this_run(tmp_path):
    found = read_released(saved(JOLA, tmp_path))
    folder = "/data/commonsense/ARC-c"
    assert yaml.safe_load(found.text()) == found.run
    assert found.run == {
        "model": {"name": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "float32", "device": "cuda"},
        "data": {
            **{split: f"{folder}/{split}.json" for split in ("train", "valid", "test")},
            "examples": 200,
            "valid_examples": 200,
            "format": "llm-adapters",
            "template": "alpaca",
            "max_length": 400,
            "too_long": "drop",
            "seed": 42,
        },
        "edits": {"sites": ["attention"]},
        "recipe": {
            "name": "jola-released",
            "patience": 2,
            "lambda_schedule": "exponential",
            "lambda_offset": 0.1,
        },
        "training": {
            "learning_rate": 0.005,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 50,
            "num_train_epochs": 20,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "save_total_limit": 1,
            "logging_strategy": "epoch",
        },
        "logging": {"report_to": "wandb"},
        "seed": 42,
        "output": "./output",
    }


def test_the_file_of_the_fork_becomes_this_run(tmp_path):
    run = read_released(saved(FORK, tmp_path)).run
    assert run["model"] == {
        "name": "embraceableAI/OLMo-2-1124-13B-Instruct-16k-Context-FT-ChatML",
        "dtype": "bfloat16",
        "device_map": "auto",
        "attn_implementation": "best",
    }
    assert run["data"] == {
        "train": "sharegpt_training_data_combined_final_solution_correctness_100.jsonl",
        "examples": 5000,
        "valid": 500,
        "test": 500,
        "format": "sharegpt",
        "skip_malformed": True,
        "template": "chatml",
        "max_length": 30000,
        "too_long": "drop",
        "seed": 42,
    }
    assert (run["recipe"]["patience"], run["recipe"]["early_stopping_threshold"]) == (3, 0.001)
    kept = {
        "learning_rate": 1e-4,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 10,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_total_limit": 3,
        "logging_first_step": True,
        "dataloader_num_workers": 4,
    }
    assert {key: run["training"][key] for key in kept} == kept
    assert run["logging"] == {
        "report_to": "wandb",
        "every": 10,
        "project": "jola-olmo2",
        "run_name": "olmo2-13b",
        "tags": ["olmo2", "jola"],
    }


def test_the_forks_file_for_a_cpu_becomes_another_run(tmp_path):
    run = read_released(saved(FORK, tmp_path, ON_A_CPU)).run
    assert run["model"] == {**run["model"], "dtype": "float32", "device": "cpu"}
    assert "device_map" not in run["model"]
    assert "attn_implementation" not in run["model"]
    assert run["logging"]["report_to"] == "none"
    assert run["training"]["load_best_model_at_end"] is False
    assert (run["recipe"]["patience"], run["data"]["valid"], run["data"]["max_length"]) == (2, 20, 1024)


VARIANTS = {
    "a file for conversations": (
        {
            "training_config.learning_rate": 0.003,
            "training_config.gradient_accumulation_steps": 4,
            "training_config.max_grad_norm": 1.0,
            "training_config.logging_steps": 50,
            "data_config.valid_size": 200,
            "data_config.format_type": "chatml",
        },
        {"training.max_grad_norm": 1.0, "data.valid_examples": 200, "data.template": "chatml"},
    ),
    "short floats": ({"training_config.bf16": True}, {"model.dtype": "bfloat16"}),
    "a schedule of lambda": (
        {"jola_config.gate_scheduler": "linear"},
        {"recipe.lambda_schedule": "linear", "recipe.lambda_offset": 0.2},
    ),
    "no schedule": (
        {"jola_config.gate_scheduler": "", "jola_config.gate_lambda": 0.01},
        {"recipe.lambda_schedule": "constant", "recipe.lambda_offset": 0.01},
    ),
    "no penalty": ({"jola_config.gate_scheduler": None, "jola_config.gate_lambda": 0}, {"recipe.lambda_scale": 0.0}),
    "checkpoints every few steps": (
        {"training_config.save_strategy": "steps", "training_config.save_steps": 7},
        {"training.save_strategy": "steps", "training.save_steps": 7},
    ),
    "the MLP": ({"model_config.applied_module": "mlp"}, {"edits.sites": ["mlp"]}),
    "a field of TrainingArguments": ({"training_config.adam_beta2": 0.95}, {"training.adam_beta2": 0.95}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_values_lead_to_other_runs(name, tmp_path):
    changes, expected = VARIANTS[name]
    run = read_released(saved(JOLA, tmp_path, changes)).run
    for path, value in expected.items():
        section, key = path.split(".")
        assert run[section][key] == value, path


def test_a_key_that_nobody_published_is_named(tmp_path):
    found = read_released(saved(JOLA, tmp_path, {"jola_config.gate_dropout": 0.1}))
    line = next(line for line in found.lines if line.key == "jola_config.gate_dropout")
    assert line.reason == "neither JoLA's code nor its fork has such a key"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jola_config.gate_scheduler": "exp"}, "gate_scheduler: found 'exp', expected one of linear, cyclic, expon"),
        ({"model_config.applied_module": "atention"}, "expected attention or mlp. Did you mean 'attention'"),
        ({"data_config.format_type": "llama"}, "format_type: found 'llama', expected chatml or alpaca"),
        ({"data_config.data_path": None}, "names no data; give data_path"),
        ({"model_confg.device": "cpu"}, "unknown section 'model_confg'. Did you mean 'model_config'"),
        (
            {"model_config.pretrained_model_name_or_path": None, "model_config.base_model_name": "gpt5"},
            "base_model_name: found 'gpt5', which the published code has no model for",
        ),
    ],
)
def test_a_value_that_the_published_code_does_not_have_is_refused(changes, message, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        read_released(saved(JOLA, tmp_path, changes))


COMMAND = (
    "python run_jola.py --run_mode train --task commonsense --subtask ARC-c --data_path data --lr 5e-3 --train_batch 8 "
    "--num_epoch 20 --eval_batch 1 --train_size 200 --gate_scheduler expon --gated_lambda 0.1 --seed 42 --device cuda "
    "--applied_module attention --base_model_name llama3.1_8B_chat --hf_cache_dir cache --save_strategy best "
    "--output_dir out --output_file_name figures"
)


def test_every_flag_of_the_first_release_is_mapped_or_named_with_a_reason():
    found = read_flags(COMMAND.split())
    assert [line.key for line in found.lines] == [f"--{name}" for name in FLAGS]
    assert all(line.run or line.reason for line in found.lines)
    without = {line.key for line in found.lines if not line.run}
    assert without == {"--hf_cache_dir", "--output_file_name", "--run_mode", "--gated_lambda"}
    run = found.run
    assert run["model"] == {"name": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bfloat16", "device": "cuda"}
    assert run["data"]["train"] == "data/commonsense/ARC-c/train.json"
    assert (run["training"]["learning_rate"], run["training"]["warmup_steps"]) == (5e-3, 50)
    assert run["training"]["save_total_limit"] == 1
    assert run["recipe"]["lambda_schedule"] == "exponential"


def test_flags_that_are_left_out_have_their_published_defaults():
    run = read_flags(["--base_model_name", "qwen2.5_7B_chat", "--data_path", "data"]).run
    assert run["model"]["dtype"] == "float32"
    assert (run["training"]["learning_rate"], run["training"]["num_train_epochs"]) == (1e-4, 10)
    assert "examples" not in run["data"]
    assert run["recipe"]["lambda_scale"] == 0.0
    no = read_flags(["--base_model_name", "qwen2.5_7B_chat", "--data_path", "data", "--save_strategy", "no"]).run
    assert (no["training"]["save_strategy"], no["training"]["load_best_model_at_end"]) == ("no", False)


def test_a_shell_script_is_read_with_its_variables(tmp_path):
    script = tmp_path / "train.sh"
    script.write_text(
        "#!/bin/bash\n# python run_jola.py --lr 1\nmodel=llama3.1_8B_chat\nsubtask='ARC-c';\n"
        "CUDA_VISIBLE_DEVICES=0 python code/run_jola.py \\\n  --base_model_name $model \\\n  --task commonsense \\\n"
        '  --subtask "${subtask}" \\\n  --data_path data;\n'
    )
    run = read_flags(command_in(script), str(script)).run
    assert run["model"]["name"] == RELEASED_MODELS["llama3.1_8B_chat"]
    assert run["data"]["valid"] == "data/commonsense/ARC-c/valid.json"
    script.write_text("python run_jola.py --lr 1\n" * 2)
    with pytest.raises(HeadEditError, match=r"calls run_jola\.py 2 times, expected one"):
        command_in(script)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lrr 1", r"unrecognized arguments: --lrr 1\. Its flags: --lr, --train_batch"),
        ("--lr much", "argument --lr: invalid float value"),
        ("--base_model_name llama3.1_8B_chat", "names no data; give --data_path"),
        ("--data_path d", "names no model"),
        ("--data_path d --save_strategy all", "found 'all', expected best, epoch or no"),
    ],
)
def test_flags_that_the_published_script_refuses_are_refused(words, message):
    with pytest.raises(HeadEditError, match=message):
        read_flags(words.split())


def test_training_a_published_file_says_how_it_is_converted(tmp_path, capsys):
    file = saved(JOLA, tmp_path)
    with pytest.raises(HeadEditError, match=r"is a config of JoLA's released code .*headedit import jola-config"):
        read_run(file)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(file)])
    assert caught.value.code == 2
    assert f"headedit import jola-config {file} --output run.yaml" in capsys.readouterr().err
    (tmp_path / "train.sh").write_text(COMMAND)
    with pytest.raises(HeadEditError, match=r"is converted by: headedit import jola-config .*train\.sh"):
        read_run(tmp_path / "train.sh")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": {"name": "jola", "gate_scheduler": "expon"}}, r"is recipe\.lambda_schedule here"),
        (
            {"recipe": {"name": "jola", "lambda_schedule": "expon"}},
            r"'expon' in the published code is exponential here",
        ),
        ({"recipe": {"name": "jola", "lambda_schedule": "perform"}}, r"is performance here"),
        ({"edits": {"applied_module": "attention"}}, r"is edits\.sites here"),
        ({"model": {"name": "m", "base_model_name": "x"}}, r"is model\.name"),
        ({"training": {"evaluation_strategy": "epoch"}}, r"is training\.eval_strategy here"),
        ({"data": {"train": "d.json", "train_size": 200}}, r"is data\.examples here"),
    ],
)
def test_a_published_name_in_a_run_gets_its_name_here(settings, message):
    with pytest.raises(HeadEditError, match=message):
        RunConfig.from_dict({"model": {"name": "m"}, "data": {"train": "d.json"}, **settings}, "run.yaml")


def test_published_names_of_models_and_tasks_get_theirs_here():
    with pytest.raises(HeadEditError, match=r"'ARC-c' in the published code is arc_c here"):
        find_task("ARC-c")
    with pytest.raises(HeadEditError, match=r"'llama3\.1_8B_chat' in the published code is meta-llama/Llama-3\.1-8B-"):
        load_model("llama3.1_8B_chat")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (["--save_strategy", "best"], "--set training.save_strategy=best, epoch or no here"),
        (["--gate_scheduler=expon"], "lambda_schedule=exponential"),
        (["--base_model_name", "x"], "--model, with an id of the hub"),
    ],
)
def test_a_published_flag_of_the_command_line_gets_its_option_here(flag, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", *flag])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["best", "epoch", "no"])
def test_every_published_save_strategy_is_one_here(strategy):
    run = read_run(None, {"model": {"name": "m"}, "data": {"train": "d.json"}, "training.save_strategy": strategy})
    assert run.arguments()["save_strategy"] == strategy


def save_folder(folder):
    """A folder of data as JoLA's are: JSON lines in train.json, valid.json and test.json."""
    folder.mkdir(parents=True)
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = [{"instruction": f"Is {split} {i} even?", "answer": "true" if i % 2 else "false"} for i in range(count)]
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_folder_with_a_file_for_each_split_is_read(tmp_path):
    folder = save_folder(tmp_path / "boolq")
    for split, count in (("train", 8), ("validation", 4), ("valid", 4), ("test", 4)):
        assert len(list(read_rows(str(folder), split))) == count
    assert next(read_rows(f"{folder}:test")).value["instruction"] == "Is test 0 even?"
    (folder / "train.json").unlink()
    with pytest.raises(HeadEditError, match=r"is not a dataset that save_to_disk wrote .*and holds no train\.json"):
        list(read_rows(str(folder)))


TEXTS = ["What is the sum of two and three?", "five", "What is the answer?", "a"]


def test_a_list_of_instructions_and_answers_in_turn_is_read_from_a_file(tmp_path):
    file = tmp_path / "examples.json"
    file.write_text(json.dumps(TEXTS))
    rows = list(read_rows(str(file)))
    assert [row.value for row in rows] == [
        {"instruction": TEXTS[0], "answer": "five"},
        {"instruction": TEXTS[2], "answer": "a"},
    ]
    file.write_text(json.dumps(TEXTS[:3]))
    with pytest.raises(HeadEditError, match=r"is a list of 3 texts, which are taken as instruction and answer in turn"):
        list(read_rows(str(file)))


@pytest.mark.parametrize("given", ["ab", None, 5, [], ["a", 1]])
def test_what_is_no_list_of_texts_makes_no_records(given):
    with pytest.raises(HeadEditError, match="texts: expected a list of texts, instruction and answer in turn"):
        data_from_list(given)


def test_fit_trains_on_records_that_are_made_of_such_a_list_and_refuses_the_list(tmp_path):
    edits = headedit.attach(load_model(save_model(tmp_path / "model"), device="cpu"))
    quick = {"recipe": "jola", "epochs": 1, "batch_size": 2, "progress": False, "output_dir": tmp_path / "out"}
    with pytest.raises(HeadEditError, match=r"made into records by headedit\.data\.data_from_list\(texts\)"):
        headedit.fit(edits, TEXTS, **quick)
    assert headedit.fit(edits, data_from_list(TEXTS), **quick).record["steps"] == 1


SMALL = {
    "model_config.device": "cpu",
    "training_config.num_train_epochs": 1,
    "training_config.per_device_train_batch_size": 2,
    "training_config.report_to": None,
    "data_config.train_size": 4,
}


@pytest.mark.parametrize("form", ["the YAML of JoLA", "the YAML of the fork", "flags"])
def test_a_converted_run_trains_and_ends_with_edits(form, tmp_path):
    model = save_model(tmp_path / "model", "olmo2" if "fork" in form else "llama")
    folder = save_folder(tmp_path / "data" / "commonsense" / "boolq")
    out = tmp_path / "out"
    if form == "flags":
        source = ["--", *COMMAND.split()[2:]]
        changes = {"--data_path": tmp_path / "data", "--subtask": "boolq", "--num_epoch": 1, "--device": "cpu"}
        changes |= {"--train_size": 4, "--train_batch": 2, "--output_dir": out}
        for flag, value in changes.items():
            source[source.index(flag) + 1] = str(value)
    else:
        changes = {**SMALL, "model_config.pretrained_model_name_or_path": model, "training_config.output_dir": str(out)}
        changes |= {"data_config.data_path": str(folder)}
        if "fork" in form:
            file = tmp_path / "conversations.jsonl"
            turns = [{"from": "human", "value": "What is two?"}, {"from": "gpt", "value": "five"}]
            file.write_text("\n".join([json.dumps({"conversations": turns})] * 12))
            changes = {**ON_A_CPU, **changes, "data_config.data_path": str(file), "data_config.max_length": 200}
            changes |= {"data_config.valid_size": 2, "data_config.test_size": 2}
        source = [str(saved(FORK if "fork" in form else JOLA, tmp_path, changes))]
    run_file = tmp_path / "run.yaml"
    done = CliRunner().invoke(import_edits.app, ["jola-config", "--output", str(run_file), *source])
    assert done.exit_code == 0, done.exception
    assert "next: headedit train" in done.stdout
    settings = {"model": {"name": model, "dtype": "float32", "device": "cpu"}, "logging": {"report_to": "none"}}
    run = headedit.train(run_file, progress=False, **settings)
    assert (out / "headedit.safetensors").is_file()
    assert run.record["recipe"] == "jola-released"
    assert run.record["steps"] >= 1


def test_a_run_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "run.yaml").write_text("mine")
    file = saved(JOLA, tmp_path)
    done = CliRunner().invoke(import_edits.app, ["jola-config", str(file), "--output", str(tmp_path / "run.yaml")])
    assert isinstance(done.exception, HeadEditError)
    assert (tmp_path / "run.yaml").read_text() == "mine"


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"name": "m"}}))
    with pytest.raises(HeadEditError, match="is no config of JoLA's code, which has the sections model_config"):
        read_released(tmp_path / "run.yaml")


def test_the_keys_that_runs_get_are_keys_of_runs():
    known = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(read_flags(COMMAND.split()).run) <= known
