"""Options that continue one pass over their prompt have the likelihoods that they have alone, for every type."""

import pytest
import torch
from zoo import WITH_HEADS, zoo_model

from headedit.evaluation.answers.likelihood import option_scores
from headedit.evaluation.answers.rows import RowReader
from headedit.evaluation.answers.shared_prompts import SharedPrompts, passes

OTHER_INPUTS = {"blt", "musicgen", "musicgen_melody", "reformer"}
NOT_CAUSAL = {"cpmant", "xlm"}  # the logits of a token depend on those after it
TYPES = sorted(set(WITH_HEADS) - OTHER_INPUTS)
SHARING = {"llama", "gpt2", "gemma2", "gemma3_text", "mixtral", "qwen2", "bloom", "mistral", "opt"}
OPTIONS = [[7], [8, 9], [8, 10, 11, 12], [13, 14, 15], [8], [13, 9]]


class Numbers:
    """A tokenizer of texts that list token ids."""

    pad_token_id, eos_token_id, bos_token_id = 0, None, None

    def __call__(self, texts, **options):
        listed = [texts] if isinstance(texts, str) else texts
        found = [[int(word) for word in text.split()] for text in listed]
        return {"input_ids": found[0] if isinstance(texts, str) else found}


def spread(model_type):
    """A model whose answers depend on what it is given."""
    model = zoo_model(model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    return model


def prompts(lengths=(9, 21, 5, 9, 14)):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]


def alone(model, head, tail):
    with torch.no_grad():
        ids = torch.tensor([head + tail[:-1]])
        predicted = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().log_softmax(-1)
    return sum(predicted[len(head) - 1 + k, token].item() for k, token in enumerate(tail))


def text(ids):
    return "".join(f" {i}" for i in ids)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("options", [OPTIONS, OPTIONS[:1] * 2 + [[20]]], ids=["several tokens", "one token"])
def test_options_in_a_batch_have_the_likelihoods_that_they_have_alone(model_type, options):
    if model_type in NOT_CAUSAL and options is OPTIONS:
        pytest.skip("an option that begins another has no likelihood of its own")
    model = spread(model_type)
    asked = [(text(head), list(map(text, options))) for head in prompts()]
    found = dict(
        pair for batch in option_scores(model, Numbers(), asked, batch_size=3, progress=False) for pair in batch
    )
    for i, head in enumerate(prompts()):
        expected = [alone(model, head, tail) for tail in options]
        assert found[i].values == pytest.approx(expected, abs=2e-3, rel=2e-4)


@pytest.mark.parametrize("model_type", sorted(SHARING & set(TYPES)))
def test_a_plain_cache_is_shared(model_type):
    model = spread(model_type)
    shared = SharedPrompts(RowReader(model, 0), 3, 63)
    with torch.no_grad():
        assert shared.scores([(head, OPTIONS) for head in prompts()]) is not None
    assert shared.works


@pytest.mark.parametrize("model_type", ["mamba", "rwkv", "xlnet"])
def test_another_cache_is_not_shared(model_type):
    model = spread(model_type)
    shared = SharedPrompts(RowReader(model, 0), 3, 63)
    with torch.no_grad():
        assert shared.scores([(head, OPTIONS) for head in prompts()]) is None
    assert not shared.works


def test_a_model_that_misreads_its_cache_is_noticed(caplog, monkeypatch):
    model = spread("llama")
    run = type(model).forward.__get__(model)

    def forward(attention_mask=None, past_key_values=None, **inputs):
        out = run(attention_mask=attention_mask, past_key_values=past_key_values, **inputs)
        if past_key_values is not None:
            out.logits = out.logits.flip(-1)
        return out

    monkeypatch.setattr(model, "forward", forward)
    asked = [(text(head), list(map(text, OPTIONS))) for head in prompts()]
    found = dict(pair for batch in option_scores(model, Numbers(), asked, progress=False) for pair in batch)
    assert "each option is run with its whole prompt" in caplog.text
    for i, head in enumerate(prompts()):
        assert found[i].values == pytest.approx([alone(model, head, tail) for tail in OPTIONS], abs=2e-3)


def test_without_trees_a_prompt_is_run_once_for_all_its_options(monkeypatch):
    model = spread("llama")
    shapes = []
    run = type(model).forward.__get__(model)

    def forward(input_ids, attention_mask=None, past_key_values=None, **inputs):  # takes no position ids
        shapes.append(tuple(input_ids.shape))
        return run(input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    asked = [(text(head), list(map(text, OPTIONS))) for head in prompts((9, 9, 9))]
    list(option_scores(model, Numbers(), asked, progress=False))
    rows = len(passes(OPTIONS))
    assert shapes == [(3, 9), (3 * rows, 3), (1, 12), (1, 12)]  # the prompts, their options, and two that are compared


def test_logits_are_made_for_the_tokens_that_are_read(monkeypatch):
    model = spread("llama")
    sizes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[:2])))
    asked = [(text(ids), [" 7", " 8", " 9"]) for ids in prompts()]
    list(option_scores(model, Numbers(), asked, progress=False))
    assert sizes == [(5, 1)]


@pytest.mark.parametrize("model_type", TYPES)
def test_what_all_prompts_begin_with_changes_no_likelihood(model_type):
    model = spread(model_type)
    heads = [prompts((17,))[0] + rest for rest in prompts((3, 7, 1, 4, 7))]
    asked = [(text(head), [" 7", " 8 9", " 8"]) for head in heads]
    found = dict(
        pair for batch in option_scores(model, Numbers(), asked, batch_size=3, progress=False) for pair in batch
    )
    for i, head in enumerate(heads):
        if model_type not in NOT_CAUSAL:
            expected = [alone(model, head, tail) for tail in ([7], [8, 9], [8])]
            assert found[i].values == pytest.approx(expected, abs=2e-3, rel=2e-4)


def test_what_all_prompts_begin_with_is_run_once(monkeypatch):
    model = spread("llama")
    shapes = []
    run = type(model).forward.__get__(model)

    def forward(input_ids, past_key_values=None, **inputs):
        shapes.append(tuple(input_ids.shape))
        return run(input_ids=input_ids, past_key_values=past_key_values, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    asked = [(text(prompts((17,))[0] + rest), [" 7", " 8"]) for rest in prompts((3, 7, 5, 4, 7))]
    list(option_scores(model, Numbers(), asked, batch_size=3, progress=False))
    assert shapes == [(1, 17), (3, 7), (1, 24), (1, 22), (2, 4)]  # two of the first batch are compared
