"""A run as one YAML file: strict, with every field of TrainingArguments, overridable, and saved when resolved."""

import dataclasses

import pytest
import torch
import transformers
import yaml
from tiny import tiny_model
from transformers import AttentionInterface

import headedit
from headedit import HeadEditError, RunConfig
from headedit.hf.loading import load_model, take_attention
from headedit.training.config import ModelConfig, find_config, read_run, shipped_configs
from headedit.training.config.names import RENAMED, VECTOR_RATES
from headedit.training.recipes import RECIPES, make_recipe
from headedit.training.recipes.stage import length, merge_arguments

LEAST = {"model": {"name": "m"}, "data": {"train": "d.json"}}
SHIPPED = [
    "cpu-small",
    "jola-commonsense",
    "jola-gem",
    "jola-mmlu-pro",
    "jola-paper",
    "jola-released",
    "llama-70b-4bit",
    "olmo2-13b-cpu",
    "olmo2-13b-sharegpt",
]


def run_of(**sections):
    return read_run(None, {**LEAST, **sections})


def test_the_shipped_configs_are_found_by_name():
    assert list(shipped_configs()) == SHIPPED
    assert find_config("cpu-small").read_text().startswith("# A small run to try headedit")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_resolved_config_is_saved_and_read_unchanged(name, tmp_path):
    config = read_run(name, {"output": str(tmp_path / "out")})
    assert RunConfig.from_dict(config.to_dict(), name) == config
    file = config.save(tmp_path / "out")
    assert read_run(file) == read_run(tmp_path / "out") == config
    assert set(config.to_dict()["recipe"]) == {"name", *vars(make_recipe(config.recipe_name, {}))}


@pytest.mark.parametrize("name", ["jola-commonsense", "jola-gem", "jola-mmlu-pro", "llama-70b-4bit"])
def test_the_jola_configs_have_the_settings_of_the_paper(name):
    config = read_run(name)
    data, recipe = config.data, config.recipe
    assert (data.examples, data.seed, data.max_length, data.template) == (200, 42, 400, "alpaca")
    assert (config.seed, config.recipe_name, recipe["epochs"], recipe["patience"]) == (42, "jola", 20, 2)
    assert (recipe["vector_lr"], recipe["lr_schedule"], recipe["adam_epsilon"]) == (5e-3, "cosine", 1e-6)
    assert (recipe["warmup_epochs"], recipe["init_std"], recipe["lambda_schedule"]) == (1.0, 1e-3, "linear")
    assert recipe["batch_size"] * config.training.get("gradient_accumulation_steps", 1) == 8
    assert config.model.quantization == ("4bit" if name == "llama-70b-4bit" else None)


def test_fields_of_training_arguments_become_fields_of_the_recipe():
    training = {
        "num_train_epochs": 7.0,
        "per_device_train_batch_size": 3,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "weight_decay": 0.1,
        "adam_epsilon": 1e-7,
        "max_grad_norm": 2,
        "warmup_steps": 5,
    }
    config = run_of(training=training)
    found = {theirs: config.recipe[ours] for theirs, ours in RENAMED.items()}
    assert found == {**{key: training[key] for key in RENAMED}, "lr_scheduler_type": "adaptive"}
    assert config.training == config.arguments() == {"warmup_steps": 5.0}
    assert type(config.recipe["epochs"]) is int


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rate_sets_all_learning_rates_of_vectors_in_their_default_ratio(name):
    usual = vars(make_recipe(name, {}))
    assert {key for key in usual if key.endswith("_lr")} - {"gate_lr"} <= set(VECTOR_RATES)
    rates = [key for key in VECTOR_RATES if key in usual]
    assert rates
    config = run_of(recipe={"name": name}, training={"learning_rate": 0.25})
    assert config.recipe[rates[0]] == 0.25
    follow = {"scale_lr": 1.0, "offset_lr": 2.0}  # of which the default is half for scales
    usual |= {key: follow[key] for key in rates if usual[key] is None}
    for key in rates:
        assert config.recipe[key] / 0.25 == pytest.approx(usual[key] / usual[rates[0]])
    assert config.recipe.get("gate_lr") == usual.get("gate_lr")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({"epochs": 2}, {"num_train_epochs": 2}), ({"offset_lr": 0.1}, {"learning_rate": 0.1})],
)
def test_a_setting_given_in_both_sections_is_refused(ours, theirs):
    with pytest.raises(HeadEditError, match=r"training: '\w+' and recipe: '\w+' are the same setting, .*give one"):
        run_of(recipe=ours, training=theirs)


