"""With ``cache_prefix`` the layers below the first edited one run once per example, and the edits are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from processes import RECIPES, ROWS
from test_resume import dying_at_write, in_child, result
from tiny import logits, randomise, tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig
from zoo import WITH_HEADS, zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.training import fit
from headedit.training.prefix_cache import FrozenPrefix
from headedit.training.prefix_cache.store import HiddenStates, unpadded_rows

UPPER = EditConfig(layers="1:")
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TYPES = {
    "llama": {"num_hidden_layers": 3},
    "gpt2": NO_DROPOUT,
    "qwen3": {},
    "gpt_neox": {},
    "falcon": {"alibi": True},
    "opt": {"dropout": 0.0},
    "gemma2": {},
    "phi3": {},
    "mixtral": {},
    "qwen3_moe": {},
}
ONE = {"recipe": "jola", "epochs": 2, "batch_size": 1, "arguments": {"per_device_eval_batch_size": 1}}
FOUR = {**RECIPES["jola"], "recipe": "jola", "batch_size": 4}
CHECKS = 9
"""Number of passes of the lower layers in the checks before the cache is used."""
EXACT, CLOSE = 0.0, 1e-6

REFUSED = {
    "blt": "several stacks, model.global_transformer.layers, model.local_decoder",
    "cpmant": r"pass on more than hidden states \(layer 0 returns \[1, 11, 32\]",
    "deepseek_v4": r"pass on more than hidden states \(layer 0 returns \[1, 7, 2, 32\]",
    "gemma3n_text": r"pass on more than hidden states \(layer 0 returns \[4, 1, 7, 32\]",
    "git": "GitForCausalLM cannot run one example alone",
    "hrm_text": "several stacks, model.H_module.layers, model.L_module.layers",
    "hy_v4": r"pass on more than hidden states \(layer 0 returns \[1, 7, 4, 32\]",
    "mllama": "a forward pass does not run layer 1",
    "musicgen": "MusicgenForCausalLM cannot run one example alone",
    "musicgen_melody": "cannot run one example alone",
    "phimoe": "draw random numbers after them .*differ in training",
    "prophetnet": "pass on more than hidden states",
    "reformer": "pass on more than hidden states",
    "zaya": r"read more from the layers below than their hidden state.*loss, logits differ in evaluation",
}


def train(folder, model=None, rows=ROWS[:16], valid=ROWS[16:24], layers="1:", **settings):
    """Trains; returns the edits by name, and the run."""
    model = tiny_model("llama", num_hidden_layers=3) if model is None else model
    edits = headedit.attach(model, config=EditConfig(layers=layers))
    run = fit.fit(edits, rows, valid, output_dir=folder, progress=False, **settings)
    return {name: p.detach().clone() for name, p in edits.module.named_parameters()}, run


def batch(width=7, real=5):
    """Two examples, the second padded on the right."""
    ids = torch.randint(3, 100, (2, width), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, real:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def without_dropout(model):
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, torch.nn.Dropout))):
                setattr(module, name, 0.0)
    return model


def overridden(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def difference(one, other):
    assert one.keys() == other.keys()
    assert max(float(tensor.abs().max()) for tensor in one.values()) > 0.01
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


@pytest.mark.parametrize("model_type", TYPES)
def test_with_one_example_per_batch_the_edits_are_the_same_bit_for_bit(model_type, tmp_path):
    plain, without = train(tmp_path / "plain", tiny_model(model_type, **TYPES[model_type]), **ONE)
    kept, with_it = train(tmp_path / "kept", tiny_model(model_type, **TYPES[model_type]), cache_prefix=True, **ONE)
    assert difference(plain, kept) == EXACT
    assert without.history.rows == with_it.history.rows
    assert with_it.record["prefix_cache"]["examples"] == 24
    assert "prefix_cache" not in without.record


@pytest.mark.parametrize("recipe", ["jola", "localise"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
def test_in_padded_batches_the_edits_are_the_same_within_rounding(model_type, recipe, tmp_path):
    settings = {**RECIPES[recipe], "recipe": recipe, "batch_size": 8}
    plain, without = train(tmp_path / "plain", tiny_model(model_type, **TYPES[model_type]), **settings)
    kept, with_it = train(tmp_path / "kept", tiny_model(model_type, **TYPES[model_type]), cache_prefix=True, **settings)
    assert difference(plain, kept) < 10 * CLOSE
    for before, after in zip(without.history.rows, with_it.history.rows, strict=True):
        assert before.keys() == after.keys()
        assert {"loss", "eval_loss", "kept"} & before.keys()
        for key in {"loss", "eval_loss"} & before.keys():
            assert before[key] == pytest.approx(after[key], abs=CLOSE)


@pytest.mark.parametrize("model_type", WITH_HEADS)
def test_every_architecture_is_exact_or_refused(model_type):
    model = without_dropout(zoo_model(model_type))
    edits = headedit.attach(model, config=UPPER)
    randomise(edits)
    inputs = {**batch(), "use_cache": False}
    if model_type in REFUSED:
        with pytest.raises(HeadEditError, match=REFUSED[model_type]), FrozenPrefix(edits, {}):
            model(**inputs)
        assert not overridden(model)
        return
    with torch.no_grad():
        plain = model(**inputs).logits
        with FrozenPrefix(edits, {}) as prefix:
            first, second = model(**inputs).logits, model(**inputs).logits
    assert prefix.figures["examples"] == 2
    assert torch.equal(first, second)
    real = inputs["attention_mask"].bool()
    assert float((plain - second)[real].abs().max() / plain[real].abs().max()) < 1e-5


def test_the_lower_layers_run_once_per_example(tmp_path):
    counts = []
    for epochs in (2, 5):
        model = tiny_model("llama", num_hidden_layers=3)
        calls = []
        model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rows = [*ROWS[:16], *ROWS[:4]]  # some twice
        folder = tmp_path / str(epochs)
        _, run = train(folder, model, rows, layers="2:", cache_prefix=True, **{**FOUR, "epochs": epochs})
        counts.append(len(calls))
        kept = run.record["prefix_cache"]
        tokens = sum(len(row["input_ids"]) for row in ROWS[:24])
        assert kept == {"layers": 2, "examples": 24, "bytes": tokens * 32 * 4}
        assert json.loads((folder / "run.json").read_text())["prefix_cache"] == kept
    assert counts == [24 + CHECKS] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize("recipe", ["jola", "localise"])
def test_a_resumed_run_with_a_cache_ends_with_the_same_files(recipe, tmp_path):
    settings = {**RECIPES[recipe], "recipe": recipe, "batch_size": 4, "cache_prefix": True}
    train(tmp_path / "whole", **settings)
    folder, kills = tmp_path / "killed", 0
    while not in_child(dying_at_write(lambda: train(folder, resume=True, **settings), 8 * (kills + 1))):
        kills += 1
        with pytest.raises(HeadEditError, match=r"differs in cache_prefix\. Resume with"):
            train(folder, resume=True, **{**settings, "cache_prefix": False})
    assert kills >= 2
    (files, record), (files_whole, record_whole) = result(folder), result(tmp_path / "whole")
    assert files == files_whole
    assert record.pop("prefix_cache")["examples"] <= record_whole.pop("prefix_cache")["examples"]
    assert record == record_whole


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_restored_after_any_error(error, tmp_path, monkeypatch):
    model = tiny_model("llama", num_hidden_layers=3)
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    seen = []

    def broken(*args, **kwargs):
        if len(overridden(model)) == 2:
            seen.append(overridden(model))
        if len(seen) > 3:
            raise error("in the middle of a pass")

    model.model.layers[2].register_forward_pre_hook(broken)
    with pytest.raises(error, match="in the middle of a pass"):
        train(tmp_path, model, layers="2:", cache_prefix=True, **FOUR)
    assert seen[-1] == ["model.layers.0", "model.layers.1"]
    assert not overridden(model)
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks


def test_forward_methods_are_replaced_only_during_a_cached_pass(tmp_path):
    model = tiny_model("llama", num_hidden_layers=3)
    edits = headedit.attach(model, config=UPPER)
    own = model.model.layers[0].forward
    with FrozenPrefix(edits, {}), torch.no_grad():
        model(**batch(), use_cache=False)
        assert not overridden(model)
    vars(model.model.layers[0])["forward"] = own  # as accelerate puts one there
    with FrozenPrefix(edits, {}), torch.no_grad():
        model(**batch(), use_cache=False)
    assert vars(model.model.layers[0])["forward"] is own


PLAIN = {
    "cache": {**batch(), "use_cache": True},
    "perhaps a cache": batch(),
    "positions": {**batch(), "use_cache": False, "position_ids": torch.arange(7)[None] + 3},
    "hidden states": {**batch(), "use_cache": False, "output_hidden_states": True},
    "no mask": {"input_ids": batch()["input_ids"], "use_cache": False},
    "left padding": {"input_ids": batch()["input_ids"], "attention_mask": batch()["attention_mask"].flip(1)},
    "embeddings": {"inputs_embeds": torch.ones(2, 7, 32), "attention_mask": torch.ones(2, 7), "use_cache": False},
    "nothing but padding": {**batch(real=0), "use_cache": False},
}


@pytest.mark.parametrize("inputs", PLAIN.values(), ids=PLAIN)
def test_a_pass_that_cannot_use_the_cache_runs_all_layers(inputs):
    model = tiny_model("llama")
    edits = headedit.attach(model, config=UPPER)
    randomise(edits)
    with torch.no_grad():
        plain = model(**inputs)
        with FrozenPrefix(edits, {}) as prefix:
            model(**batch(), use_cache=False)
            found = model(**inputs)
    assert prefix.figures["examples"] == 2
    assert torch.equal(found.logits, plain.logits)
    if plain.past_key_values is not None:
        assert found.past_key_values.get_seq_length(0) == 7
    assert len(found.hidden_states or []) == len(plain.hidden_states or [])


def test_generation_with_a_cache_gives_the_same_text():
    model = tiny_model("llama")
    edits = headedit.attach(model, config=UPPER)
    randomise(edits)
    plain = model.generate(**batch(real=7), max_new_tokens=5, do_sample=False)
    with FrozenPrefix(edits, {}):
        assert torch.equal(model.generate(**batch(real=7), max_new_tokens=5, do_sample=False), plain)


def test_filling_the_cache_changes_no_mode_random_state_or_gradient():
    model = tiny_model("llama").train()
    edits = headedit.attach(model, config=UPPER)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    with FrozenPrefix(edits, {}):
        state = torch.get_rng_state()
        with torch.inference_mode():
            model.model.layers[1].register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
            states = []
            model(**batch(), use_cache=False)
        assert torch.equal(states[-1], state)
        loss = model(**batch(), labels=batch()["input_ids"]).loss  # a cache filled in inference mode
        loss.backward()
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is not None for p in edits.vector_parameters())
    assert all(p.grad is None for p in model.model.layers[0].parameters())


def test_padding_has_the_hidden_state_of_the_last_token():
    states, row = HiddenStates(), torch.tensor([4, 5, 6])
    hidden = torch.randn(3, 8)
    states.put(row, hidden)
    states.put(row[:1], hidden[:1])
    found = states.batch([row[:1], row], 4)
    assert torch.equal(found[1], hidden[[0, 1, 2, 2]])
    assert torch.equal(found[0], hidden[[0, 0, 0, 0]])
    assert [r.tolist() for r in states.missing([row, row + 1, row + 1])] == [[5, 6, 7]]


def test_the_examples_of_a_batch_are_found_without_their_padding():
    inputs = {**batch(), "labels": batch()["input_ids"]}
    assert [row.tolist() for row in unpadded_rows(inputs)] == [
        inputs["input_ids"][0].tolist(),
        inputs["input_ids"][1, :5].tolist(),
    ]
    assert unpadded_rows({**inputs, "token_type_ids": inputs["input_ids"]}) is None
    assert unpadded_rows({**inputs, "token_type_ids": None, "output_attentions": False}) is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_with_a_cache_trains_the_same_edits(reentrant, tmp_path):
    def run(name, **settings):
        model = tiny_model("llama", num_hidden_layers=3)
        if reentrant:
            model.enable_input_require_grads()
        arguments = {**ONE["arguments"], **settings.pop("arguments", {})}
        return train(tmp_path / name, model, **{**ONE, **settings, "arguments": arguments})[0]

    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert difference(run("plain"), run("kept", cache_prefix=True, arguments=kwargs)) == EXACT


def test_hidden_states_are_cached_in_their_own_dtype(tmp_path):
    plain, _ = train(tmp_path / "plain", tiny_model("llama").to(torch.bfloat16), **ONE)
    kept, run = train(tmp_path / "kept", tiny_model("llama").to(torch.bfloat16), cache_prefix=True, **ONE)
    assert difference(plain, kept) == EXACT
    tokens = sum(len(row["input_ids"]) for row in ROWS[:24])
    assert run.record["prefix_cache"]["bytes"] == tokens * 32 * 2


def test_a_model_with_offloaded_weights_can_use_the_cache():
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("llama", num_hidden_layers=3)
    plain = logits(model, batch()["input_ids"])
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    edits = headedit.attach(model, config=UPPER)
    before = overridden(model)
    with FrozenPrefix(edits, {}), torch.no_grad():
        for _ in range(2):
            found = model(**batch(real=7), use_cache=False).logits
            assert torch.allclose(found, plain, atol=1e-5)
    assert overridden(model) == before
    assert torch.equal(logits(model, batch()["input_ids"]), plain)
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())


def test_seeds_controls_and_metric_are_the_same_with_a_cache(tmp_path):
    settings = {"recipe": "refit", "epochs": 2, "min_steps": 1, "batch_size": 4, "seeds": 2, "controls": True}
    found = []
    for cache in (False, True):
        model = tiny_model("llama", num_hidden_layers=3)
        calls = []

        def metric(model=model, calls=calls):
            hook = model.model.layers[0].register_forward_hook(lambda *_: calls.append(overridden(model)))
            value = model(**batch(), use_cache=False).logits.mean().item()
            hook.remove()
            return value

        edits, run = train(tmp_path / str(cache), model, metric=metric, cache_prefix=cache, **settings)
        assert calls
        assert not any(calls)  # a metric runs all layers of the model
        found.append((edits, run.controls, run.stability))
    (plain, controls, stability), (kept, controls_kept, stability_kept) = found
    assert difference(plain, kept) < 10 * CLOSE
    assert stability.heads == stability_kept.heads
    assert controls
    for name, figures in controls.items():
        assert figures == pytest.approx(controls_kept[name], abs=10 * CLOSE)


def test_batches_whose_length_changes_positions_run_all_layers():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    values = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**values, vocab_size=128, rope_parameters=rope, max_position_embeddings=8)
    model = AutoModelForCausalLM.from_config(config).eval()
    edits = headedit.attach(model, config=UPPER)
    long = {**batch(width=20), "use_cache": False}
    with torch.no_grad():
        plain = model(**long).logits
        with FrozenPrefix(edits, {}) as prefix:
            assert torch.equal(model(**long).logits, plain)
            assert prefix.figures["examples"] == 0
            model(**batch(), use_cache=False)
            assert prefix.figures["examples"] == 2


def refused(match, model, arguments=None, layers="1:", inputs=None):
    edits = headedit.attach(model, config=EditConfig(layers=layers))
    inputs = {**batch(), "use_cache": False} if inputs is None else inputs
    with pytest.raises(HeadEditError, match=match), FrozenPrefix(edits, arguments or {}):
        model(**inputs)
    assert not overridden(model)


def test_edits_on_the_first_layer_are_refused():
    refused(
        r"layers 0, 1 are edited, so there is no layer below .*EditConfig\(layers='8:'\)", tiny_model("llama"), {}, "0:"
    )


def test_dropout_is_refused():
    refused("do not return the same twice in training: they have dropout .*dropout at 0", tiny_model("gpt2"))


@pytest.mark.parametrize(
    "arguments", [{"fsdp": True}, {"deepspeed": "zero.json"}, {"torch_compile": True}], ids=lambda a: next(iter(a))
)
def test_sharding_and_compilation_arguments_are_refused(arguments):
    refused("sharded by |is compiled", tiny_model("llama"), arguments)


def test_sharding_set_by_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refused("the weights are sharded by fsdp.*Use DDP", tiny_model("llama"))


def test_a_compiled_model_is_refused():
    model = tiny_model("llama")
    model.model.layers[1].compile()
    refused("is compiled .by its method compile.", model)


@pytest.fixture
def precision(monkeypatch):
    """Restores the precision that accelerate keeps for the process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_autocast_is_refused(precision, tmp_path):
    arguments = {"bf16": True, "use_cpu": True}
    with pytest.raises(HeadEditError, match=r"under autocast.*Load the model in bfloat16"):
        train(tmp_path, cache_prefix=True, **{**FOUR, "arguments": arguments})


