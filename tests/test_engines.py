"""A model that an engine runs without calling hooks is refused, so that edits never look attached and do nothing."""

import enum
from types import SimpleNamespace

import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch import nn

import headedit
from headedit import HeadEditError
from headedit.bench.serving import measure as serving

REFUSED = r'hooks of this LlamaForCausalLM are not called: .*headedit\[vllm\]", then vllm serve.*enforce_eager.*merge'


class Mode(enum.IntEnum):
    NONE = 0
    VLLM_COMPILE = 3


class Graphs(enum.Enum):
    NONE = 0
    FULL_AND_PIECEWISE = (2, 1)


def as_an_engine_has_it(model, path, call, **fields):
    """Gives one module a class whose calls go another way than through nn.Module, and some fields."""
    module = model.get_submodule(path)
    base = type(module)
    module.__class__ = type(base.__name__, (base,), {"__call__": call})
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return model


def straight(self, *args, **kwargs):
    return self.forward(*args, **kwargs)


def kept_code(self, *args, **kwargs):
    return self._compiled_callable(*args, **kwargs)


def compiled(model, path="model", name="_compiled_callable"):
    """A module that calls code which was compiled without guards when it was made."""
    forward = torch.compile(model.get_submodule(path).forward, backend="eager", dynamic=False)
    return as_an_engine_has_it(model, path, kept_code, **{name: forward})


ENGINES = {
    "kept code": compiled,
    "kept code under another name": lambda m: compiled(m, name="compiled_callable"),
    "kept code of one layer": lambda m: compiled(m, "model.layers.1"),
    "kept code of the whole model": lambda m: compiled(m, ""),
    "a replay of its own": lambda m: as_an_engine_has_it(
        m, "model", lambda self, *args, **kwargs: self.replay(*args, **kwargs), replay=m.model.forward
    ),
    "about to compile": lambda m: as_an_engine_has_it(m, "model", straight, do_not_compile=False, compiled=False),
    "compiled ahead of time": lambda m: as_an_engine_has_it(
        m, "model", straight, compiled=True, aot_compiled_fn=object()
    ),
    "settings that compile": lambda m: as_an_engine_has_it(
        m, "model", straight, do_not_compile=True, compilation_config=SimpleNamespace(mode=Mode.VLLM_COMPILE)
    ),
    "graphs without compilation": lambda m: as_an_engine_has_it(
        m,
        "model",
        straight,
        do_not_compile=True,
        compilation_config=SimpleNamespace(mode=Mode.NONE, cudagraph_mode=Graphs.FULL_AND_PIECEWISE),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_an_engine_compiled_is_refused_and_the_plugin_named(engine, tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    randomise(edits)
    edits.save_pretrained(tmp_path)
    model = ENGINES[engine](tiny_model("llama"))
    for put_on in (lambda: headedit.attach(model), lambda: headedit.load(model, tmp_path)):
        with pytest.raises(HeadEditError, match=REFUSED):
            put_on()
    assert not hasattr(model, "headedit")
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.usefixtures("fresh_compiler")
def test_hooks_that_are_put_on_code_that_was_kept_are_not_called(ids, monkeypatch):
    """What the refusal is for. An engine drops all guards; here the compiler leaves out those on hooks."""
    monkeypatch.setattr(torch._dynamo.config, "skip_nnmodule_hook_guards", True)
    model = compiled(tiny_model("llama"))
    before = logits(model, ids)
    called = []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda m, a: called.append(1))
    assert torch.equal(logits(model, ids), before)
    assert not called


def test_an_engine_that_was_started_without_compilation_is_edited(ids):
    model = as_an_engine_has_it(
        tiny_model("llama"),
        "model",
        lambda self, *args, **kwargs: nn.Module.__call__(self, *args, **kwargs),
        do_not_compile=True,
        compilation_config=SimpleNamespace(mode=Mode.NONE, cudagraph_mode=Graphs.NONE),
    )
    base = logits(model, ids)
    edits = headedit.attach(model)
    randomise(edits)
    reference = tiny_model("llama")
    randomise(headedit.attach(reference))
    assert torch.equal(logits(model, ids), logits(reference, ids))
    assert not torch.equal(logits(model, ids), base)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "compile_it",
    [
        lambda m: m.compile(backend="eager"),
        lambda m: m.model.compile(backend="eager"),
        lambda m: setattr(m, "forward", torch.compile(m.forward, backend="eager")),
        lambda m: setattr(m.model.layers[0], "forward", torch.compile(m.model.layers[0].forward, backend="eager")),
    ],
    ids=["model", "decoder", "forward", "forward of a layer that transformers calls by a way of its own"],
)
def test_a_model_that_torch_compiled_is_edited(compile_it):
    model = tiny_model("llama")
    compile_it(model)
    assert headedit.attach(model).attached


def test_layers_that_call_a_function_around_their_own_call_are_edited(ids):
    """As layers of some versions of transformers do to checkpoint activations."""
    model = tiny_model("llama")
    layer = model.model.layers[0]
    layer.around = lambda call, *args, **kwargs: call(*args, **kwargs)

    def call(self, *args, **kwargs):
        return self.around(super(type(layer), self).__call__, *args, **kwargs)

    layer.__class__ = type("Layer", (type(layer),), {"__call__": call})
    base = logits(model, ids)
    randomise(headedit.attach(model))
    assert not torch.equal(logits(model, ids), base)


def test_an_engine_itself_in_the_place_of_its_model_gets_the_plugin_named():
    engine = type("LLM", (), {"__module__": "vllm.entrypoints.llm"})()
    with pytest.raises(HeadEditError, match=r"found a LLM.*headedit\[vllm\]"):
        headedit.attach(engine)


def test_the_bench_of_serving_says_how_many_edits_are_in_its_batches(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv(serving.VARIABLE, "none")
    monkeypatch.setattr(serving, "_engine", lambda model, batch: None)
    monkeypatch.setattr(serving, "_step", lambda engine, chosen: 1.0 + len(set(chosen)))
    monkeypatch.setattr(serving, "_load_ms", lambda engine, edits: 1.0)
    monkeypatch.setattr(serving, "named_edits", lambda edits: dict.fromkeys("abc"))
    found = serving.measure("model", ["edits"], rounds=1, batch=8)
    assert found["seconds_per_step"]["served, 3 edits in the batch"] == 4.0
    assert found["ratio"] == {"served, no edit in the batch": 1.0, "served, 3 edits in the batch": 2.0}
    two = serving.measure("model", ["edits"], rounds=1, batch=2)
    assert "served, 2 edits in the batch" in two["ratio"]


def test_the_bench_of_serving_refuses_folders_without_edits_before_an_engine_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "_engine", lambda model, batch: pytest.fail("an engine was made"))
    with pytest.raises(HeadEditError, match="holds no saved edits to serve"):
        serving.measure("model", [str(tmp_path)])