MISTAKES = {
    "a section": ("trainig: {}", r"unknown key 'trainig'\. Did you mean 'training'\?"),
    "an argument": (
        "training: {learning_rat: 1}",
        r"training: unknown key 'learning_rat'\. Did you mean 'learning_rate'",
    ),
    "an argument's type": (
        "training: {gradient_accumulation_steps: four}",
        r"steps: found 'four' \(str\), expected a whole",
    ),
    "half an epoch": ("training: {num_train_epochs: 1.5}", r"num_train_epochs: found 1\.5, expected a whole number"),
    "a schedule": ("training: {lr_scheduler_type: cosin}", r"lr_schedule: found 'cosin'.*Did you mean 'cosine'\?"),
    "elsewhere": ("training: {output_dir: out}", r"training: 'output_dir' is given as output, not here"),
    "early stopping elsewhere": (
        "training: {early_stopping_threshold: 1e-3}",
        r"'early_stopping_threshold' is given as recipe\.early_stopping_threshold",
    ),
    "a threshold": (
        "recipe: {name: jola, early_stopping_threshold: -1}",
        r"recipe jola: early_stopping_threshold: found -1\.0, expected 0 or more",
    ),
    "tracker elsewhere": ("training: {report_to: wandb}", r"'report_to' is given as logging\.report_to"),
    "ours to set": ("training: {do_train: true}", r"'do_train' is set by headedit; leave it out"),
    "a recipe": ("recipe: {name: jolla}", r"There is no recipe 'jolla'\. Did you mean 'jola'\?"),
    "a recipe's name": ("recipe: {name: [jola]}", r"recipe: name: found \['jola'\] \(list\), expected a text"),
    "a recipe's field": ("recipe: {name: jola, heads: 3}", r"recipe jola: unknown key 'heads'"),
    "an edit": ("edits: {gates: seperate}", r"edits: gates: found 'seperate'.*Did you mean 'separate'\?"),
    "data": ("data: {train: d.json, max_len: 3}", r"data: unknown key 'max_len'\. Did you mean 'max_length'\?"),
    "a model": ("model: {name: m, dtype: bf16}", r"model: dtype: found 'bf16' \(str\), expected one of auto, float32"),
    "no model": ("model: {}", r"model: the key 'name' is missing"),
    "bits": ("model: {name: m, quantization: 4}", r"quantization: found 4 \(int\), expected one of 4bit, 8bit"),
    "two places": (
        "model: {name: m, device: cpu, device_map: auto}",
        r"device_map: found 'auto' together with the device 'cpu'",
    ),
    "a tracker": (
        "logging: {report_to: tensorbord}",
        r"found 'tensorbord' \(str\), expected one of none, tensorboard, wandb",
    ),
    "never logged": ("logging: {every: 0}", r"logging: every: found 0, expected 1 or more"),
    "seeds without validation": ("seeds: 3", r"data: valid: is missing; several seeds"),
    "twice": ("seed: 1\nseed: 2", r"line 4: the key 'seed' is given twice"),
    "no mapping": ("training: 3", r"training: found 3 \(int\), expected a mapping"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_with_file_key_found_expected_and_nearest_name(name, tmp_path):
    text, message = MISTAKES[name]
    lead = [f"{key}: {value}" for key, value in LEAST.items() if not text.startswith(key)]
    (tmp_path / "run.yaml").write_text("\n".join([*lead, text]))
    with pytest.raises(HeadEditError, match=message) as caught:
        read_run(tmp_path / "run.yaml")
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))


TAKEN = {
    "training: {save_strategy: no}": {"save_strategy": "no"},
    "training: {save-strategy: no}": {"save_strategy": "no"},
    "training: {eval_strategy: false}": {"eval_strategy": "no"},
    "training: {save_strategy: epoch, load_best_model_at_end: true}": {
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    },
    "training: {fsdp: true}": {"fsdp": True},
    "training: {max_steps: null}": {},
    "training: {num_train_epochs: null, learning_rate: null}": {},
    "training: {bf16: 'yes', max_steps: '7'}": {"bf16": True, "max_steps": 7},
    "training: {optim: adafactor}": {"optim": "adafactor"},
    "training: {include_for_metrics: loss}": {"include_for_metrics": ["loss"]},
}


@pytest.mark.parametrize("text", TAKEN)
def test_what_the_parser_of_transformers_takes_is_taken(text):
    assert run_of(**yaml.safe_load(text)).training == TAKEN[text]


