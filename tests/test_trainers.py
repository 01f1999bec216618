"""The edits under three trainers: ours, transformers' own and TRL's, with early stopping and the best checkpoint."""

import pytest
import torch
from datasets import Dataset
from tiny import logits, tiny_model
from tokenizers_tiny import byte_level
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

import headedit
from headedit import HeadEditMixin, HeadEditTrainer
from headedit.data.batches import PadRight

ROWS = [{"input_ids": [i, i + 1, 3 + i % 7], "labels": [-100, i + 1, 3 + i % 7]} for i in range(3, 27)]
OPTIONS = {
    "learning_rate": 0.5,
    "num_train_epochs": 6,
    "per_device_train_batch_size": 8,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "logging_steps": 1,
    "report_to": [],
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "use_cpu": True,
}


def attached():
    return headedit.attach(tiny_model("llama"), config=headedit.EditConfig(gates="none"))


def losses(trainer):
    return [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]


@pytest.mark.parametrize("ours", [True, False], ids=["HeadEditTrainer", "Trainer"])
def test_a_trainer_stops_early_and_ends_with_the_best_edits(ours, tmp_path):
    edits = attached()
    wrong_way = {**OPTIONS, "greater_is_better": True}  # so that every epoch of learning is worse than the first
    arguments = TrainingArguments(output_dir=str(tmp_path), **wrong_way)
    options = {"args": arguments, "train_dataset": ROWS[:16], "eval_dataset": ROWS[16:], "data_collator": PadRight()}
    callbacks = [EarlyStoppingCallback(1)]
    if ours:
        trainer = HeadEditTrainer(edits, callbacks=callbacks, **options)
    else:
        trainer = Trainer(model=edits.model, callbacks=callbacks, **options)
    trainer.train()
    found = losses(trainer)
    assert len(found) == 2
    assert found[1] < found[0] - 1e-3  # it stopped one epoch after the best
    assert trainer.evaluate()["eval_loss"] == pytest.approx(found[0], rel=1e-5)


def test_our_trainer_and_a_plain_one_learn_the_same_edits(tmp_path):
    kept = []
    for make in (lambda e, **o: HeadEditTrainer(e, **o), lambda e, **o: Trainer(model=e.model, **o)):
        edits = attached()
        arguments = TrainingArguments(output_dir=str(tmp_path / str(len(kept))), **OPTIONS)
        make(edits, args=arguments, train_dataset=ROWS[:16], eval_dataset=ROWS[16:], data_collator=PadRight()).train()
        kept.append(edits.snapshot())
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert any(t.any() for t in kept[0])


def test_the_mixin_makes_trls_trainer_learn_edits(tmp_path):
    trl = pytest.importorskip("trl")

    class EditSFTTrainer(HeadEditMixin, trl.SFTTrainer):
        pass

    tokenizer = byte_level()
    texts = [{"prompt": "instruction :", "completion": " response"}, {"prompt": "a b", "completion": " c d"}] * 8
    edits = headedit.attach(tiny_model("llama", vocab_size=512), config=headedit.EditConfig(gates="none"))
    base = logits(edits.model, torch.tensor([[3, 4, 5]]))
    options = {key: value for key, value in OPTIONS.items() if key != "remove_unused_columns"}
    trainer = EditSFTTrainer(
        edits,
        args=trl.SFTConfig(output_dir=str(tmp_path), bf16=False, **options),
        train_dataset=Dataset.from_list(texts),
        eval_dataset=Dataset.from_list(texts[:4]),
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    found = losses(trainer)
    assert min(found) < found[0]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(found), rel=1e-4)
    names = {file.name for file in tmp_path.glob("checkpoint-*/*")}
    assert "headedit.safetensors" in names
    assert not any(name.startswith(("model", "pytorch_model")) for name in names)
    assert {"loss", "eval_loss", "open_offset"} <= {key for row in trainer.history.rows for key in row}
    with edits.disable_adapter():
        assert torch.equal(logits(edits.model, torch.tensor([[3, 4, 5]])), base)


def test_logs_have_losses_penalty_gates_speed_and_memory(tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    arguments = TrainingArguments(output_dir=str(tmp_path), **{**OPTIONS, "report_to": ["tensorboard"]})
    trainer = HeadEditTrainer(
        edits, args=arguments, train_dataset=ROWS[:16], eval_dataset=ROWS[16:], data_collator=PadRight()
    )
    trainer.train()
    logged = {key for row in trainer.state.log_history for key in row}
    wanted = {"loss", "eval_loss", "penalty", "open_offset", "open_scale", "learning_rate", "tokens_per_second"}
    assert wanted | {"memory_gb"} <= logged
    rates = [row["tokens_per_second"] for row in trainer.state.log_history if "tokens_per_second" in row]
    assert min(rates) > 0
    assert not any(
        "tokens_per_second" in row for row in trainer.history.rows
    )  # the history is the same for the same seed
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.rglob("events.*"))))
    events.Reload()
    assert {"train/loss", "train/open_offset", "train/tokens_per_second", "eval/loss"} <= set(events.Tags()["scalars"])
