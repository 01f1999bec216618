"""A training by DeepSpeed's ZeRO-2 for ``torchrun``: ``processes_deepspeed.py OUTPUT``, on two processes."""

import sys

import torch
from processes import ROWS, pretend_an_accelerator
from tiny import tiny_model
from transformers import TrainingArguments

import headedit
from headedit.data.batches import PadRight


def train(output, batch, **options):
    """Six steps without an adaptive optimiser, which would enlarge differences of rounding; the handle."""
    edits = headedit.attach(tiny_model("llama"))
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch,
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        optim="sgd",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    trainer = headedit.HeadEditTrainer(edits, args=arguments, train_dataset=ROWS[:32], data_collator=PadRight())
    trainer.train()
    trainer.save_model()
    return edits


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretend_an_accelerator()
    automatic = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps")
    config = dict.fromkeys((*automatic, "gradient_clipping"), "auto") | {"zero_allow_untested_optimizer": True}
    train(sys.argv[1], 4, deepspeed={**config, "zero_optimization": {"stage": 2}, "zero_force_ds_cpu_optimizer": False})
    torch.distributed.destroy_process_group()