def test_autocast_is_refused_in_a_later_pass_too():
    model = tiny_model("llama")
    edits = headedit.attach(model, config=UPPER)
    with FrozenPrefix(edits, {}), torch.no_grad():
        model(**batch(), use_cache=False)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(HeadEditError, match="under autocast"):
            model(**batch(), use_cache=False)
    assert not overridden(model)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_trainable_parameter_before_the_edits_is_refused(name):
    model = tiny_model("llama", num_hidden_layers=3)
    edits = headedit.attach(model, config=EditConfig(layers="2:"))
    model.get_parameter("model.layers.2.mlp.up_proj.weight").requires_grad_(True)
    model.get_parameter("model.norm.weight").requires_grad_(True)
    with FrozenPrefix(edits, {}):
        model(**batch(), use_cache=False)  # parameters after the edits may be trained
    model.get_parameter(name).requires_grad_(True)
    message = rf"{name}, before layer 2, .*requires_grad_\(False\)"
    with pytest.raises(HeadEditError, match=message), FrozenPrefix(edits, {}):
        model(**batch(), use_cache=False)
    assert all(p.grad is None for p in model.parameters())


def test_outputs_that_need_the_lower_layers_are_refused():
    router = tiny_model("mixtral", output_router_logits=True)
    refused(r"aux_loss.*differ in evaluation", router)
    model = tiny_model("llama", num_hidden_layers=3, output_hidden_states=True)
    refused(r"hidden_states differ in evaluation", model, layers="2:")


