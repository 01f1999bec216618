"""Works with: every way to generate sees the edits, and only the edits."""

import functools

import pytest
import torch
from third_party import edited, merged
from tiny import logits, tiny_model
from transformers import pipeline

import headedit

GREEDY = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
BEAMS = {**GREEDY, "num_beams": 3}
SAMPLED = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 1.0, "eos_token_id": None}


def test_greedy_decoding_with_a_cache_is_the_argmax_of_full_forward_passes(llama, ids):
    base = llama.generate(ids, **GREEDY)
    edited(llama)
    tokens = ids
    for _ in range(16):
        last = logits(llama, tokens)[:, -1]
        last[:, llama.generation_config.eos_token_id] = -torch.inf
        tokens = torch.cat([tokens, last.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(llama.generate(ids, **GREEDY), tokens)
    assert not torch.equal(base, tokens)


def test_beam_search_equals_that_of_the_merged_model(llama, ids):
    base = llama.generate(ids, **BEAMS)
    edits = edited(llama)
    beams = llama.generate(ids, **BEAMS)
    assert torch.equal(beams, merged(tiny_model("llama")).generate(ids, **BEAMS))
    assert not torch.equal(beams, base)
    with edits.disable_adapter():
        assert torch.equal(llama.generate(ids, **BEAMS), base)


@pytest.mark.parametrize("options", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_left_padding_changes_no_token(llama, ids, options):
    edited(llama)
    padding = torch.zeros(2, 3, dtype=ids.dtype)
    padded = torch.cat([padding, ids], dim=1)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    plain = llama.generate(ids, attention_mask=torch.ones_like(ids), **options)
    left = llama.generate(padded, attention_mask=mask, **options)
    assert torch.equal(plain[:, 7:], left[:, 10:])


def test_sampling_draws_from_the_edited_distribution(llama, ids):
    """The same seed gives the same tokens as sampling by hand, step by step, and as the merged model."""

    def sample(model):
        torch.manual_seed(3)
        return model.generate(ids, **SAMPLED)

    base = sample(llama)
    edits = edited(llama)
    torch.manual_seed(3)
    tokens = ids
    for _ in range(SAMPLED["max_new_tokens"]):
        scores = logits(llama, tokens)[:, -1] / SAMPLED["temperature"]
        smallest = scores.topk(SAMPLED["top_k"]).values[:, -1:]
        weights = scores.masked_fill(scores < smallest, -torch.inf).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(weights, 1)], dim=1)
    assert torch.equal(sample(llama), tokens)
    assert torch.equal(sample(merged(tiny_model("llama"))), tokens)
    assert not torch.equal(base, tokens)
    with edits.disable_adapter():
        assert torch.equal(sample(llama), base)


def calls(model, run):
    """What ``run`` returns, and how many forward passes of a model it took."""
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    result = run()
    hook.remove()
    return result, len(seen)


@pytest.mark.parametrize("who", ["target", "assistant", "both"])
def test_assisted_generation_gives_the_targets_own_greedy_tokens(who, ids):
    """Assistant and target have the same weights, so it is the edits alone that make them disagree."""
    target, assistant = tiny_model("llama"), tiny_model("llama")
    prompt = ids[:1]
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    assist = functools.partial(target.generate, prompt, assistant_model=assistant, **GREEDY)
    _, agreed = calls(target, assist)
    if who != "assistant":
        edited(target)
    if who != "target":
        edited(assistant)
    tokens, steps = calls(target, assist)
    plain, alone = calls(target, lambda: target.generate(prompt, **GREEDY))
    assert torch.equal(tokens, plain)
    assert alone == 16
    assert agreed < 8
    if who == "both":
        assert steps == agreed
    else:
        assert steps > agreed


def test_a_text_generation_pipeline_runs_the_edits():
    from headedit.demo import MODEL_FOLDER
    from headedit.hf.loading import load_model, load_tokenizer

    model, tokenizer = load_model(str(MODEL_FOLDER)), load_tokenizer(str(MODEL_FOLDER))
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    ask = functools.partial(generator, "copy : a b c d =", max_new_tokens=5, do_sample=False, return_full_text=False)
    assert ask()[0]["generated_text"].strip() == "a b c d"
    edits = headedit.attach(model)
    for layer in range(4):
        for head in range(8):
            edits.set_head(layer, head, scale=0.0)
    assert ask()[0]["generated_text"].strip() != "a b c d"
    with edits.disable_adapter():
        assert ask()[0]["generated_text"].strip() == "a b c d"
