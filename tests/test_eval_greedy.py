"""Greedy decoding in parts, with rows that leave the batch: the tokens of one call of ``generate``, for every type."""

import pytest
import torch
from test_eval_shared_prompts import TYPES, spread

from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers.extraction import first_line
from headedit.evaluation.answers.generation import continuations
from headedit.evaluation.answers.greedy import GreedyDecoder
from headedit.evaluation.answers.padding import takes_padding
from headedit.hf.loading import load_model, load_tokenizer

SETTINGS = {"do_sample": False, "use_cache": True, "pad_token_id": 0}


def batch(left):
    """Prompts of 8 tokens or fewer, [4, 8], padded on the left if ``left``."""
    ids = torch.randint(3, 60, (4, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(4) if left else ():
        ids[row, :row] = mask[row, :row] = 0
    return ids, mask


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_decoding_in_parts_gives_the_tokens_of_one_call(model_type):
    model = spread(model_type)
    ids, mask = batch(takes_padding(model, "left"))
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=11, eos_token_id=None, **SETTINGS)[:, 8:]
    asked = []

    def ended(row, tokens):
        asked.append(row)
        return len(tokens) >= 4 * (1 + row)

    found = GreedyDecoder(model, [], SETTINGS).decode(ids, mask, 11, ended)
    assert len(asked) > 0
    for row, tokens in enumerate(found):
        assert len(tokens) >= min(11, 4 * (1 + row))
        assert tokens == expected[row, : len(tokens)].tolist()


@torch.no_grad()
def test_rows_that_have_ended_leave_the_batch(monkeypatch):
    model = spread("llama")
    ids, mask = batch(True)
    sizes = []
    run = type(model).forward.__get__(model)

    def forward(input_ids=None, past_key_values=None, **inputs):
        sizes.append(tuple(input_ids.shape))
        return run(input_ids=input_ids, past_key_values=past_key_values, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    decoder = GreedyDecoder(model, [], SETTINGS)
    found = decoder.decode(ids, mask, 12, lambda row, tokens: row % 2 == 0)
    assert decoder.in_parts
    assert sizes == [(4, 8), *[(4, 1)] * 3, *[(2, 1)] * 8]  # the prompt is run once
    assert list(map(len, found)) == [4, 12, 4, 12]


def test_the_first_line_is_that_of_the_whole_text():
    model, tokenizer = load_model(str(MODEL_FOLDER), device="cpu"), load_tokenizer(str(MODEL_FOLDER))
    prompts = [row["prompt"] for row in tasks.records("sort", 20, cued=False, seed=7)]

    def texts(**options):
        found = continuations(model, tokenizer, prompts, max_new_tokens=30, progress=False, **options)
        return dict(pair for batch in found for pair in batch)

    whole, lines = texts(), texts(first_line=True, batch_size=7)
    assert [first_line(lines[i].text) for i in range(20)] == [first_line(whole[i].text) for i in range(20)]
