"""The one exception that headedit raises for a mistake its user can mend, and hints for names it does not know."""

import difflib
import re
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

_LISTED = 20

FAMILIES = {
    "settings": [
        "cli",
        "io.strict",
        "io.yaml",
        "data.config",
        "data.clock",
        "edits.config",
        "edits.arguments",
        "training.config",
        "training.arguments",
        "training.sweep.config",
        "training.preferences.config",
        "training.tuning.config",
        "training.tuning.methods",
        "training.recipes.localise_settings",
        "bench.compare.config",
        "demo",
    ],
    "data": ["data"],
    "models": ["hf", "specs", "checks", "edits.drafted", "edits.affine"],
    "a-site-that-is-never-called": ["edits.uncalled", "training.loop.gradients", "hf.engines"],
    "edits-on-a-model": ["edits"],
    "training": ["training"],
    "several-processes": [
        "io.processes",
        "io.launch",
        "edits.whole",
        "edits.replicas",
        "edits.site_input",
        "hf.sharding",
        "training.processes",
        "training.loop.sharding",
        "training.sweep.sharing",
        "training.memory_plan.tensor_parallel",
        "evaluation.answers.systems",
    ],
    "run-folders-and-resuming": [
        "io.lock",
        "io.folders",
        "runs",
        "training.loop.checkpoints",
        "training.recipes.journal",
        "training.sweep.run",
        "training.tuning.folder",
    ],
    "saved-edits": ["edits.files", "edits.importing"],
    "merging-and-exporting": ["edits.merge", "edits.weight_change"],
    "serving": ["serving"],
    "evaluation": ["evaluation"],
    "evidence-and-plots": ["interpret"],
    "comparisons-and-benchmarks": ["bench"],
    "a-package-is-missing": ["io.optional"],
}
"""Families of messages, each a heading of the page of errors, and the modules of headedit that raise them.

A module that is named with its parent belongs to the family where it is named itself; what is not named, such as
``io.files``, to the family of its caller.
"""

_FAMILY_OF = {f"headedit.{module}": family for family, modules in FAMILIES.items() for module in modules}
_FAMILY_OF_MESSAGE = {
    re.compile(r".*\bpip install ", re.DOTALL): "a-package-is-missing",
    re.compile(r"[a-z_]+(: [a-z_]+)*: found "): "settings",  # an argument, or a key and those above it
}


class HeadEditError(Exception):
    """Something is wrong that the user can put right; the message says what, where, and what to do.

    Attributes:
        family: what the message is about, as the heading of the page of errors on which ``headedit errors FAMILY``
            prints causes and remedies, such as ``saved-edits``; None for an error that headedit did not make.
    """

    family: str | None

    def __new__(cls, *args: Any, **options: Any) -> "HeadEditError":
        """Finds the family by the message and by where it is made, so that no call has to name it."""
        error = super().__new__(cls, *args, **options)
        error.family = _family_of(str(args[0]) if args else "", sys._getframe(1))
        return error


def _family_of(message: str, frame: FrameType | None) -> str | None:
    """The family of a message, by the innermost module of the calls that belongs to one."""
    while frame is not None:
        family = family_of(str(frame.f_globals.get("__name__", "")), message)
        if family is not None:
            return family
        frame = frame.f_back
    return None


def family_of(module: str, message: str = "") -> str | None:
    """The family of a message of a module; None where the module leaves it to its caller, or is not of headedit."""
    while module not in _FAMILY_OF:
        module = module.rpartition(".")[0]
        if not module:
            return None
    by_message = (family for pattern, family in _FAMILY_OF_MESSAGE.items() if pattern.match(message))
    return next(by_message, _FAMILY_OF[module])


RELEASED_MODELS = {
    "llama3.1_8B": "meta-llama/Meta-Llama-3.1-8B",
    "llama3.1_8B_chat": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.2_1B_chat": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2_3B_chat": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.1_70B_chat": "meta-llama/Llama-3.1-70B-Instruct",
    "qwen2.5_7B_chat": "Qwen/Qwen2.5-7B-Instruct",
    "llama3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "olmo2_13b_instruct_16k": "embraceableAI/OLMo-2-1124-13B-Instruct-16k-Context-FT-ChatML",
    "llama2-7b-base": "meta-llama/Llama-2-7b-hf",
    "llama2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama2-13b-base": "meta-llama/Llama-2-13b-hf",
    "gemma-7b-base": "google/gemma-7b",
}
"""What the released code of JoLA, its fork for OLMo-2 and LoFiT call models, and their ids on the hub."""