def test_a_word_that_a_choice_does_not_have_is_refused_with_the_nearest():
    with pytest.raises(HeadEditError, match=r"save_strategy: found 'epochs'.*Did you mean 'epoch'\?"):
        run_of(training={"save_strategy": "epochs"})


def test_every_reporter_of_transformers_can_be_named():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = [*INTEGRATION_TO_CALLBACK, "all"]
    assert run_of(logging={"report_to": names}).arguments() == {"report_to": names}


def test_a_number_of_epochs_that_is_given_is_exact():
    for name in ("refit", "ungated", "ist", "localise"):
        given = run_of(recipe={"name": name, "epochs": 1}).recipe
        again = run_of(recipe=given).recipe
        assert again == given
        assert length(again["epochs"], again["min_steps"]) == {"epochs": 1, "min_steps": 0, "given": True}
        usual = run_of(recipe={"name": name}).recipe
        assert length(usual["epochs"], usual["min_steps"]) == {"epochs": 20, "min_steps": 300, "given": False}


def test_least_steps_that_lengthen_a_given_number_of_epochs_are_reported(caplog):
    stage = make_recipe("ungated", {"epochs": 1, "min_steps": 30}).vector_stage()
    assert stage.arguments(16, 1, validated=False)["num_train_epochs"] == 15
    assert "min_steps=30 makes 15 epochs of the 1 that were asked for" in caplog.text


def test_arguments_of_a_validation_are_left_out_where_there_is_none_and_reported(caplog):
    own = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    given = {"eval_strategy": "epoch", "load_best_model_at_end": True, "optim": "sgd"}
    assert merge_arguments(own, given, validated=False) == {**own, "optim": "sgd"}
    assert "eval_strategy, load_best_model_at_end: there are no validation examples" in caplog.text


@pytest.mark.parametrize(
    ("stops", "given", "found"),
    [
        (False, {"save_strategy": "epoch", "load_best_model_at_end": True}, ("epoch", "epoch", True)),
        (False, {"load_best_model_at_end": True}, ("epoch", "epoch", True)),
        (False, {"save_strategy": "no"}, ("epoch", "no", False)),
        (True, {"save_strategy": "no"}, ("epoch", "epoch", True)),
        (True, {"save_strategy": "steps", "save_steps": 3}, ("steps", "steps", True)),
        (True, {"eval_strategy": "steps", "eval_steps": 3}, ("steps", "steps", True)),
        (True, {"save_strategy": "best"}, ("epoch", "best", True)),
    ],
)
def test_validations_and_checkpoints_fit_each_other(stops, given, found, tmp_path):
    own = {"eval_strategy": "epoch", "save_strategy": "epoch" if stops else "no", "load_best_model_at_end": stops}
    merged = merge_arguments(own, given, validated=True)
    assert tuple(merged[key] for key in ("eval_strategy", "save_strategy", "load_best_model_at_end")) == found
    transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **merged)
    assert given.items() <= merged.items() or given == {"save_strategy": "no"}


def test_a_mistake_in_an_override_is_reported_as_one():
    with pytest.raises(HeadEditError, match=r"cpu-small\.yaml, with overrides: training: unknown key 'bf61'"):
        read_run("cpu-small", {"training.bf61": True})
    with pytest.raises(HeadEditError, match=r"^the options: the key 'data' is missing"):
        read_run(None, {"model.name": "m"})
    with pytest.raises(
        HeadEditError, match=r"jola-comonsense: .*Did you mean 'jola-commonsense'\?.* Configs: cpu-small"
    ):
        read_run("jola-comonsense")


