"""Trains the embedded model from scratch: ``python -m headedit.demo.pretrain --output DIR``.

A Llama of 4 layers and 8 heads learns the six tasks of ``headedit.demo.tasks``. In 60 % of the sequences
the cue names the task; in the rest it is ``?``, so that without a cue the model is undecided between all
six and an edit has something to decide. Everything is drawn from one seed; the log of the run is saved
next to the weights, with the accuracies of the finished model.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from headedit.data import to_pair
from headedit.data.batches import IGNORED
from headedit.demo import tasks
from headedit.evaluation.exact_match import exact_match
from headedit.io.bars import tqdm

CUED_SHARE = 0.6
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word: the cues, the letters and three signs, with ``<s>`` in front."""
    words = [*SPECIAL, ":", "=", tasks.NO_CUE, *tasks.TASKS, *tasks.LETTERS]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=64,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained Llama: 4 layers of 8 heads, width 16 per head, under half a million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=16,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def draw_batch(tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Token ids and labels of ``size`` random sequences, [size, tokens]; labels hold the answers only."""
    names = list(tasks.TASKS)
    rows, labels = [], []
    for _ in range(size):
        task = rng.choice(names)
        example = tasks.record(task, tasks.random_letters(rng), cued=rng.random() < CUED_SHARE)
        words = ["<s>", *example["prompt"].split(), *example["response"].split(), "</s>"]
        ids = tokenizer.convert_tokens_to_ids(words)
        prompt_length = len(example["prompt"].split()) + 1
        rows.append(ids)
        labels.append([IGNORED] * prompt_length + ids[prompt_length:])
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> list[dict[str, float]]:
    """Trains in place with AdamW and a cosine schedule; returns the log, one row per hundredth of the run."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    warmup = max(1, steps // 40)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    log: list[dict[str, float]] = []
    started = time.perf_counter()
    running: list[Tensor] = []
    model.train()
    for step in tqdm(range(1, steps + 1), desc="pretraining", mininterval=5):
        ids, labels = draw_batch(tokenizer, batch_size, rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.detach())
        if step % max(1, steps // 100) == 0:
            mean = torch.stack(running).mean().item()
            log.append({"step": step, "loss": mean, "seconds": time.perf_counter() - started})
            running.clear()
    model.eval()
    return log


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, float]]:
    """Exact match on 500 fresh examples of every task, with its cue and without."""
    measured: dict[str, dict[str, float]] = {}
    for task in tasks.TASKS:
        measured[task] = {}
        for name, cued in (("cued", True), ("uncued", False)):
            rows = tasks.records(task, 500, cued=cued, seed=1_000_003)
            pairs = [to_pair(row, "a generated example") for row in rows]
            report = exact_match(model, tokenizer, pairs, batch_size=250, progress=False)
            measured[task][name] = report.accuracy
    return measured


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, and saves weights, tokenizer and log into one folder."""
    parser = argparse.ArgumentParser(description="Train the embedded demo model from scratch.")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizer and log")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps (default 4000)")
    parser.add_argument("--batch-size", type=int, default=96, help="sequences per step (default 96)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak rate (default 2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default 0)")
    options = parser.parse_args(arguments)
    set_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    settings = {k: getattr(options, k) for k in ("steps", "batch_size", "learning_rate", "seed")}
    log = train(model, tokenizer, **settings)
    accuracy = measure(model, tokenizer)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    record = {"settings": settings, "parameters": model.num_parameters(), "accuracy": accuracy, "log": log}
    text = json.dumps(record, indent=1) + "\n"
    (options.output / "training_log.json").write_text(text, encoding="utf-8")
    print(json.dumps(accuracy, indent=1))


if __name__ == "__main__":
    main()
