"""Sites whose module is never called: found in the first pass, and refused by name instead of ending in nothing."""

from collections import OrderedDict

import pytest
import torch
from tiny import logits, randomise, tiny_model
from transformers import Trainer, TrainingArguments
from zoo import zoo_ids, zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.data.batches import PadRight
from headedit.specs.registry import packaged_specs
from headedit.training.loop.gradients import check_gradients

ROWS = [{"input_ids": [i, i + 1, 3 + i % 7], "labels": [-100, i + 1, 3 + i % 7]} for i in range(3, 19)]
FUSED = ["bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"]


def pass_by(owner, modules, when=lambda owner: True):
    """Makes a module run as a fused kernel does: with the weights of others, whose hooks are not called."""
    real = owner.forward

    def forward(*args, **kwargs):
        if not when(owner):
            return real(*args, **kwargs)
        hooks = [module._forward_pre_hooks for module in modules]
        for module in modules:
            module._forward_pre_hooks = OrderedDict()
        try:
            return real(*args, **kwargs)
        finally:
            for module, before in zip(modules, hooks, strict=True):
                module._forward_pre_hooks = before

    owner.forward = forward


def fuse_attention(model, layers=None, when=lambda owner: True):
    for number, layer in enumerate(model.model.layers):
        if layers is None or number in layers:
            pass_by(layer.self_attn, [layer.self_attn.o_proj], when)


def in_training(owner):
    return owner.training


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layers", [None, [1]])
def test_the_first_pass_names_projections_that_are_not_called(layers, training, llama, ids):
    fuse_attention(llama, layers)
    edits = headedit.attach(llama)
    randomise(edits)
    llama.train(training)
    first = 0 if layers is None else layers[0]
    with pytest.raises(HeadEditError, match=rf"model\.layers\.{first}\.self_attn\.o_proj.*LlamaAttention ran, but"):
        llama(input_ids=ids)
    with edits.disable_adapter():
        llama(input_ids=ids)  # the base model needs no edit to act


def test_a_kernel_that_is_used_in_training_only_is_found_in_the_first_training_pass(llama, ids):
    fuse_attention(llama, when=in_training)
    edits = headedit.attach(llama)
    randomise(edits)
    logits(llama, ids)
    llama.train()
    with pytest.raises(HeadEditError, match="never called"):
        llama(input_ids=ids)


def test_a_kernel_that_is_switched_on_later_is_found_in_the_second_pass(llama, ids):
    on = []
    fuse_attention(llama, when=lambda owner: bool(on))
    headedit.attach(llama)
    logits(llama, ids)
    on.append(True)
    logits(llama, ids)
    with pytest.raises(HeadEditError, match="never called"):
        logits(llama, ids)


def test_sites_that_are_left_out_need_not_be_called(llama, ids):
    fuse_attention(llama, [1])
    edits = headedit.attach(llama, config=EditConfig(layers=[0]))
    base = logits(llama, ids)
    randomise(edits)
    assert not torch.equal(logits(llama, ids), base)


@pytest.mark.parametrize("recipe", ["ungated", "jola", "localise", "lofit"])
def test_fit_ends_in_an_error_and_saves_nothing(recipe, llama, tmp_path):
    fuse_attention(llama, when=in_training)
    edits = headedit.attach(llama)
    with pytest.raises(HeadEditError, match="never called"):
        headedit.fit(edits, ROWS, output_dir=tmp_path, recipe=recipe, epochs=1, batch_size=8, progress=False)
    assert not list(tmp_path.rglob("headedit.safetensors"))


def test_a_plain_trainer_ends_in_an_error(llama, tmp_path):
    fuse_attention(llama, when=in_training)
    headedit.attach(llama)
    options = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(model=llama, args=options, train_dataset=ROWS, data_collator=PadRight())
    with pytest.raises(HeadEditError, match="never called"):
        trainer.train()


