"""Beam search in batches: the same texts as one prompt at a time, by the model's own ``generate``."""

import pytest
import torch
from tiny import FACTS, tiny_model

from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers.beam_prefill import shared_prefill
from headedit.evaluation.answers.generation import continuations, generate
from headedit.hf.loading import load_model, load_tokenizer


@pytest.fixture
def model():
    return load_model(str(MODEL_FOLDER), device="cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(MODEL_FOLDER))


@pytest.fixture(scope="module")
def prompts():
    return [row["prompt"] for task in ("swap", "sort") for row in tasks.records(task, 25, cued=False, seed=77)]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_beams_in_batches_give_what_the_model_gives_for_one_prompt(model, tokenizer, prompts, batch_size):
    options = {"max_new_tokens": 10, "num_beams": 4}
    expected = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**inputs, **options, do_sample=False, pad_token_id=0)
        expected.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert generate(model, tokenizer, prompts, batch_size=batch_size, progress=False, **options) == expected
    assert len(set(map(len, expected))) > 2


def test_decoding_settings_of_the_model_are_not_used(model, tokenizer, prompts):
    options = {"max_new_tokens": 8, "num_beams": 2, "progress": False}
    expected = generate(model, tokenizer, prompts[:6], **options)
    model.generation_config.update(
        repetition_penalty=3.0, do_sample=True, temperature=5.0, length_penalty=-4.0, min_length=30
    )
    assert generate(model, tokenizer, prompts[:6], **options) == expected


def test_tokens_are_counted_to_the_end_of_the_text(model, tokenizer):
    prompts = ["copy : a b c d =", "copy : a b c d e f g h ="]
    found = [pair for batch in continuations(model, tokenizer, prompts, progress=False) for pair in batch]
    assert [(i, c.text, c.tokens) for i, c in found] == [(1, "a b c d e f g h", 9), (0, "a b c d", 5)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mistral", "opt", "falcon"])
def test_a_prompt_that_is_run_once_for_all_beams_changes_nothing(model_type):
    assert model_type in FACTS
    model = tiny_model(model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that beams differ
    ids = torch.randint(3, 128, (6, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row in range(6):
        ids[row, :row] = mask[row, :row] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 4, "do_sample": False, "pad_token_id": 0}
    shared = shared_prefill(model, ids, mask, 4)
    assert shared["past_key_values"].get_seq_length() == 8
    assert torch.equal(model.generate(ids, **shared, **options), model.generate(ids, **options))
