"""Greedy decoding in parts, with rows that leave the batch: the tokens of one call of ``generate``, for every type."""

import pytest
import torch
from test_eval_shared_prompts import TYPES, Numbers, prompts, spread, text

import headedit
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers.extraction import first_line
from headedit.evaluation.answers.generation import continuations, generate
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
    sizes = watched(model, monkeypatch)
    decoder = GreedyDecoder(model, [], SETTINGS)
    found = decoder.decode(ids, mask, 12, lambda row, tokens: row % 2 == 0)
    assert decoder.in_parts
    assert sizes == [(4, 8), *[(2, 1)] * 11]  # the prompt is run once
    assert list(map(len, found)) == [1, 12, 1, 12]


@torch.no_grad()
def test_a_single_row_that_has_ended_leaves_a_large_batch_after_some_passes(monkeypatch):
    model = spread("llama")
    sizes = watched(model, monkeypatch)
    ids = torch.randint(3, 60, (16, 8), generator=torch.Generator().manual_seed(1))
    GreedyDecoder(model, [], SETTINGS).decode(ids, torch.ones_like(ids), 6, lambda row, tokens: row == 5)
    assert sizes == [(16, 8), (16, 1), (16, 1), *[(15, 1)] * 3]


def test_the_first_line_is_that_of_the_whole_text():
    model, tokenizer = load_model(str(MODEL_FOLDER), device="cpu"), load_tokenizer(str(MODEL_FOLDER))
    prompts = [row["prompt"] for row in tasks.records("sort", 20, cued=False, seed=7)]

    def texts(**options):
        found = continuations(model, tokenizer, prompts, max_new_tokens=30, progress=False, **options)
        return dict(pair for batch in found for pair in batch)

    whole, lines = texts(), texts(first_line=True, batch_size=7)
    assert [first_line(lines[i].text) for i in range(20)] == [first_line(whole[i].text) for i in range(20)]


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_prompts_that_begin_alike_are_continued_as_they_are_alone(model_type):
    model, heads = spread(model_type), begun_alike()
    model.generation_config.eos_token_id = None
    expected = [
        model.generate(torch.tensor([head]), max_new_tokens=5, eos_token_id=None, **SETTINGS)[0, len(head) :].tolist()
        for head in heads
    ]
    found = continuations(model, Listed(), list(map(text, heads)), max_new_tokens=5, batch_size=5, progress=False)
    texts = dict(pair for batch in found for pair in batch)
    assert [texts[i].text for i in range(len(heads))] == [text(tokens) for tokens in expected]


@torch.no_grad()
def test_edits_act_on_a_beginning_that_is_run_once():
    model, heads = spread("llama"), begun_alike()
    model.generation_config.eos_token_id = None
    texts = list(map(text, heads))
    base = generate(model, Listed(), texts, max_new_tokens=5, progress=False)
    edits = headedit.attach(model)
    for site in edits.sites:
        for head in range(site.heads):
            edits.set_head(site.layer, head, scale=-1.0, offset=torch.full((site.head_dim,), 0.5 * (head + 1)))
    alone = [generate(model, Listed(), [one], max_new_tokens=5, progress=False)[0] for one in texts]
    assert generate(model, Listed(), texts, max_new_tokens=5, progress=False) == alone
    assert alone != base


@torch.no_grad()
def test_what_all_prompts_begin_with_is_run_once(monkeypatch):
    model, heads = spread("llama"), begun_alike()
    sizes = watched(model, monkeypatch)
    list(continuations(model, Listed(), list(map(text, heads)), max_new_tokens=3, batch_size=2, progress=False))
    # the beginning, a prompt of the first batch after it and whole, then the batches
    assert sizes[:4] == [(1, 17), (1, 7), (1, 24), (2, 7)]
    assert max(width for _, width in sizes[3:]) == 7


@torch.no_grad()
def test_a_model_that_goes_on_otherwise_from_a_beginning_is_noticed(monkeypatch):
    model, heads = spread("llama"), begun_alike()
    prompts = list(map(text, heads))
    expected = generate(model, Listed(), prompts[:7], max_new_tokens=3, progress=False)  # too few to share
    run = type(model).forward.__get__(model)

    def forward(input_ids=None, past_key_values=None, position_ids=None, **inputs):
        given = {"past_key_values": past_key_values, "position_ids": position_ids}
        out = run(input_ids=input_ids, **given, **inputs)
        if 1 < input_ids.shape[1] < 17:
            out.logits = out.logits.flip(-1)
        return out

    monkeypatch.setattr(model, "forward", forward)
    assert generate(model, Listed(), prompts, max_new_tokens=3, progress=False)[:7] == expected


class Listed(Numbers):
    """A tokenizer of texts that list token ids, both ways."""

    def decode(self, ids, **options):
        return text(ids)

    def batch_decode(self, rows, **options):
        return [text(row) for row in rows]


def begun_alike():
    """Prompts of 18 tokens or more, of which the first 17 are the same."""
    return [prompts((17,))[0] + rest for rest in prompts((3, 7, 1, 4, 7, 2, 5, 1))]


def watched(model, monkeypatch):
    """The shapes of the input ids of the model's passes."""
    sizes = []
    run = type(model).forward.__get__(model)

    def forward(input_ids=None, past_key_values=None, position_ids=None, **inputs):
        sizes.append(tuple(input_ids.shape))
        given = {"past_key_values": past_key_values, "position_ids": position_ids}
        return run(input_ids=input_ids, **given, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    return sizes