def test_the_specs_say_which_types_have_a_kernel_that_passes_their_sites_by():
    specs = packaged_specs()
    named = sorted(t for t, spec in specs.items() if any(rule.fused_by for k in spec.kinds() for rule in spec.rules(k)))
    assert named == FUSED


@pytest.mark.parametrize("model_type", FUSED)
def test_the_error_names_the_kernel_of_a_mamba_mixer_and_how_to_do_without(model_type):
    model = zoo_model(model_type)
    for module in list(model.modules()):
        if hasattr(module, "conv1d") and hasattr(module, "out_proj"):
            inner = [m for m in (getattr(module, "norm", None), module.out_proj) if m is not None]
            pass_by(module, inner, in_training)
    edits = headedit.attach(model, config=EditConfig(sites=["linear"]))
    randomise(edits)
    ids = zoo_ids(model)
    model.eval()
    logits(model, ids)
    model.train()
    with pytest.raises(HeadEditError, match=r"mamba_split_conv1d_scan_combined of mamba-ssm.*Uninstall mamba-ssm"):
        model(input_ids=ids)


def test_layers_that_are_dropped_at_random_are_no_fault():
    model = tiny_model("opt", layerdrop=0.5).train()
    edits = headedit.attach(model)
    optimiser = torch.optim.SGD(edits.vector_parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(12):
        loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
        if loss.requires_grad:  # not all layers were dropped
            loss.backward()
            optimiser.step()
    assert all(bool(vector.any()) for vector in (edit.vectors["offset"] for edit in edits.module))


def test_layers_above_an_early_exit_are_no_fault(llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    whole = logits(llama, ids)
    llama.config.num_hidden_layers = 1  # as transformers' early exit has it
    layers = llama.model.layers
    llama.model.layers = layers[:1]
    early = logits(llama, ids)
    llama.model.layers, llama.config.num_hidden_layers = layers, 2
    assert torch.equal(logits(llama, ids), whole)
    assert not torch.equal(early, whole)


def test_layers_that_are_compiled_one_by_one_are_no_fault(fresh_compiler, llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    for gate in edits.gate_parameters():
        gate.data.fill_(10.0)
    llama.train()
    wanted = torch.autograd.grad(llama(input_ids=ids, labels=ids).loss, edits.vector_parameters())
    for layer in llama.model.layers:
        layer.compile(backend="aot_eager")
    found = torch.autograd.grad(llama(input_ids=ids, labels=ids).loss, edits.vector_parameters())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_an_engine_that_calls_no_layer_at_all_cannot_train(llama, ids):
    """As one does that took the weights when the model was handed to it."""
    edits = headedit.attach(llama)
    llama.train()

    def of_the_engine(hidden, **kwargs):
        return hidden * 1.0

    for layer in llama.model.layers:
        layer.forward = of_the_engine
    with pytest.raises(HeadEditError, match="No edited layer of this LlamaForCausalLM was called"):
        llama(input_ids=ids)
    assert all(p.grad is None for p in edits.vector_parameters())


def test_vectors_without_a_gradient_are_named_after_the_first_step(llama, ids):
    edits = headedit.attach(llama)
    llama.train()
    llama(input_ids=ids, labels=ids).loss.backward()
    check_gradients(edits)
    first, _ = edits.module
    first.vectors["offset"].grad = None
    with pytest.raises(HeadEditError, match=r"edits of model\.layers\.0\.self_attn\.o_proj have no gradient"):
        check_gradients(edits)


def test_a_pass_that_breaks_off_leaves_no_hook_behind(llama, ids):
    headedit.attach(llama)
    before = {name: list(m._forward_pre_hooks) for name, m in llama.named_modules() if m._forward_pre_hooks}
    handle = llama.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llama(input_ids=ids)
    handle.remove()
    assert {name: list(m._forward_pre_hooks) for name, m in llama.named_modules() if m._forward_pre_hooks} == before
