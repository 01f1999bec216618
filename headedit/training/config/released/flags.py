"""The flags of ``run_jola.py``, the first release of JoLA's code: as words, or in a shell script that calls it."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from headedit.errors import HeadEditError
from headedit.training.config.released.rules import LONGEST, SPLITS
from headedit.training.config.released.translation import Line, Translation, translate

SCRIPT = "run_jola.py"

FLAGS: dict[str, tuple[type, Any, str | None]] = {
    "lr": (float, 1e-4, "training_config.learning_rate"),
    "train_batch": (int, 8, "training_config.per_device_train_batch_size"),
    "num_epoch": (int, 10, "training_config.num_train_epochs"),
    "train_size": (int, 0, "data_config.train_size"),
    "seed": (int, 42, "training_config.seed"),
    "output_dir": (str, None, "training_config.output_dir"),
    "eval_batch": (int, 8, "training_config.per_device_eval_batch_size"),
    "task": (str, "", None),
    "subtask": (str, "", None),
    "data_path": (str, "", "data_config.data_path"),
    "output_file_name": (str, None, None),
    "applied_module": (str, "attention", "model_config.applied_module"),
    "base_model_name": (str, None, "model_config.base_model_name"),
    "hf_cache_dir": (str, None, "model_config.cache_dir"),
    "device": (str, "cuda", "model_config.device"),
    "save_strategy": (str, "best", None),
    "gated_lambda": (float, 0.0, "jola_config.gate_lambda"),
    "gate_scheduler": (str, "", "jola_config.gate_scheduler"),
    "run_mode": (str, None, None),
}
"""Each flag with its type, its default there, and the key of the later YAML that says the same."""

_WRITTEN: dict[str, Any] = {
    "training_config.lr_scheduler_type": "cosine",
    "training_config.warmup_steps": 50,
    "training_config.evaluation_strategy": "epoch",
    "training_config.report_to": "wandb",
    "training_config.logging_strategy": "epoch",
    "data_config.max_length": LONGEST,
    "data_config.task_name": "common_reason",
}
"""What the script sets itself."""

_SAVING: dict[str, dict[str, Any]] = {
    "best": {"save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1},
    "epoch": {"save_strategy": "epoch"},
    "no": {"save_strategy": "no", "load_best_model_at_end": False},
}

_ELSEWHERE = {
    "output_file_name": "headedit eval --output FOLDER writes predictions and figures",
    "run_mode": "headedit train trains, and headedit eval evaluates",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise HeadEditError(f"{SCRIPT}: {message}. Its flags: {', '.join(f'--{name}' for name in FLAGS)}.")


def read_flags(words: Sequence[str], source: str = f"the flags of {SCRIPT}") -> Translation:
    """Translates the flags of ``run_jola.py``; what comes before the script's name is left out.

    Args:
        words: the words of the command.
        source: where they are from, for messages.

    Raises:
        HeadEditError: a flag or a value is not known, or no model or data are named.
    """
    places = [i for i, word in enumerate(words) if Path(word).name == SCRIPT]
    parser = _Parser(prog=SCRIPT, add_help=False, allow_abbrev=False)
    for name, (kind, _, _) in FLAGS.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    named = vars(parser.parse_args(list(words[places[0] + 1 :] if places else words)))
    value = {name: named.get(name, default) for name, (_, default, _) in FLAGS.items()}
    given = {key: value[name] for name, (_, _, key) in FLAGS.items() if key is not None}
    given = {key: item for key, item in given.items() if item is not None}
    given["data_config.data_path"] = str(Path(value["data_path"]) / value["task"] / value["subtask"])
    if not value["data_path"]:
        raise HeadEditError(f"{source}: names no data; give --data_path.")
    if value["save_strategy"] not in _SAVING:
        raise HeadEditError(f"{source}: save_strategy: found '{value['save_strategy']}', expected best, epoch or no.")
    saving = {f"training_config.{key}": item for key, item in _SAVING[value["save_strategy"]].items()}
    short = "llama" in str(value["base_model_name"]).lower() or "13b" in str(value["base_model_name"])
    names = {key: f"--{name}" for name, (_, _, key) in FLAGS.items() if key is not None and name in named}
    found = translate({**_WRITTEN, **saving, "training_config.bf16": short, **given}, source, names)
    saved = {f"training.{key}": item for key, item in _SAVING[value["save_strategy"]].items()}
    lines = [line for line in found.lines if line.key != "--data_path"]
    paths = {f"data.{split}": found.run["data"][split] for split in SPLITS}
    lines += [Line(f"--{name}", value[name], paths) for name in ("data_path", "task", "subtask") if name in named]
    lines += [Line(f"--{name}", value[name], {}, why) for name, why in _ELSEWHERE.items() if name in named]
    lines += [Line("--save_strategy", value["save_strategy"], saved)] if "save_strategy" in named else []
    order = [f"--{name}" for name in FLAGS]
    return Translation(found.source, found.run, sorted(lines, key=lambda line: order.index(line.key)))


def command_in(script: Path) -> list[str]:
    """The words of the one command in a shell script that calls ``run_jola.py``, with its variables put in.

    Raises:
        HeadEditError: the script cannot be read, or calls it never or several times.
    """
    try:
        text = script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeadEditError(f"{script}: cannot be read ({error}).") from None
    variables: dict[str, str] = {}
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise HeadEditError(f"{script}: cannot be read as a shell script ({error}): {line.strip()[:60]}") from None
        for word in words:
            name, sign, value = word.partition("=")
            if sign and name.isidentifier():
                variables[name] = _filled(value.rstrip(";"), variables)
        if any(Path(word).name == SCRIPT for word in words):
            commands.append([_filled(word.rstrip(";"), variables) for word in words])
    if len(commands) != 1:
        raise HeadEditError(
            f"{script}: calls {SCRIPT} {len(commands)} times, expected one call; give the words of one after --, as in "
            "headedit import jola-config -- --base_model_name llama3.1_8B_chat --data_path data."
        )
    return commands[0]


def _filled(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda m: variables.get(m[1] or m[2], m[0]), word)
