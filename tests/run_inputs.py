"""Inputs of runs from files: tiny models with a tokenizer on disk, and data in the published formats."""

import json
import random

from tiny import tiny_model
from tokenizers_tiny import CHATML, byte_level

WORDS = ["cat", "dog", "ball", "tree", "house", "river", "stone", "bird"]


def save_model(folder, model_type="llama", **changes):
    """Saves a tiny random model and its tokenizer in a folder; returns its path."""
    tiny_model(model_type, vocab_size=420, max_position_embeddings=1024, **changes).save_pretrained(folder)
    byte_level(CHATML).save_pretrained(folder)
    return str(folder)


def save_records(folder, kind, count):
    """Saves records in one of the published formats; returns the file's path."""
    draw = random.Random(kind)
    rows = [_RECORDS[kind](draw) for _ in range(count)]
    lines = kind == "sharegpt_lines"
    file = folder / f"{kind}.{'jsonl' if lines else 'json'}"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    return str(file)


def _words(draw):
    return " ".join(draw.choices(WORDS, k=draw.randint(2, 5)))


def _commonsense(draw):
    answer = draw.choice(["true", "false"])
    question = f"Please answer the following question with true or false, question: is {_words(draw)} {_words(draw)}?"
    return {
        "instruction": f"{question}\n\nAnswer format: true/false",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def _mmlu_pro(draw):
    options = "".join(f"{letter}. {_words(draw)}\n" for letter in "ABCDEFGHIJ")
    lead = "The following are multiple choice questions (with answers) about law."
    return {
        "instruction": f"{lead}\nQuestion: {_words(draw)}?\nOptions:\n{options}",
        "answer": f"The answer is ({draw.choice('ABCDEFGHIJ')})",
    }


def _gem(draw):
    concepts = ", ".join(draw.sample(WORDS, 3))
    return {
        "instruction": f"Ignoring the order of the concepts: {concepts};\nGenerate a sentence with all the concepts :",
        "answer": f"{_words(draw)}.",
    }


def _sharegpt(draw):
    turns = [{"from": who, "value": _words(draw)} for _ in range(draw.randint(1, 2)) for who in ("human", "gpt")]
    return {"id": "x", "conversations": turns}


def _sharegpt_lines(draw):
    """A conversation as the file of the OLMo-2 run has it, with a system turn first."""
    turns = [{"from": who, "value": _words(draw)} for who in ("system", "human", "gpt")]
    return {"conversations": turns}


def _alpaca(draw):
    return {"instruction": f"Repeat: {_words(draw)}", "input": "", "output": _words(draw)}


_RECORDS = {
    "commonsense": _commonsense,
    "mmlu_pro": _mmlu_pro,
    "gem": _gem,
    "sharegpt": _sharegpt,
    "sharegpt_lines": _sharegpt_lines,
    "alpaca": _alpaca,
}
