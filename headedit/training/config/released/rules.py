"""What each key of a config of JoLA's released code, or of its fork for OLMo-2, is in a run of headedit.

A key is named by its section and itself, such as ``training_config.learning_rate``. A rule gets all the keys of a file
and says which keys of a run follow, and why some do not.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headedit.errors import RELEASED_MODELS, HeadEditError, suggest

Given = Mapping[str, Any]
"""The keys of a file with their values."""


class Result(NamedTuple):
    """What follows from a key.

    Fields:
        run: keys of a run, as paths such as ``training.learning_rate``, and their values.
        reason: why there are none, or what else is to be said.
    """

    run: dict[str, Any]
    reason: str = ""


Rule = Callable[[Given, Any], Result]

SPLITS = ("train", "valid", "test")
LONGEST = 400
"""The ``max_seq_length`` that is written in JoLA's Trainer."""


def _to(*paths: str) -> Rule:
    """The value, under these keys."""
    return lambda given, value: Result(dict.fromkeys(paths, value))


def _nowhere(reason: str) -> Rule:
    """Nothing follows."""
    return lambda given, value: Result({}, reason)


def _with_steps(path: str, strategy: str) -> Rule:
    """A number of steps, which acts with the strategy ``steps`` alone."""

    def rule(given: Given, value: Any) -> Result:
        chosen = _strategy(given, strategy)
        if chosen != "steps":
            return Result({}, f"does nothing with {strategy.rpartition('.')[2]}: {chosen}")
        return Result({path: value})

    return rule


def _strategy(given: Given, key: str) -> str:
    return "no" if given.get(key) in (None, False) else str(given[key])


def _device(given: Given, value: Any) -> Result:
    if given.get("hardware_config.device_map") is not None:
        return Result({}, "hardware_config.device_map says where the model goes")
    return Result({"model.device": value})


def _base_model_name(given: Given, value: Any) -> Result:
    known = RELEASED_MODELS.get(str(value))
    named = given.get("model_config.pretrained_model_name_or_path")
    if named is not None:
        other = "" if known in (None, named) else f"; it would be {known}"
        return Result({}, f"pretrained_model_name_or_path says which model is loaded{other}")
    if known is None:
        raise HeadEditError(
            f"base_model_name: found {value!r}, which the published code has no model for; give "
            f"pretrained_model_name_or_path, or one of {', '.join(RELEASED_MODELS)}."
        )
    return Result({"model.name": known})


def _applied_module(given: Given, value: Any) -> Result:
    sites = {"attention": ["attention"], "mlp": ["mlp"], "all": ["attention", "mlp"], "both": ["attention", "mlp"]}
    if value not in sites:
        raise HeadEditError(
            f"applied_module: found {value!r}, expected attention or mlp.{suggest(value, sites, elsewhere=True)}"
        )
    return Result({"edits.sites": sites[value]})


def _report_to(given: Given, value: Any) -> Result:
    return Result({"logging.report_to": "none" if value in (None, [], "none") else value})


def _logging_strategy(given: Given, value: Any) -> Result:
    if _strategy({"value": value}, "value") == "steps":
        return Result({}, "logging.every says after how many steps")
    return Result({"training.logging_strategy": _strategy({"value": value}, "value")})


def _logging_steps(given: Given, value: Any) -> Result:
    chosen = _strategy({"steps": "steps", **given}, "training_config.logging_strategy")
    if "training_config.logging_strategy" in given and chosen != "steps":
        return Result({}, f"does nothing with logging_strategy: {chosen}")
    return Result({"logging.every": value})


def _short_floats(dtype: str) -> Rule:
    def rule(given: Given, value: Any) -> Result:
        loaded = given.get("hardware_config.torch_dtype")
        if not value:
            return Result({}, "the model's dtype says so")
        if loaded is None:
            return Result({"model.dtype": dtype}, "of the base, whose weights do not change; the edits are float32")
        if loaded == dtype:
            return Result({}, "the model's dtype says so; the edits are float32")
        return Result({"training.bf16" if dtype == "bfloat16" else "training.fp16": True})

    return rule


def _overwrite(given: Given, value: Any) -> Result:
    return Result({}, "headedit train --overwrite removes an earlier run; without it such a folder is refused")


def _train_size(given: Given, value: Any) -> Result:
    if not value:
        return Result({}, "0 stands for all examples, as without data.examples")
    found = {"data.examples": value}
    if in_folder(given) and given.get("data_config.valid_size") is None:
        found["data.valid_examples"] = value  # the published code draws as many of both
    return Result(found)


def _size(split: str) -> Rule:
    def rule(given: Given, value: Any) -> Result:
        return Result({f"data.{split}_examples" if in_folder(given) else f"data.{split}": value})

    return rule


def in_folder(given: Given) -> bool:
    """Whether the data are a folder with a file for each split."""
    path = given.get("data_config.data_path")
    return path is not None and Path(str(path)).suffix.lower() not in (".json", ".jsonl", ".csv", ".parquet")


def _data_path(given: Given, value: Any) -> Result:
    if in_folder(given):
        return Result({f"data.{split}": str(Path(str(value)) / f"{split}.json") for split in SPLITS})
    return Result({"data.train": str(value)})


def _task_name(given: Given, value: Any) -> Result:
    if value == "sharegpt":
        return Result({"data.format": "sharegpt", "data.skip_malformed": True}, "empty conversations are left out")
    return Result(
        {"data.format": "llm-adapters"}, "its records hold instruction and answer; to evaluate: headedit eval"
    )