_RELEASED = {
    **RELEASED_MODELS,
    "model_config": "the section model",
    "training_config": "the sections training and recipe",
    "data_config": "the section data",
    "jola_config": "the section recipe",
    "hardware_config": "the section model",
    "logging_config": "the section logging",
    "pretrained_model_name_or_path": "model.name",
    "base_model_name": "model.name, an id of the hub or a folder",
    "torch_dtype": "model.dtype",
    "use_flash_attention": "model.attn_implementation, best",
    "applied_module": "edits.sites",
    "gate_scheduler": "recipe.lambda_schedule",
    "lofit_component": "a stage of the recipe lofit, which runs both",
    "gate_lambda": "recipe.lambda_offset and recipe.lambda_scale; JoLA's code never reads it",
    "gated_lambda": "recipe.lambda_offset, with recipe.lambda_schedule constant",
    "expon": "exponential",
    "perform": "performance",
    "early_stopping_patience": "recipe.patience",
    "lr": "training.learning_rate",
    "train_batch": "training.per_device_train_batch_size",
    "eval_batch": "training.per_device_eval_batch_size",
    "num_epoch": "training.num_train_epochs",
    "evaluation_strategy": "training.eval_strategy",
    "use_gradient_checkpointing": "training.gradient_checkpointing",
    "train_size": "data.examples",
    "valid_size": "data.valid, or data.valid_examples of a file of its own",
    "test_size": "data.test, or data.test_examples of a file of its own",
    "data_path": "data.train, data.valid and data.test",
    "format_type": "data.template",
    "project_name": "logging.project",
    "ARC-c": "arc_c",
    "ARC-e": "arc_e",
    "ARC-Challenge": "arc_c",
    "ARC-Easy": "arc_e",
    "BoolQ": "boolq",
    "HellaSwag": "hellaswag",
    "OBQA": "obqa",
    "openbookqa": "obqa",
    "PIQA": "piqa",
    "SIQA": "siqa",
    "social_i_qa": "siqa",
    "WinoGrande": "winogrande",
    "common_reason": "commonsense, a suite of tasks",
    "CommonGen": "common_gen",
    "E2E_NLG": "e2e_nlg",
    "Web_NLG": "web_nlg",
    "Xsum": "xsum",
    "MMLU-Pro": "mmlu_pro",
    "truthfulqa": "truthfulqa_mc1 and truthfulqa_mc2",
    "TruthfulQA": "truthfulqa_mc1 and truthfulqa_mc2",
    "MQuAKE": "mquake",
    "CLUTRR": "clutrr",
}
"""Names in the released code of JoLA, its fork and LoFiT, and in the data of LLM-Adapters, that are others here."""


def released_name(name: object) -> str:
    """What a name in the published projects is here, as a sentence after a space; empty for other names."""
    found = _RELEASED.get(str(name))
    return "" if found is None else f" '{name}' in the published code is {found} here."


def suggest(name: object, options: Iterable[str], *, title: str | None = None, elsewhere: bool = False) -> str:
    """`` Did you mean 'x'?`` for the closest option, else the list of what is possible, where it is short.

    Of a name in the published projects it says what it is here instead.

    Args:
        name: what was given.
        options: what is possible.
        title: what the options are called, such as ``Recipes``; all of them then follow, once and in their order.
        elsewhere: the message lists the options itself, so they are not listed here.
    """
    options = list(options)
    close = difflib.get_close_matches(str(name), sorted(options), n=1)
    hint = released_name(name) or (f" Did you mean '{close[0]}'?" if close else "")
    if title is not None:
        return f"{hint} {title}: {', '.join(options)}."
    if hint or elsewhere or not 0 < len(options) <= _LISTED:
        return hint
    return f" Possible: {', '.join(sorted(options))}."
