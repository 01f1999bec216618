"""Flags of the published scripts that a user types after ``headedit train``, and what they are here."""

from collections.abc import Sequence

from headedit.errors import HeadEditError

_HERE = {
    "lr": "--set training.learning_rate=5e-3",
    "train_batch": "--set training.per_device_train_batch_size=8",
    "eval_batch": "--set training.per_device_eval_batch_size=8",
    "num_epoch": "--set training.num_train_epochs=20",
    "train_size": "--limit 200, or --set data.examples=200",
    "output_dir": "--output FOLDER",
    "task": "--data FILE; the tasks of `headedit eval` are given as --tasks",
    "subtask": "--data FILE; the tasks of `headedit eval` are given as --tasks",
    "data_path": "--data FILE, --valid FILE",
    "output_file_name": "the option --output of `headedit eval`",
    "applied_module": "--edit sites=attention",
    "base_model_name": "--model, with an id of the hub or a folder",
    "hf_cache_dir": "the environment variable HF_HOME",
    "save_strategy": "--set training.save_strategy=best, epoch or no",
    "gated_lambda": "--set lambda_offset=1e-3 with --set lambda_schedule=constant, of the recipe jola",
    "gate_scheduler": "--set lambda_schedule=exponential (expon), performance (perform), linear or cyclic",
    "run_mode": "not needed: `headedit train` trains, `headedit eval` evaluates",
    "num_epochs": "--set training.num_train_epochs=20",
    "ft_method": "--recipe lofit",
    "lofit_component": "--recipe lofit, which runs both stages",
    "lofit_heads": "--recipe lofit --set given_heads=top_heads.npy",
    "use_topk_heads": "--recipe lofit --set heads=32",
    "l1_lambda": "--recipe lofit --set select_lambda=5e-4",
    "apply_chat_template": "--set data.template=chat",
    "tqa_fold_num": "--data with the file of a fold",
}


def check_released_flags(words: Sequence[str]) -> None:
    """Raises a HeadEditError for a flag of the published scripts among the words after ``headedit train``."""
    for word in words:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name in _HERE:
            raise HeadEditError(
                f"--{name}: is a flag of the published scripts, which is {_HERE[name]} here. A whole command of "
                "JoLA's is converted by: headedit import jola-config -- FLAGS"
            )