def test_numbers_with_exponents_are_numbers(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {name: m}\ndata: {train: d}\ntraining: {learning_rate: 1e-3}")
    assert read_run(tmp_path / "run.yaml").recipe["scale_lr"] == 1e-3


def test_overrides_replace_values_of_the_file_under_either_name(tmp_path):
    file = tmp_path / "run.yaml"
    given = {
        **LEAST,
        "recipe": {"name": "jola", "patience": 5},
        "training": {"learning_rate": 0.1, "num_train_epochs": 3, "gradient_checkpointing_kwargs": {"a": 1}},
    }
    file.write_text(yaml.safe_dump(given))
    for key in ("epochs", "recipe.epochs", "training.num_train_epochs"):
        assert read_run(file, {key: 9}).recipe["epochs"] == 9
    assert read_run(file, {"vector_lr": 0.5}).recipe["vector_lr"] == 0.5
    saved = read_run(file).save(tmp_path / "out")
    assert read_run(saved, {"training.learning_rate": 0.5}).recipe["vector_lr"] == 0.5
    other = read_run(file, {"recipe.name": "localise"})
    assert (other.recipe["epochs"], other.recipe["scale_lr"], other.recipe["offset_lr"]) == (3, 0.1, 0.2)
    with pytest.raises(HeadEditError, match="are the same setting"):
        read_run(file, {"epochs": 2, "training.num_train_epochs": 3})
    deep = read_run(file, {"training.gradient_checkpointing_kwargs.b": 2, "data": {"examples": 4}, "seed": 3})
    assert deep.training["gradient_checkpointing_kwargs"] == {"a": 1, "b": 2}
    assert (deep.data.train, deep.data.examples, deep.seed) == ("d.json", 4, 3)
    assert yaml.safe_load(file.read_text()) == given


def test_the_logging_section_becomes_training_arguments():
    logging = {"report_to": ["tensorboard", "none", "wandb"], "every": 3, "run_name": "a"}
    arguments = {"report_to": ["tensorboard", "wandb"], "logging_steps": 3, "run_name": "a"}
    assert run_of(logging={"project": "p", "tags": ["t"]}).logging.tags == ["t"]
    assert run_of(logging=logging).arguments() == arguments
    assert run_of(logging={"report_to": "none"}).arguments() == {}


def test_a_saved_config_is_valid_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d.json", "v.json"):
        (tmp_path / name).write_text("")
    (tmp_path / "set").mkdir()
    data = {"train": ["d.json", "owner/name:train"], "valid": "v.json", "test": "set:part"}
    file = run_of(model={"name": "set"}, data=data, output="out").save("out")
    saved = read_run(file)
    assert saved.data.train == [str(tmp_path / "d.json"), "owner/name:train"]
    assert (saved.data.valid, saved.data.test) == (str(tmp_path / "v.json"), str(tmp_path / "set") + ":part")
    assert (saved.model.name, saved.output) == (str(tmp_path / "set"), str(tmp_path / "out"))


def test_the_model_is_loaded_as_the_config_says(monkeypatch):
    asked = {}

    def load(name, **options):
        asked.update(options, name=name)
        return tiny_model("llama")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    config = ModelConfig(name="m", revision="r", dtype="bfloat16", device_map="auto", attn_implementation="eager")
    config.load()
    expected = {"name": "m", "revision": "r", "dtype": "bfloat16", "device_map": "auto", "attn_implementation": "eager"}
    assert asked == expected
    asked.clear()
    ModelConfig(name="m", device="cpu", attn_implementation="best").load()
    assert asked == {"name": "m", "revision": None, "dtype": "auto"}


def test_a_model_is_loaded_in_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    model = ModelConfig(name=str(tmp_path), quantization="4bit", dtype="bfloat16", device="cpu").load()
    assert model.is_quantized
    assert type(model.model.layers[0].self_attn.o_proj).__name__ == "Linear4bit"
    assert model.model.norm.weight.dtype == torch.bfloat16
    headedit.attach(model)


def test_an_attention_implementation_is_used_only_if_it_works(ids):
    def broken(*args, **kwargs):
        raise RuntimeError("built for another GPU")

    AttentionInterface.register("headedit_broken", broken)
    model = tiny_model("llama", attn_implementation="eager")
    with torch.no_grad():
        before = model(ids).logits
        assert take_attention(model, "headedit_broken") is False
        assert model.config._attn_implementation == "eager"
        assert torch.equal(model(ids).logits, before)
    assert take_attention(model, "sdpa") is True
    assert model.config._attn_implementation == "sdpa"


def test_a_missing_model_is_refused_by_name():
    with pytest.raises(HeadEditError, match="No model could be loaded from '/nowhere'"):
        load_model("/nowhere", quantization=None, device_map="auto")


def test_a_config_made_in_python_can_be_changed_field_by_field():
    config = RunConfig.from_dict({**LEAST, "training": {"learning_rate": 0.5}}, "here")
    assert dataclasses.replace(config, seed=3).recipe == config.recipe


def test_an_odd_number_of_halves_is_refused_before_anything_is_loaded():
    with pytest.raises(HeadEditError, match="bootstrap: found 3, expected an even number of 2 or more"):
        RunConfig.from_dict({**LEAST, "bootstrap": 3}, "run.yaml")
