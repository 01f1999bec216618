"""Gradient accumulation: a batch in parts gives the loss and the gradients of the whole one, for every type."""

import pytest
import torch
from datasets import Dataset
from tokenizers_tiny import byte_level
from transformers import TrainingArguments
from zoo import WITH_HEADS, zoo_model

import headedit
from headedit.data import losses
from headedit.data.batches import PadRight
from headedit.data.equal_lengths import _report
from headedit.data.losses import example_losses
from headedit.specs.tiny import tiny_configs

LEFT_OUT = {
    "blt": "it reads bytes in patches",
    "git": "it has image tokens before the text",
    "musicgen": "it reads audio codes",
    "musicgen_melody": "it reads audio codes",
    "reformer": "its reversible layers pass no gradient on from inputs that have none",
}
TYPES = sorted(set(WITH_HEADS) - set(LEFT_OUT))
CHANGES = {"reformer": {"axial_pos_embds": False}}  # such positions are for one length alone in training
UNPADDED = ["cpmant", "prophetnet", "reformer"]


def made(model_type):
    return zoo_model(model_type, {**tiny_configs()[model_type], **CHANGES.get(model_type, {})})


def rows():
    draw = torch.Generator().manual_seed(0)
    found = []
    for length in (12, 12, 9, 6):
        ids = torch.randint(3, 60, (length,), generator=draw).tolist()
        found.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return found


def step(model, folder, parts, edits=None, config=TrainingArguments, kind=headedit.HeadEditTrainer, more=None):
    """The loss and the gradients of one step of four examples in a number of parts."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    edits = headedit.attach(model, config=headedit.EditConfig(gates="none")) if edits is None else edits
    arguments = config(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts,
        report_to=[], use_cpu=True, learning_rate=0.0, disable_tqdm=True, remove_unused_columns=False, logging_steps=1,
        seed=0, save_strategy="no", max_grad_norm=0.0, **(more or {}),
    )  # fmt: skip
    own = {"processing_class": byte_level()} if more else {"data_collator": PadRight()}
    trainer = kind(edits, args=arguments, train_dataset=Dataset.from_list(rows()) if more else rows(), **own)
    seen = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in edits.module.parameters() if p.grad is not None)
    )
    trainer.train()
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row), seen


@pytest.mark.parametrize("model_type", TYPES)
def test_accumulated_parts_of_unequal_lengths_give_the_step_of_the_whole_batch(model_type, tmp_path):
    whole, gradients = step(made(model_type), tmp_path / "a", 1)
    parts, accumulated = step(made(model_type), tmp_path / "b", 4)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert gradients
    assert len(gradients) == len(accumulated)
    largest = max(gradient.abs().max() for gradient in gradients)
    assert largest > 0
    for one, other in zip(gradients, accumulated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(largest))


def apart(model):
    """The model with larger weights, so that its losses depend on the inputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


