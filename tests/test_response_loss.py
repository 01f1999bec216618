"""The loss on response tokens alone, in chunks, against the model's own loss."""

import pytest
import torch
from test_trainers import OPTIONS
from tiny import randomise, tiny_model
from torch import Tensor
from transformers import TrainingArguments
from zoo import zoo_model

import headedit
from headedit import HeadEditTrainer
from headedit.data import losses
from headedit.data.batches import PadRight
from headedit.data.losses import WithoutLogits, example_losses, head_of_plain_loss
from headedit.hf.output_head import output_head

SCORED = ["llama", "gpt2", "gemma2", "granite", "cohere", "falcon_h1", "opt", "mixtral"]
ROWS = [{"input_ids": list(range(i, i + 9)), "labels": [-100] * 4 + list(range(i + 4, i + 9))} for i in range(3, 19)]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(losses, "LARGEST", 1)
    monkeypatch.setattr(losses, "chunk_size", lambda vocabulary: 4)


def batch_for(model):
    generator = torch.Generator().manual_seed(1)
    top = model.config.get_text_config().vocab_size - 1
    ids = torch.randint(3, top, (2, 12), generator=generator)
    labels = ids.clone()
    labels[0, :5], labels[1, 9:] = -100, -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def edited(model):
    edits = headedit.attach(model)
    randomise(edits)
    return edits


def gradients(edits, loss: Tensor):
    edits.module.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in edits.module.parameters()]


@pytest.mark.parametrize("model_type", SCORED)
@pytest.mark.parametrize("items", [None, 40])
def test_loss_and_gradients_in_chunks_are_those_of_the_model(model_type, items, small_chunks):
    model = zoo_model(model_type)
    edits = edited(model)
    head, batch = head_of_plain_loss(model), batch_for(model)
    assert head is not None
    more = {} if items is None else {"num_items_in_batch": items}
    theirs = model(**batch, **more).loss
    expected = gradients(edits, theirs)
    labels = batch.pop("labels")
    found = WithoutLogits(model, head)(**batch).loss(labels, items)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
    for ours, wanted in zip(gradients(edits, found), expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("granite", {"logits_scaling": 7.0}),
        ("cohere", {"logit_scale": 0.5}),
    ],
)
def test_what_a_model_does_to_its_logits_is_found(model_type, changes):
    model = zoo_model(model_type)
    for name, value in changes.items():
        setattr(model.config, name, value)
        setattr(model, name, value)  # cohere has read it when it was made
    head = output_head(model)
    assert head is not None
    assert next(iter(changes.values())) in (head.cap, head.factor, head.divisor)


def test_a_model_that_does_something_else_to_its_logits_keeps_its_own_loss():
    model = tiny_model("llama")
    forward = model.forward

    def squared(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits = found.logits * found.logits.abs()
        return found

    model.forward = squared
    assert output_head(model) is None


@pytest.mark.parametrize("model_type", ["bart", "xlm", "git", "musicgen", "xlstm"])
def test_a_type_with_another_loss_or_head_is_left_to_itself(model_type):
    assert head_of_plain_loss(zoo_model(model_type)) is None


def test_a_model_with_another_loss_keeps_it():
    model = tiny_model("llama")
    assert head_of_plain_loss(model) is not None
    plain = model.loss_function
    model.loss_function = lambda *args, **kwargs: plain(*args, **kwargs) * 1.1
    assert head_of_plain_loss(model) is None


def test_no_more_logits_are_made_than_a_chunk_has(small_chunks):
    model = tiny_model("llama")
    edits, head, batch = edited(model), head_of_plain_loss(model), batch_for(model)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1].numel()))
    labels = batch.pop("labels")
    gradients(edits, WithoutLogits(model, head)(**batch).loss(labels))
    assert max(sizes) <= 4
    assert sum(sizes) == 2 + 2 * 15  # the pass itself, and 15 labelled tokens forwards and again backwards


def trained(folder, **changes):
    edits = headedit.attach(tiny_model("llama"), config=headedit.EditConfig(gates="none"))
    arguments = TrainingArguments(output_dir=str(folder), **{**OPTIONS, "num_train_epochs": 2, **changes})
    options = {"train_dataset": ROWS[:12], "eval_dataset": ROWS[12:], "data_collator": PadRight()}
    trainer = HeadEditTrainer(edits, args=arguments, **options)
    trainer.train()
    return edits, [row[key] for row in trainer.history.rows for key in ("loss", "eval_loss") if key in row]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_with_chunks_learns_what_one_without_learns(accumulation, tmp_path, monkeypatch):
    options = {"learning_rate": 0.01, "per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    whole, expected = trained(tmp_path / "whole", **options)
    calls = []
    monkeypatch.setattr(losses, "LARGEST", 4 * 128)
    real = losses.response_losses
    monkeypatch.setattr(losses, "response_losses", lambda *args: calls.append(1) or real(*args))
    parts, found = trained(tmp_path / "parts", **options)
    assert len(calls) > 6
    assert found == pytest.approx(expected, rel=1e-4)
    for ours, wanted in zip(parts.snapshot(), whole.snapshot(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_losses_of_examples_in_chunks_are_those_from_all_logits(model_type, monkeypatch):
    model = edited(zoo_model(model_type)).model
    rows = [*ROWS[:3], {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}]
    expected = example_losses(model, rows, PadRight(), 2)
    monkeypatch.setattr(losses, "LARGEST", 4 * 128)
    found = example_losses(model, rows, PadRight(), 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found[-1] == 0