def test_a_layer_that_returns_no_hidden_state_is_refused():
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda *_: None)
    model.model.layers[0].forward = lambda hidden, **kwargs: {"hidden": hidden}
    edits = headedit.attach(model, config=UPPER)
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0]["hidden"], *args[1:]))
    message = r"pass on more than hidden states \(layer 0 returns a dict\)"
    with pytest.raises(HeadEditError, match=message), FrozenPrefix(edits, {}):
        model(**batch(), use_cache=False)


def test_the_command_line_trains_with_a_cache(tmp_path, capsys):
    from run_inputs import save_model, save_records
    from test_cli_train import changed, run

    model, data = save_model(tmp_path / "model"), save_records(tmp_path, "alpaca", 20)
    given = ("train", "--model", model, "--data", data, "--valid-share", "0.2", "--recipe", "jola", "--layers", "1:")
    assert run(*given, "--output", tmp_path / "out", *changed(cache_prefix="true", epochs=2)) == 0
    assert "cache_prefix: true" in (tmp_path / "out" / "run.yaml").read_text()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["prefix_cache"]["layers"] == 1
    assert record["prefix_cache"]["examples"] <= 20
    headedit.train(tmp_path / "out", output=str(tmp_path / "again"), progress=False)
    assert (tmp_path / "again" / "headedit.safetensors").read_bytes() == (
        tmp_path / "out" / "headedit.safetensors"
    ).read_bytes()
    assert run(*given[:-2], "--output", tmp_path / "no", *changed(cache_prefix="true")) == 2
    assert "there is no layer below them" in "".join(capsys.readouterr().err.split("\n"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_with_a_cache_learn_the_same_edits_as_one(tmp_path):
    plain, _ = train(tmp_path / "one", **{**FOUR, "batch_size": 8})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "two").mkdir()
    done = subprocess.run(
        [*command, str(tmp_path / "two")], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-6000:]
    edits = headedit.load(tiny_model("llama", num_hidden_layers=3), tmp_path / "two")
    assert difference(plain, dict(edits.module.named_parameters())) < 10 * CLOSE
    assert 12 <= json.loads((tmp_path / "two" / "run.json").read_text())["prefix_cache"]["examples"] <= 24


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), cache_prefix=True, **{**FOUR, "arguments": {"use_cpu": True, "ddp_backend": "gloo"}})
    torch.distributed.destroy_process_group()