@pytest.mark.parametrize("largest", [losses.LARGEST, 1], ids=["whole", "chunks"])
@pytest.mark.parametrize("model_type", [*UNPADDED, "bart", "llama"])
def test_the_losses_of_examples_in_a_batch_are_those_alone(model_type, largest, monkeypatch):
    model = apart(made(model_type))
    monkeypatch.setattr(losses, "LARGEST", largest)
    together = example_losses(model, rows(), PadRight(), 4)
    alone = torch.cat([example_losses(model, [row], PadRight(), 1) for row in rows()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("largest", [losses.LARGEST, 1], ids=["whole", "chunks"])
@pytest.mark.parametrize("model_type", UNPADDED)
def test_training_and_validation_of_a_type_without_padding_have_the_losses_of_the_rows_alone(
    model_type, largest, tmp_path, monkeypatch
):
    model = apart(made(model_type))
    alone = torch.cat([example_losses(model, [row], PadRight(), 1) for row in rows()])
    tokens = torch.tensor([sum(label != -100 for label in row["labels"]) for row in rows()])
    monkeypatch.setattr(losses, "LARGEST", largest)
    edits = headedit.attach(model, config=headedit.EditConfig(gates="none"))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=4, report_to=[], use_cpu=True, remove_unused_columns=False,
        prediction_loss_only=True,
    )  # fmt: skip
    trainer = headedit.HeadEditTrainer(edits, args=arguments, eval_dataset=rows(), data_collator=PadRight())
    expected = float((alone * tokens).sum() / tokens.sum())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    if model_type not in LEFT_OUT:
        assert step(model, tmp_path, 1, edits)[0] == pytest.approx(expected, rel=1e-4)


def test_a_type_that_takes_padding_is_run_in_one_pass_and_another_says_that_it_is_not(caplog):
    _report.cache_clear()
    for model_type, passes in (("llama", 1), ("cpmant", 3)):
        model, calls = zoo_model(model_type), []
        model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        example_losses(model, rows(), PadRight(), 4)
        assert len(calls) == passes
    assert caplog.text.count("only examples of equal length share a pass") == 1


@pytest.mark.parametrize("model_type", ["bart", "xlm", "gemma4", "mixtral"])
def test_the_loss_that_is_trained_is_the_one_that_is_measured(model_type, tmp_path):
    model = zoo_model(model_type)
    per_example = example_losses(model, rows(), PadRight(), 4)
    tokens = torch.tensor([sum(label != -100 for label in row["labels"]) for row in rows()])
    expected = float((per_example * tokens).sum() / tokens.sum())
    assert step(model, tmp_path, 2)[0] == pytest.approx(expected, rel=1e-4)


def test_router_losses_are_trained_and_not_in_the_validation_loss(tmp_path):
    def run(weight, parts):
        model = zoo_model("mixtral")
        model.config.output_router_logits = weight > 0
        model.router_aux_loss_coef = weight
        edits = headedit.attach(model)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4 // parts, report_to=[], use_cpu=True,
            gradient_accumulation_steps=parts, learning_rate=0.0, disable_tqdm=True, remove_unused_columns=False,
            logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        trainer = headedit.HeadEditTrainer(
            edits, args=arguments, train_dataset=rows(), eval_dataset=rows(), data_collator=PadRight()
        )
        trainer.train()
        logs = {key: value for row in trainer.state.log_history for key, value in row.items()}
        return logs["loss"], logs["objective"], logs["eval_loss"]

    loss, objective, validated = run(0.0, 1)
    for parts in (1, 4):
        with_router = run(0.5, parts)
        assert with_router[0] == pytest.approx(loss, rel=1e-4)
        assert with_router[2] == pytest.approx(validated, rel=1e-6)
        assert 0.3 < with_router[1] - objective < 3


@pytest.mark.parametrize("model_type", ["llama", "bart", "xlm", "gemma4", "ctrl"])
def test_accumulated_parts_give_the_step_of_the_whole_batch_in_trls_trainer_too(model_type, tmp_path):
    trl = pytest.importorskip("trl")

    class EditSFTTrainer(headedit.HeadEditMixin, trl.SFTTrainer):
        pass

    options = {"bf16": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}
    whole, accumulated = (
        step(zoo_model(model_type), tmp_path / str(parts), parts, None, trl.SFTConfig, EditSFTTrainer, options)
        for parts in (1, 4)
    )
    plain, _ = step(zoo_model(model_type), tmp_path / "plain", 1)
    assert whole[0] == pytest.approx(plain, rel=1e-4)
    assert accumulated[0] == pytest.approx(plain, rel=1e-4)
    largest = max(gradient.abs().max() for gradient in whole[1])
    for one, other in zip(whole[1], accumulated[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(largest))


def test_a_trainer_with_a_loss_of_its_own_refuses_a_batch_whose_padding_the_type_does_not_take(tmp_path):
    trl = pytest.importorskip("trl")

    class EditSFTTrainer(headedit.HeadEditMixin, trl.SFTTrainer):
        pass

    options = {"bf16": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}
    given = (None, trl.SFTConfig, EditSFTTrainer, options)
    with pytest.raises(headedit.HeadEditError, match="per_device_train_batch_size"):
        step(zoo_model("cpmant"), tmp_path / "whole", 1, *given)
    assert step(zoo_model("cpmant"), tmp_path / "parts", 4, *given)[0] == pytest.approx(
        step(zoo_model("cpmant"), tmp_path / "ours", 1)[0], rel=1e-4
    )
