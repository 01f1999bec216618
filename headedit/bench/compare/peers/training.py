"""How every peer is trained: transformers' own Trainer, AdamW, a warm-up and a cosine, no weight decay."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from headedit.data.batches import Encoded, PadRight


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a peer is trained.

    Fields:
        epochs: passes over the examples.
        min_steps: the least number of optimiser steps; more passes are made to reach it.
        batch_size: examples per step; all of them where there are fewer.
        warmup: share of the steps over which the rate rises, before its cosine.
    """

    epochs: int
    min_steps: int = 0
    batch_size: int = 8
    warmup: float = 0.05


def train_peer(
    model: nn.Module, rows: Sequence[Encoded], budget: Budget, *, learning_rate: float, seed: int, pad_token_id: int
) -> nn.Module:
    """Trains what is trainable of a model, and returns the model in eval mode.

    Args:
        model: with the peer's parameters alone trainable.
        rows: encoded examples.
        budget: how long.
        learning_rate: the peak of the rate.
        seed: of the order of the examples, and of dropout.
        pad_token_id: pads batches.
    """
    batch = min(budget.batch_size, len(rows))
    steps_per_epoch = math.ceil(len(rows) / batch)
    epochs = max(budget.epochs, math.ceil(budget.min_steps / steps_per_epoch))
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(budget.warmup * steps_per_epoch * epochs),
            weight_decay=0.0,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )
        trainer = Trainer(model, arguments, data_collator=PadRight(pad_token_id), train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()