def _format_type(given: Given, value: Any) -> Result:
    if value not in ("chatml", "alpaca"):
        raise HeadEditError(f"format_type: found {value!r}, expected chatml or alpaca.")
    return Result({"data.template": value})


def _split_ratio(given: Given, value: Any) -> Result:
    if in_folder(given):
        return Result({}, "the folder has a file for each split")
    if given.get("data_config.valid_size") is not None:
        return Result({}, "train_size, valid_size and test_size are given, and they decide")
    return Result({"data.valid": round(1.0 - float(value), 6)})


_LAMBDAS = {
    "linear": ("linear", 0.2, ""),
    "cyclic": ("cyclic", 1.0, ""),
    "expon": ("exponential", 0.1, ""),
    "perform": (
        "performance",
        0.1,
        "theirs moves by 0.01 at every step, ours by a twentieth of 0.1 at every validation",
    ),
}


def _gate_scheduler(given: Given, value: Any) -> Result:
    if not value:
        return Result({"recipe.lambda_schedule": "constant"})
    if value not in _LAMBDAS:
        raise HeadEditError(f"gate_scheduler: found {value!r}, expected one of {', '.join(_LAMBDAS)}.")
    schedule, highest, reason = _LAMBDAS[value]
    return Result({"recipe.lambda_schedule": schedule, "recipe.lambda_offset": highest}, reason)


def _gate_lambda(given: Given, value: Any) -> Result:
    if given.get("jola_config.gate_scheduler"):
        return Result({}, "the published code never reads it; its λ is written in its schedules")
    if not value:
        return Result(
            {"recipe.released_objective": False, "recipe.lambda_offset": 0.0, "recipe.lambda_scale": 0.0},
            "without λ the published code has no penalty",
        )
    return Result({"recipe.lambda_schedule": "constant", "recipe.lambda_offset": float(value)})


def _flash_attention(given: Given, value: Any) -> Result:
    if not value:
        return Result({}, "transformers' default, sdpa")
    return Result({"model.attn_implementation": "best"}, "FlashAttention if it is installed, else sdpa")


def _checkpointing(given: Given, value: Any) -> Result:
    if not value:
        return Result({"training.gradient_checkpointing": False})
    return Result(
        {"training.gradient_checkpointing": True, "training.gradient_checkpointing_kwargs": {"use_reentrant": False}}
    )


def _same(name: str) -> tuple[str, Rule]:
    return f"training_config.{name}", _to(f"training.{name}")


RULES: dict[str, Rule] = {
    "model_config.pretrained_model_name_or_path": _to("model.name"),
    "model_config.device": _device,
    "model_config.cache_dir": _nowhere("the environment's HF_HOME says where the Hugging Face libraries keep files"),
    "model_config.applied_module": _applied_module,
    "model_config.base_model_name": _base_model_name,
    **dict(
        _same(name)
        for name in (
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "weight_decay",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "num_train_epochs",
            "max_steps",
            "load_best_model_at_end",
            "save_total_limit",
            "metric_for_best_model",
            "greater_is_better",
            "logging_first_step",
            "dataloader_pin_memory",
            "dataloader_num_workers",
            "max_grad_norm",
        )
    ),
    "training_config.evaluation_strategy": _to("training.eval_strategy"),
    "training_config.eval_strategy": _to("training.eval_strategy"),
    "training_config.save_strategy": _to("training.save_strategy"),
    "training_config.report_to": _report_to,
    "training_config.logging_strategy": _logging_strategy,
    "training_config.logging_steps": _logging_steps,
    "training_config.seed": _to("seed", "data.seed"),
    "training_config.do_train": _nowhere("headedit train trains"),
    "training_config.do_eval": _nowhere("headedit train validates where there is data.valid"),
    "training_config.do_predict": _nowhere("headedit train measures the loss on data.test; headedit eval predicts"),
    "training_config.bf16": _short_floats("bfloat16"),
    "training_config.fp16": _short_floats("float16"),
    "training_config.output_dir": _to("output"),
    "training_config.overwrite_output_dir": _overwrite,
    "training_config.save_steps": _with_steps("training.save_steps", "training_config.save_strategy"),
    "training_config.eval_steps": _with_steps("training.eval_steps", "training_config.evaluation_strategy"),
    "training_config.early_stopping_patience": _to("recipe.patience"),
    "training_config.early_stopping_threshold": _to("recipe.early_stopping_threshold"),
    "data_config.train_size": _train_size,
    "data_config.valid_size": _size("valid"),
    "data_config.test_size": _size("test"),
    "data_config.task_name": _task_name,
    "data_config.data_path": _data_path,
    "data_config.format_type": _format_type,
    "data_config.max_length": _to("data.max_length"),
    "data_config.split_ratio": _split_ratio,
    "jola_config.gate_lambda": _gate_lambda,
    "jola_config.gate_scheduler": _gate_scheduler,
    "jola_config.gate_warmup_steps": _nowhere(
        "λ has no warm-up of its own; warmup_steps is that of the learning rates, and linear lets λ rise from 0"
    ),
    "hardware_config.device_map": _to("model.device_map"),
    "hardware_config.torch_dtype": _to("model.dtype"),
    "hardware_config.use_flash_attention": _flash_attention,
    "hardware_config.use_gradient_checkpointing": _checkpointing,
    "logging_config.project_name": _to("logging.project"),
    "logging_config.run_name": _to("logging.run_name"),
    "logging_config.tags": _to("logging.tags"),
}
"""The rule of each key that the published YAML files have."""

SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in RULES))
"""The sections of a published file."""
