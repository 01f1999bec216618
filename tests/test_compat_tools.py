"""Works with: nnsight, accelerate, lm_eval, and copies."""

import copy

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from third_party import edited
from tiny import logits, tiny_model


def test_nnsight_traces_an_edited_model(llama, ids):
    nnsight = pytest.importorskip("nnsight")
    edited(llama)
    expected = logits(llama, ids)
    wrapped = nnsight.NNsight(llama)
    with torch.no_grad(), wrapped.trace(input_ids=ids):
        heads = wrapped.model.layers[0].self_attn.o_proj.input.save()
        out = wrapped.lm_head.output.save()
    assert heads.shape == (2, 7, 64)
    assert torch.equal(out, expected)
    assert torch.equal(logits(llama, ids), expected)


class Seen(ModelHook):
    """Keeps what a module is given."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def pre_forward(self, module, *args, **kwargs):
        self.inputs.append(args[0].clone())
        return args, kwargs


@pytest.mark.parametrize("order", ["before", "after"])
def test_hooks_of_accelerate_see_edited_heads(llama, ids, order):
    projection, hook = llama.model.layers[0].self_attn.o_proj, Seen()
    wanted = tiny_model("llama")
    edited(wanted)
    if order == "before":
        add_hook_to_module(projection, hook)
    edits = edited(llama)
    if order == "after":
        add_hook_to_module(projection, hook)
    assert torch.equal(logits(llama, ids), logits(wanted, ids))
    with edits.disable_adapter():
        assert torch.equal(logits(llama, ids), logits(tiny_model("llama"), ids))
    acted, rested = hook.inputs
    assert torch.equal(acted, edits.module.site_edits[0](rested))
    remove_hook_from_module(projection)
    assert torch.equal(logits(llama, ids), logits(wanted, ids))
    edits.detach()
    assert torch.equal(logits(llama, ids), logits(tiny_model("llama"), ids))


def test_a_loop_with_accelerator_prepare_trains_as_one_without(ids):
    def train(prepare):
        model = tiny_model("llama")
        edits = edited(model)
        optimizer = torch.optim.AdamW(edits.vector_parameters(), lr=0.01)
        backward = torch.Tensor.backward
        if prepare:
            accelerator = accelerate.Accelerator(cpu=True)
            model, optimizer = accelerator.prepare(model, optimizer)
            backward = accelerator.backward
        for _ in range(3):
            optimizer.zero_grad()
            backward(model(input_ids=ids, labels=ids).loss)
            optimizer.step()
        return edits.snapshot()

    start = edited(tiny_model("llama")).snapshot()
    plain, prepared = train(False), train(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, prepared, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, start, strict=True))


def test_lm_eval_scores_the_edited_model():
    hflm = pytest.importorskip("lm_eval.models.huggingface").HFLM
    from lm_eval.api.instance import Instance

    from headedit.demo import MODEL_FOLDER
    from headedit.hf.loading import load_model, load_tokenizer

    model, tokenizer = load_model(str(MODEL_FOLDER)), load_tokenizer(str(MODEL_FOLDER))
    pairs = [("copy : a b c d =", " a b c d"), ("reverse : a b c =", " c b a"), ("next : a b =", " b")]
    edits = edited(model)
    harness = hflm(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    assert harness.model is model

    def ask(kind, arguments):
        requests = [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]
        return getattr(harness, kind)(requests, disable_tqdm=True)

    def by_hand(context, continuation):
        first, tokens = len(tokenizer.encode(context)), tokenizer.encode(context + continuation)
        scores = logits(model, torch.tensor([tokens])).log_softmax(-1)[0]
        return sum(float(scores[i - 1, tokens[i]]) for i in range(first, len(tokens)))

    found = [likelihood for likelihood, _ in ask("loglikelihood", pairs)]
    assert found == pytest.approx([by_hand(*pair) for pair in pairs], rel=1e-4, abs=1e-5)
    with edits.disable_adapter():
        base = [likelihood for likelihood, _ in ask("loglikelihood", pairs)]
        assert base == pytest.approx([by_hand(*pair) for pair in pairs], rel=1e-4, abs=1e-5)
    assert all(abs(a - b) > 1e-3 for a, b in zip(found, base, strict=True))
    options = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    answers = ask("generate_until", [(context, options) for context, _ in pairs])
    for (context, _), answer in zip(pairs, answers, strict=True):
        prompt = tokenizer(context, return_tensors="pt")["input_ids"]
        tokens = model.generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :]
        assert answer.strip() == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_a_deep_copy_has_edits_of_its_own(llama, ids):
    edits = edited(llama)
    wanted = logits(llama, ids)
    twin = copy.deepcopy(llama)
    for head in range(4):
        edits.set_head(0, head, scale=0.0)
    assert torch.equal(logits(twin, ids), wanted)
    assert not torch.allclose(logits(llama, ids), wanted, atol=1e-4)
