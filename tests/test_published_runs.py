"""The run of OLMo-2 13B that a fork of JoLA publishes, key by key, and the one for a CPU beside it."""

import pytest

from headedit.training.config import read_run

GPU = {  # each key of the published file, and its value
    "pretrained_model_name_or_path": "embraceableAI/OLMo-2-1124-13B-Instruct-16k-Context-FT-ChatML",
    "device": "cuda",
    "cache_dir": None,
    "applied_module": "attention",
    "base_model_name": "olmo2_13b_instruct_16k",
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 10,
    "max_steps": None,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "save_total_limit": 3,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "report_to": "wandb",
    "logging_strategy": "steps",
    "logging_steps": 10,
    "logging_first_step": True,
    "seed": 42,
    "dataloader_pin_memory": True,
    "do_train": True,
    "do_eval": True,
    "do_predict": False,
    "bf16": True,
    "fp16": False,
    "dataloader_num_workers": 4,
    "max_grad_norm": 1.0,
    "output_dir": None,
    "overwrite_output_dir": True,
    "save_steps": 500,
    "eval_steps": 500,
    "early_stopping_patience": 3,
    "early_stopping_threshold": 0.001,
    "train_size": 5000,
    "valid_size": 500,
    "test_size": 500,
    "task_name": "sharegpt",
    "data_path": "sharegpt_training_data_combined_final_solution_correctness_100.jsonl",
    "format_type": "chatml",
    "max_length": 30000,
    "split_ratio": 0.8,
    "gate_lambda": 0.00004,
    "gate_scheduler": "expon",
    "gate_warmup_steps": 100,
    "device_map": "auto",
    "torch_dtype": "bfloat16",
    "use_flash_attention": True,
    "use_gradient_checkpointing": True,
    "project_name": "jola-olmo2-13b-training",
    "run_name": "olmo2-13b-instruct-16k-sharegpt",
    "tags": ["olmo2", "13b", "jola", "sharegpt"],
}
CPU = GPU | {
    "device": "cpu",
    "warmup_steps": 50,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "num_train_epochs": 3,
    "load_best_model_at_end": False,
    "save_total_limit": 1,
    "report_to": None,
    "logging_steps": 50,
    "dataloader_pin_memory": False,
    "bf16": False,
    "dataloader_num_workers": 0,
    "save_steps": 1000,
    "eval_steps": 1000,
    "early_stopping_patience": 2,
    "train_size": 100,
    "valid_size": 20,
    "test_size": 20,
    "max_length": 1024,
    "gate_warmup_steps": 50,
    "device_map": None,
    "torch_dtype": "float32",
    "use_flash_attention": False,
    "project_name": None,
    "run_name": None,
    "tags": [],
}
WITHOUT_COUNTERPART = {
    "cache_dir": "HF_HOME says it",
    "base_model_name": "the type is read from the model's config",
    "max_steps": "null",
    "logging_strategy": "every so many steps",
    "do_train": "always",
    "do_eval": "where there are validation examples",
    "do_predict": "where there are test examples",
    "fp16": "the weights have the dtype",
    "output_dir": "a folder of one's own",
    "overwrite_output_dir": "--overwrite is for the command line",
    "save_steps": "acts with save_strategy: steps alone",
    "eval_steps": "acts with evaluation_strategy: steps alone",
    "task_name": "a name of theirs",
    "split_ratio": "the sizes are given",
    "gate_lambda": "their code never reads it",
    "gate_warmup_steps": "their code never reads it",
}


def settings_of(name):
    """A shipped config under the published names."""
    run = read_run(name)
    model, data, recipe, training, logging = run.model, run.data, run.recipe, run.training, run.logging
    found = {key: training[key] for key in GPU if key in training}
    return found | {
        "pretrained_model_name_or_path": model.name,
        "device": model.device or "cuda",
        "applied_module": run.edits.sites[0] if run.edits.sites else "attention",
        "device_map": model.device_map,
        "torch_dtype": model.dtype,
        "bf16": model.dtype == "bfloat16",
        "use_flash_attention": model.attn_implementation == "best",
        "use_gradient_checkpointing": training["gradient_checkpointing"],
        "learning_rate": recipe["vector_lr"],
        "lr_scheduler_type": recipe["lr_schedule"],
        "weight_decay": recipe["weight_decay"],
        "max_grad_norm": recipe["max_grad_norm"],
        "num_train_epochs": recipe["epochs"],
        "evaluation_strategy": training["eval_strategy"],
        "early_stopping_patience": recipe["patience"],
        "early_stopping_threshold": recipe["early_stopping_threshold"],
        "gate_scheduler": {"exponential": "expon"}[recipe["lambda_schedule"]],
        "train_size": data.examples,
        "valid_size": data.valid,
        "test_size": data.test,
        "data_path": data.train,
        "format_type": data.template,
        "max_length": data.max_length,
        "report_to": None if logging.report_to == "none" else logging.report_to,
        "logging_steps": logging.every,
        "project_name": logging.project,
        "run_name": logging.run_name,
        "tags": logging.tags,
        "seed": run.seed,
        "per_device_train_batch_size": recipe["batch_size"],
    }


@pytest.mark.parametrize(("name", "published"), [("olmo2-13b-sharegpt", GPU), ("olmo2-13b-cpu", CPU)])
def test_every_published_key_has_its_value_in_the_shipped_config_or_a_reason(name, published):
    found = settings_of(name)
    assert {*found} | {*WITHOUT_COUNTERPART} == {*published}
    assert not {*found} & {*WITHOUT_COUNTERPART}
    wanted = {key: value for key, value in published.items() if key in found}
    if name == "olmo2-13b-sharegpt":  # as many examples per step, of which fewer at a time fit the card
        wanted |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    assert found == wanted


def test_gates_and_vectors_have_the_one_published_learning_rate_and_the_released_penalty():
    for name in ("olmo2-13b-sharegpt", "olmo2-13b-cpu"):
        recipe = read_run(name).recipe
        assert recipe["gate_lr"] == recipe["vector_lr"] == 1e-4
        assert (recipe["lambda_offset"], recipe["released_objective"], recipe["adam_epsilon"]) == (0.1, True, 1e-8)
