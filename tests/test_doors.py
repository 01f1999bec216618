"""First mistakes: what can mean only one thing is taken, and all else gets one sentence that says what to write."""

import fractions
import pickle

import numpy
import pandas
import peft
import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch import nn
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    TrainingArguments,
)

import headedit
from headedit import EditConfig, HeadEditError, HeadEditTrainer, Records
from headedit.demo import MODEL_FOLDER
from headedit.edits.values import head_vector, real_number, whole_number
from headedit.io.describe import describe
from headedit.training.recipes import Localise

ROWS = [{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}] * 8
NAN, INF = float("nan"), float("inf")
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def with_task(cls):
    """A Llama with the head of another task, or with none."""
    return cls(LlamaConfig(**SMALL)).eval()


def encoder_decoder():
    sizes = {
        f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in (("layers", 2), ("attention_heads", 4))
    }
    wide = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    return BartForConditionalGeneration(BartConfig(vocab_size=128, d_model=32, **sizes, **wide)).eval()


def wrapped(name):
    """A model inside a wrapper of a name, as several processes use it."""
    wrapper = type(name, (nn.Module,), {})()
    wrapper.module = tiny_model("llama")
    return wrapper


def same(edits, others):
    return all(torch.equal(a, b) for a, b in zip(edits.module.parameters(), others.module.parameters(), strict=True))


def attached(**config):
    return headedit.attach(tiny_model("llama"), EditConfig(**config))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders that are taken for saved edits, and one that has them."""
    root = tmp_path_factory.mktemp("places")
    edits = attached()
    edits.save_pretrained(root / "edits")
    edits.save_pretrained(root / "runs" / "a")
    edits.detach().save_pretrained(root / "model")
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2)
    peft.get_peft_model(tiny_model("llama"), lora).save_pretrained(root / "lora")
    (root / "empty").mkdir()
    (root / "edits.pt").write_bytes(b"")
    return root


MODELS = {
    "a name": (lambda: "gpt2", r"the text 'gpt2'\. Load it first: model = headedit\.load_model\('gpt2'\)"),
    "nothing": (lambda: None, r"found None\. headedit\.load_model\('name'\) loads one"),
    "a tokenizer": (lambda: AutoTokenizer.from_pretrained(MODEL_FOLDER), "Give the model that it belongs to"),
    "a config": (lambda: LlamaConfig(**SMALL), r"A config holds no weights: .*from_config\(config\) makes one"),
    "a class": (lambda: LlamaForCausalLM, "found the class LlamaForCausalLM. Load one"),
    "a config of PEFT": (peft.LoraConfig, "found a LoraConfig. The model comes first"),
    "our config": (EditConfig, r"found an EditConfig\. The model comes first: headedit\.attach\(model, config="),
    "a state dict": (lambda: {"a": torch.ones(1)}, "found a dict of 1"),
    "a list": (lambda: [1, 2], "found a list of 2"),
    "a module": (lambda: nn.Linear(2, 2), r"model with config\.model_type, found Linear\. Give the whole model"),
    "layers": (lambda: tiny_model("llama").model.layers, "found ModuleList. Give the whole model"),
    "DataParallel": (
        lambda: nn.DataParallel(tiny_model("llama")),
        r"Put the edits on first: headedit\.attach\(model\)",
    ),
    "DDP": (lambda: wrapped("DistributedDataParallel"), r"then DistributedDataParallel\(model\)"),
    "FSDP": (lambda: wrapped("FullyShardedDataParallel"), r"then FullyShardedDataParallel\(model\)"),
    "a handle": (attached, r"Found the handle of edits, .*edits\.add_adapter\(name\)"),
    "one adapter": (lambda: attached()["default"], "found an Adapter. The model comes first"),
    "an edited model": (lambda: attached().model, r"has edits attached already; headedit\.handle\(model\)"),
    "a classifier": (
        lambda: with_task(LlamaForSequenceClassification),
        r"LlamaForSequenceClassification has the head of another task .* stay random\. Load the causal LM .*load_model",
    ),
    "a tagger": (lambda: with_task(LlamaForTokenClassification), "LlamaForTokenClassification has the head of another"),
    "a reader": (lambda: with_task(LlamaForQuestionAnswering), "LlamaForQuestionAnswering has the head of another"),
    "a classifier with LoRA": (
        lambda: peft.get_peft_model(
            with_task(LlamaForSequenceClassification), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        ),
        "SequenceClassification has the head of another task",
    ),
}


@pytest.mark.parametrize(("make", "message"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("door", ["attach", "load"])
def test_what_is_not_a_model_to_edit_is_named_with_the_way_to_one(make, message, door, places):
    with pytest.raises(HeadEditError, match=message):
        headedit.attach(make()) if door == "attach" else headedit.load(make(), places / "edits")


def test_a_classifier_that_was_saved_is_named_by_its_own_place(tmp_path):
    with_task(LlamaForSequenceClassification).save_pretrained(tmp_path)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(HeadEditError, match=rf"headedit\.load_model\('{tmp_path}'\).* \(text, ' positive'\)"):
        headedit.attach(model)
    assert all(p.requires_grad for p in model.parameters())
    assert headedit.attach(headedit.load_model(str(tmp_path), device="cpu")).attached


SHAPES = {
    "in the place of the spec": lambda model: headedit.attach(model, EditConfig(layers=[1])),
    "a mapping": lambda model: headedit.attach(model, config={"layers": [1]}),
    "a mapping in the place of the spec": lambda model: headedit.attach(model, {"layers": [1]}),
    "a tuple": lambda model: headedit.attach(model, config=EditConfig(layers=(1,))),
    "a range": lambda model: headedit.attach(model, config=EditConfig(layers=range(1, 2))),
    "a slice": lambda model: headedit.attach(model, config=EditConfig(layers=slice(1, None))),
    "an array": lambda model: headedit.attach(model, config=EditConfig(layers=numpy.array([1]))),
    "a tensor": lambda model: headedit.attach(model, config=EditConfig(layers=torch.tensor([1]))),
    "a set": lambda model: headedit.attach(model, config=EditConfig(layers={1})),
    "one kind": lambda model: headedit.attach(model, config=EditConfig(layers=[1], sites="attention")),
    "numbers of numpy": lambda model: headedit.attach(
        model, config=EditConfig(layers=[numpy.int64(1)], mlp_groups=numpy.int64(1), gate_init=numpy.float32(0))
    ),
}


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
def test_a_config_is_taken_in_every_form_that_means_one_thing(llama, make, tmp_path):
    edits = make(llama)
    assert [site.name for site in edits.sites] == ["layers.1.self_attn.o_proj"]
    edits.save_pretrained(tmp_path)
    assert same(headedit.load(tiny_model("llama"), tmp_path), edits)


CONFIGS = {
    "no list": ({"layers": 3}, r"layers: found 3, expected a slice .* Layer 3 alone is \[3\]"),
    "all": ({"layers": "all"}, "leave it out for all layers"),
    "a fraction": ({"layers": [0.5]}, r"layers: found 0\.5 in a list"),
    "a truth": ({"layers": [True]}, "layers: found True in a list"),
    "a mapping": ({"layers": {"a": 1}}, "layers: found a dict of 1"),
    "a module": (
        {"sites": "o_proj"},
        "sites: found the text 'o_proj', expected kinds of site.* attention, linear, mlp",
    ),
    "a number": ({"sites": 3}, "sites: found 3, expected kinds of site"),
    "no gates": ({"gates": None}, "gates: found None, expected .*'none'"),
    "gates off": ({"gates": False}, "gates: found False, expected .*'none'"),
    "a slip": ({"layer": [3]}, "EditConfig has no field 'layer'. Did you mean 'layers'"),
    "PEFT's modules": ({"target_modules": ["q_proj"]}, r"no field 'target_modules': sites=\['attention'\]"),
    "PEFT's layers": ({"layers_to_transform": [1]}, "no field 'layers_to_transform': the word is layers"),
    "a rank": ({"r": 8}, "no field 'r': an edit is a vector per head and has no rank"),
    "alpha": ({"lora_alpha": 16}, r"no field 'lora_alpha': edits\.strength = 0\.5"),
    "noise": ({"init_std": NAN}, "init_std: found nan, expected finite"),
    "a gate": ({"gate_init": INF}, "gate_init: found inf, expected finite"),
    "an interval": ({"stretch": (-INF, 1.1)}, "stretch: found .*, expected finite"),
}


@pytest.mark.parametrize(("values", "message"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("how", ["keywords", "mapping"])
def test_a_wrong_config_names_the_field_and_the_right_word(llama, values, message, how):
    if how == "mapping":
        message = message.replace("EditConfig has no field 'layer'", "config: unknown key 'layer'").replace(
            "no field", "config: unknown key"
        )
    with pytest.raises(HeadEditError, match=message):
        EditConfig(**values) if how == "keywords" else headedit.attach(llama, config=values)
    assert not any(module._forward_pre_hooks for module in llama.modules())


def test_a_config_without_keywords_is_refused_and_its_signature_stays():
    import inspect

    with pytest.raises(HeadEditError, match="found the text '8:24' without a keyword"):
        EditConfig("8:24")
    assert list(inspect.signature(EditConfig).parameters)[:2] == ["layers", "sites"]
    assert pickle.loads(pickle.dumps(EditConfig(layers=range(2)))) == EditConfig(layers=[0, 1])


ARGUMENTS = {
    "a model type": (("llama",), {}, "llama: is a model type, not a spec file. .* leave it out"),
    "no file": (("no-such",), {}, "no-such: there is no such spec file"),
    "a model": ((nn.Linear(1, 1),), {}, "spec: found a Linear, .*The model comes first"),
    "a number": ((3,), {}, "spec: found 3, expected the path of a spec file"),
    "a spec as a mapping": (({"model_types": ["llama"]},), {}, "spec: found a dict of 1, expected the path"),
    "a config of PEFT": ((peft.LoraConfig(),), {}, r"config: found a LoraConfig, .*peft\.get_peft_model"),
    "the class": ((EditConfig,), {}, r"found the class EditConfig, .*Call it: EditConfig\(\)"),
    "two configs": ((EditConfig(), EditConfig()), {}, "Two configs are given"),
    "a path as config": ((), {"config": "c.yaml"}, r"config: found the text 'c.yaml', .*headedit\.load\(model, path\)"),
    "a spec as config": ((), {"config": headedit.attach(tiny_model("llama")).spec}, "found a Spec, .*Give it as spec="),
    "a list as config": ((), {"config": [0, 1]}, "config: found a list of 2, expected an EditConfig"),
}


@pytest.mark.parametrize(("given", "named", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_what_is_not_a_spec_or_a_config_is_named(llama, given, named, message):
    with pytest.raises(HeadEditError, match=message):
        headedit.attach(llama, *given, **named)
    assert all(p.requires_grad for p in llama.parameters())


def test_a_folder_of_edits_is_not_a_spec(llama, places):
    with pytest.raises(HeadEditError, match=r"is a folder, .*headedit\.load\(model, path\)"):
        headedit.attach(llama, places / "edits")


def test_the_model_inside_a_compiled_one_is_edited_and_both_act_so(llama, ids):
    compiled = torch.compile(llama)
    with torch.compiler.set_stance("force_eager"):
        base = logits(compiled, ids)
        edits = headedit.attach(compiled)
        assert edits.model is llama
        edits.set_head(0, 0, scale=0.0)
        assert torch.equal(logits(compiled, ids), logits(llama, ids))
    assert not torch.equal(logits(llama, ids), base)
    assert headedit.handle(compiled) is edits


def test_edits_inside_a_model_of_peft_are_found_and_not_put_on_twice(llama):
    edits = headedit.attach(llama)
    around = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"]))
    assert headedit.handle(around) is headedit.handle(edits) is edits
    with pytest.raises(HeadEditError, match="PeftModel has edits attached already"):
        headedit.attach(around)


@pytest.mark.parametrize("given", ["a/path", None, 3])
def test_what_carries_no_edits_has_no_handle(given):
    with pytest.raises(HeadEditError, match="Expected a model that carries edits, found"):
        headedit.handle(given)


SAVED = {
    "PEFT's": ("lora", r"It holds an adapter of PEFT: peft\.PeftModel\.from_pretrained\(model, "),
    "a model's": ("model", r"It holds a model: headedit\.load_model\("),
    "of runs": ("runs", "There are edits in .*runs.a"),
    "empty": ("empty", r"holds no headedit\.safetensors, so there are no saved edits here\.$"),
    "no folder": ("edits.pt", "is a file, expected the folder that save_pretrained wrote"),
    "missing": ("missing", "there is no such folder. The id of a hub repository is given as a text"),
}


@pytest.mark.parametrize(("name", "message"), SAVED.values(), ids=SAVED)
def test_a_folder_without_edits_is_named_by_what_it_holds(llama, places, name, message):
    with pytest.raises(HeadEditError, match=message):
        headedit.load(llama, places / name)
    edits = headedit.attach(llama)
    with pytest.raises(HeadEditError, match=message):
        edits.load_adapter(places / name, "b")
    assert edits.adapters == ["default"]


@pytest.mark.parametrize("name", ["headedit.safetensors", "headedit_config.json"])
def test_the_file_of_saved_edits_stands_for_their_folder(llama, places, name):
    edits = headedit.load(llama, str(places / "edits" / name))
    edits.load_adapter(places / "edits" / name, "b")
    assert edits.adapters == ["default", "b"]


@pytest.mark.parametrize("given", [None, 3, "", EditConfig()], ids=["nothing", "number", "empty", "config"])
def test_what_is_no_path_is_not_loaded(llama, given):
    with pytest.raises(HeadEditError, match=r"path: found .*, expected a folder that save_pretrained wrote"):
        headedit.load(llama, given)


def test_swapped_arguments_of_load_are_named(llama, places):
    with pytest.raises(HeadEditError, match=r"The model comes first, then the folder: headedit\.load\(model, path\)"):
        headedit.load(places / "edits", llama)


VALUES = {
    "list": lambda v: v.tolist(),
    "tuple": lambda v: tuple(v.tolist()),
    "tensors in a list": lambda v: list(v),
    "array": lambda v: v.numpy(),
    "reversed array": lambda v: v.numpy()[::-1].copy()[::-1],
    "float64": lambda v: v.double(),
    "bfloat16": lambda v: v.bfloat16(),
    "with gradient": lambda v: v.clone().requires_grad_(True),
    "int64": lambda v: v.long(),
    "ints": lambda v: v.long().tolist(),
}


@pytest.mark.parametrize("form", VALUES.values(), ids=VALUES)
def test_a_head_is_set_from_every_form_of_a_vector(form):
    values = torch.arange(16.0) - 4
    wanted, edits = attached(), attached()
    wanted.set_head(1, 3, scale=values, offset=values)
    edits.set_head(1, 3, scale=form(values), offset=form(values))
    assert same(edits, wanted)
    edit = edits.module.site_edits[1]
    assert torch.equal(edit.vectors["offset"][3], values)
    assert torch.equal(edit.vectors["scale"][3], values - 1)


def test_a_scale_per_coordinate_acts_per_coordinate(llama):
    edits = headedit.attach(llama)
    scale = numpy.linspace(-1, 1, 16)
    edits.set_head(0, 1, scale=scale)
    z = torch.randn(1, 3, 64)
    edited = edits.module.site_edits[0].eval()(z).view(1, 3, 4, 16)
    torch.testing.assert_close(edited[:, :, 1], z.view(1, 3, 4, 16)[:, :, 1] * torch.tensor(scale, dtype=torch.float32))
    assert edits.count_open() == {"offset": (3 + 4, 8), "scale": (8, 8), "any": (8, 8)}


def test_a_scale_of_ones_is_left_out_as_the_number_one_is():
    one, ones = attached(), attached()
    one.set_head(0, 1)
    ones.set_head(0, 1, scale=[1.0] * 16)
    assert same(one, ones)
    assert ones.count_open()["scale"] == (7, 8)


@pytest.mark.parametrize("scale", [0, numpy.float32(0), numpy.int64(0), torch.tensor(0), numpy.array(0.0)], ids=repr)
@pytest.mark.parametrize("index", [int, numpy.int64, torch.tensor], ids=lambda kind: kind.__name__)
def test_a_head_is_set_by_numbers_of_any_library(scale, index):
    wanted, edits = attached(), attached()
    wanted.set_head(1, 2, scale=0.0)
    edits.set_head(index(1), index(2), scale=scale)
    assert same(edits, wanted)


def test_negative_layers_and_heads_count_from_the_end_as_in_python():
    wanted, edits = attached(layers=[1]), attached(layers=[1])
    wanted.set_head(1, 3, scale=0.0)
    edits.set_head(-1, -1, scale=0.0)
    assert same(edits, wanted)
    with pytest.raises(HeadEditError, match=r"no head 0 in layer -2 to set: .*edited layers: \[1\]"):
        edits.set_head(-2, 0, scale=0.0)  # the first layer of the model, which is not edited


def test_edits_in_bfloat16_are_set_in_bfloat16():
    edits = attached()
    edits.module.to(torch.bfloat16)
    edits.set_head(0, 0, scale=0.3, offset=numpy.full(16, 0.1))
    vectors = edits.module.site_edits[0].vectors
    assert vectors["offset"].dtype is torch.bfloat16
    assert torch.equal(vectors["scale"][0], torch.full((16,), 0.3 - 1.0, dtype=torch.bfloat16))


HEADS = {
    "NaN": ({"offset": [NAN] * 16}, "offset: found nan at place 0, which is not finite"),
    "one NaN": ({"offset": torch.tensor([0.0] * 15 + [NAN])}, "offset: found nan at place 15"),
    "infinity": ({"offset": numpy.full(16, -INF)}, "offset: found -inf at place 0, which is not finite"),
    "too large": ({"offset": [1e300] * 16}, "too large for float32"),
    "a scale of NaN": ({"scale": NAN}, "scale: found nan, which is not finite"),
    "an infinite scale": ({"scale": numpy.float32(INF)}, "scale: found inf, which is not finite"),
    "a scale of one NaN": ({"scale": [0.0] * 15 + [NAN]}, "scale: found nan at place 15"),
    "no scale": ({"scale": None}, "scale: found None, expected a number, or 16 numbers"),
    "a truth": ({"scale": True}, "scale: found True, expected a number"),
    "truths": ({"offset": [True] * 16}, "offset: found True in a list of 16, expected 16 numbers"),
    "an array of truths": ({"offset": numpy.ones(16, bool)}, "dtype bool, expected 16 numbers"),
    "a text": ({"scale": "0"}, "scale: found the text '0', expected a number"),
    "texts": ({"offset": ["a"] * 16}, "offset: found the text 'a' in a list of 16"),
    "a mapping": ({"offset": {"a": 1}}, "offset: found a dict of 1, expected 16 numbers"),
    "complex": ({"offset": torch.ones(16, dtype=torch.complex64)}, r"dtype torch\.complex64, expected 16 numbers"),
    "no values": ({"offset": torch.ones(16, device="meta")}, "without values, on the meta device"),
    "ragged": ({"offset": [[1.0], [1.0, 2.0]]}, "offset: found a list of 2, expected 16 numbers"),
    "short": ({"offset": [1.0] * 4}, r"offset: found shape \(4,\), expected \(16,\)"),
    "a short scale": ({"scale": [1.0] * 4}, r"scale: found shape \(4,\), expected \(16,\) or a single number"),
    "a table": ({"offset": numpy.ones((1, 16))}, r"offset: found shape \(1, 16\), expected \(16,\)"),
    "a number": ({"offset": 1.0}, r"offset: found shape \(\), expected \(16,\)"),
    "a layer's name": ({"layer": "0"}, "layer: found the text '0', expected a whole number, counted from 0"),
    "a fraction": ({"layer": 0.0}, r"layer: found 0\.0, expected a whole number"),
    "several heads": ({"head": [0, 1]}, "head: found a list of 2, expected a whole number"),
    "a true head": ({"head": True}, "head: found True, expected a whole number"),
    "no such head": ({"head": 4}, "no head 4 in layer 0 to set: the layer has 4 heads, 0 to 3"),
    "a kind": ({"kind": "attn"}, "kind: found the text 'attn', expected attention. Did you mean 'attention'"),
}


@pytest.mark.parametrize(("values", "message"), HEADS.values(), ids=HEADS)
def test_a_head_is_not_set_to_what_it_cannot_be(values, message):
    edits, before = attached(), attached()
    with pytest.raises(HeadEditError, match=message):
        edits.set_head(**{"layer": 0, "head": 0, **values})
    assert same(edits, before)


def test_half_precision_edits_refuse_what_overflows_in_it():
    edits = attached()
    edits.module.to(torch.float16)
    with pytest.raises(HeadEditError, match="too large for float16"):
        edits.set_head(0, 0, offset=[1e5] * 16)


STRENGTHS = [NAN, INF, -INF, "0.5", None, True, 1e30, 10**400, [0.5], torch.tensor([0.5]), numpy.bool_(True), 1j]


@pytest.mark.parametrize("value", STRENGTHS, ids=lambda value: repr(value)[:20])
def test_the_dial_takes_finite_numbers_alone(value):
    edits = attached()
    with pytest.raises(HeadEditError, match=r"strength: found .*, expected a number such as 0\.5; 1 is as trained"):
        edits.strength = value
    assert edits.strength == 1.0


@pytest.mark.parametrize(
    "value", [0.5, numpy.float32(0.5), numpy.array(0.5), torch.tensor(0.5), fractions.Fraction(1, 2)], ids=repr
)
def test_the_dial_takes_numbers_of_any_library(value):
    edits = attached()
    edits.strength = value
    assert edits.strength == 0.5
    assert type(edits.strength) is float


ALGEBRA = {
    "plus a number": (lambda a: a + 1, r"Only edits can be added, .*found 1\. Numbers multiply edits"),
    "a number plus": (lambda a: 1 + a, "Only edits can be added"),
    "plus a model": (lambda a: a + a.model, "Only edits can be added, .*found a LlamaForCausalLM"),
    "minus a text": (lambda a: a - "x", "Only edits can be subtracted, .*found the text 'x'"),
    "a number minus": (lambda a: 1 - a, "1 stands before edits"),
    "a number by edits": (lambda a: 2 / a, "2 stands before edits"),
    "times a text": (lambda a: a * "x", "factor of edits: found the text 'x'"),
    "times edits": (lambda a: a * a, "factor of edits: found a HeadEdits"),
    "times a truth": (lambda a: a * True, "factor of edits: found True"),
    "times NaN": (lambda a: a * NAN, "factor of edits: found nan, expected a finite number"),
    "infinity times": (lambda a: INF * a, "factor of edits: found inf, expected a finite number"),
    "by nothing": (lambda a: a / 0, "divisor of edits: found 0"),
    "by a text": (lambda a: a / "x", "divisor of edits: found the text 'x'"),
    "too much": (lambda a: a * 1e30 * 1e30, r"not finite: offset at layers\.0\.self_attn\.o_proj is NaN or infinite"),
    "too much in a sum": (lambda a: a * 3e38 + a * 3e38, "These edits are not finite"),
    "weights": (lambda a: a.add_weighted_adapter(["default"], [NAN], "x"), r"weights\[0\]: found nan"),
    "a weight": (lambda a: a.add_weighted_adapter(["default"], 1.0, "x"), "weights: found 1.0, expected a list"),
    "a name": (lambda a: a.add_weighted_adapter("default", [1.0], "x"), "adapters: found the text 'default', expected"),
    "too few": (lambda a: a.add_weighted_adapter(["default"], [1.0, 2.0], "x"), "Found 1 adapters and 2 weights"),
    "too large": (lambda a: a.add_weighted_adapter(["default"], [1e300], "x"), "These edits are not finite"),
}


@pytest.mark.parametrize(("compute", "message"), ALGEBRA.values(), ids=ALGEBRA)
def test_edits_are_computed_with_edits_and_finite_numbers_alone(compute, message):
    edits = attached()
    randomise(edits)
    with torch.no_grad():
        edits.module.site_edits[0].vectors["offset"].fill_(1.0)
    with pytest.raises(HeadEditError, match=message):
        compute(edits)
    assert edits.adapters == ["default"]


def test_numbers_of_any_library_multiply_edits_and_sums_begin_with_nothing():
    edits = attached()
    randomise(edits)
    twice = edits * 2
    for other in (
        numpy.float64(2) * edits,
        torch.tensor(2.0) * edits,
        edits / 0.5,
        edits / numpy.float32(0.5),
        sum([edits, edits]),
    ):
        for a, b in zip(twice.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_edits_that_hold_nan_are_not_copied():
    edits = attached()
    with torch.no_grad():
        edits.module.site_edits[0].vectors["scale"][0, 0] = NAN
    for copy in (edits, edits["default"]):
        with pytest.raises(HeadEditError, match=r"not finite: scale at layers\.0\.self_attn\.o_proj"):
            edits.add_adapter("b", copy)
    assert edits.adapters == ["default"]


ADAPTERS = {
    "no name": (lambda e: e.add_adapter(None), "None cannot name an adapter"),
    "swapped": (lambda e: e.add_adapter(EditConfig(), "b"), r"The name comes first: add_adapter\('b', config\)"),
    "PEFT's config": (lambda e: e.add_adapter("b", peft.LoraConfig()), "config: found a LoraConfig, expected an Edit"),
    "a path": (lambda e: e.add_adapter("b", "folder"), r"found the text 'folder', .*load_adapter\(path, name\)"),
    "a slip": (lambda e: e.add_adapter("b", {"layer": 1}), "unknown key 'layer'. Did you mean 'layers'"),
    "a list": (lambda e: e.set_adapter(["default"]), "Found a list of 1, expected the name of one adapter"),
    "nothing": (lambda e: e.set_adapter(None), r"Found None, .*Adapters: default\."),
    "a number": (lambda e: e.delete_adapter(0), "Found 0, expected the name of one adapter"),
    "an index": (lambda e: e[0], "Found 0, expected the name of one adapter"),
    "no route": (lambda e: e.route(None).__enter__(), "route: found None, expected a list with a name, or None"),
    "a route's name": (lambda e: e.route("default").__enter__(), "route: found the text 'default', expected a list"),
    "a route's number": (lambda e: e.route(3).__enter__(), "route: found 3, expected a list"),
    "a route of numbers": (lambda e: e.route([0]).__enter__(), "Found 0, expected the name of one adapter"),
    "no folder": (lambda e: e.save_pretrained(None), "save_directory: found None, expected a folder"),
    "no snapshot": (lambda e: e.restore([torch.ones(1)]), "snapshot: found a list of 1"),
    "a vector": (lambda e: e.penalty("offsets"), "vector: found the text 'offsets', .*Did you mean 'offset'"),
    "a call": (lambda e: e(torch.ones(1, 2)), "The handle is not the model: call the model"),
    "generation": (lambda e: e.generate(), r"The handle has no 'generate', .*edits\.model\.generate"),
    "a move": (lambda e: e.to("cpu"), r"The handle has no 'to', .*edits\.model\.to"),
}


@pytest.mark.parametrize(("call", "message"), ADAPTERS.values(), ids=ADAPTERS)
def test_the_handle_names_a_wrong_argument(call, message):
    edits = attached()
    with pytest.raises(HeadEditError, match=message):
        call(edits)
    assert edits.adapters == ["default"]


def test_an_attribute_that_the_model_has_is_none_of_the_handle():
    edits = attached()
    assert not hasattr(edits, "generate")
    assert not hasattr(edits, "nothing")
    with pytest.raises(AttributeError, match="'HeadEdits' object has no attribute 'nothing'"):
        _ = edits.nothing


def test_rows_are_routed_by_names_in_an_array(ids):
    edits = attached()
    randomise(edits)
    with edits.route(numpy.array(["default", None], dtype=object)):
        routed = logits(edits.model, ids)
    with edits.route(["default", None]):
        assert torch.equal(logits(edits.model, ids), routed)


def fit(edits, train=ROWS, valid=None, **options):
    settings = {"recipe": "ungated", "epochs": 1, "min_steps": 1, "progress": False, **options}
    return headedit.fit(edits, train, valid, **settings)


FITS = {
    "a name as edits": ({"edits": "gpt2"}, "edits: found the text 'gpt2', expected the handle"),
    "examples as edits": ({"edits": ROWS}, "edits: found a list of 8, expected the handle"),
    "a bare model": ({"edits": tiny_model("llama")}, r"a model without edits\. .*edits = headedit\.attach\(model\)"),
    "one adapter": ({"edits": attached()["default"]}, "found the edits of one name, expected the handle"),
    "a path": (
        {"train": "a.jsonl"},
        r"train: found the text 'a\.jsonl', .*headedit\.read_records\('a\.jsonl'\)\.pairs",
    ),
    "splits": ({"train": {"train": ROWS}}, r"train: found a dict of 1, .*such as data\['train'\]"),
    "columns": ({"train": {"prompt": ["a"], "response": ["b"]}}, "datasets.Dataset.from_dict"),
    "a frame": ({"train": pandas.DataFrame({"prompt": ["a"]})}, r"frame\.to_dict\('records'\)"),
    "a loader": ({"train": torch.utils.data.DataLoader(ROWS)}, r"loader\.dataset"),
    "records": ({"train": Records([("a", "b")])}, r"Give its pairs: records\.pairs"),
    "nothing": ({"train": None}, "train: found None, expected examples"),
    "a tensor": ({"train": torch.ones(2, 3)}, "train: found a Tensor of shape"),
    "texts": ({"train": ["a", "b"]}, "Give pairs of a prompt and its response"),
    "edits as train": ({"train": attached()}, r"The edits come first: headedit\.fit\(edits, train"),
    "a folder as valid": ({"valid": "out"}, "valid: found the text 'out', .*A folder for the run is output_dir='out'"),
    "no folder": ({"output_dir": None}, "output_dir: found None, expected a folder"),
    "examples as the folder": ({"output_dir": ROWS}, "output_dir: found a list of 8, expected a folder"),
    "a recipe's class": ({"recipe": Localise}, "found the class Localise, .*Give its name, 'localise'"),
    "a recipe": ({"recipe": Localise()}, "found a Localise, .*Give its name, 'localise'"),
    "no recipe": ({"recipe": None}, "recipe: found None, expected one of localise"),
    "a text of epochs": ({"epochs": "5"}, r"epochs: found '5' \(str\), expected a whole number"),
    "transformers' epochs": (
        {"num_train_epochs": 5},
        "unknown key 'num_train_epochs'. Its name in this recipe is epochs",
    ),
    "a rate": ({"learning_rate": 1e-3}, "'learning_rate'. Its name in this recipe is scale_lr and offset_lr"),
    "a short rate": ({"lr": 1e-3}, "'lr'. Its name in this recipe is scale_lr and offset_lr"),
    "transformers' set": ({"train_dataset": ROWS}, r"'train_dataset'. The argument of headedit\.fit is train="),
    "transformers' field": ({"save_steps": 5}, r"'save_steps'. .*are given as arguments=\{'save_steps': \.\.\.\}"),
    "a slip": ({"ouput_dir": "x"}, "Did you mean 'output_dir'"),
    "seeds": ({"seeds": [0, 1]}, "seeds: found a list of 2, expected the number of runs"),
    "a seed": ({"seed": "0"}, "seed: found the text '0', expected a whole number"),
    "a length": ({"max_length": "512"}, "max_length: found the text '512', expected a whole number"),
    "a run to resume": ({"resume": "out"}, "resume: found the text 'out', expected True or False. It is the run in"),
    "controls": ({"controls": "random"}, "controls: found the text 'random', expected True or False"),
    "a metric": ({"metric": 0.5}, "metric: found 0.5, expected a function without arguments"),
    "arguments": ({"arguments": ["bf16"]}, "arguments: found a list of 1, expected a mapping of fields"),
    "a tokenizer": ({"tokenizer": 3}, "tokenizer: found 3, expected the model's tokenizer, its name or its folder"),
    "a model as tokenizer": ({"tokenizer": tiny_model("llama")}, "tokenizer: found a LlamaForCausalLM"),
}


@pytest.mark.parametrize(("values", "message"), FITS.values(), ids=FITS)
def test_fit_names_a_wrong_argument_before_anything_is_written(values, message, tmp_path):
    options = {"edits": attached(), "output_dir": tmp_path / "out", **values}
    with pytest.raises(HeadEditError, match=message):
        fit(options.pop("edits"), **options)
    assert not (tmp_path / "out").exists()


def test_fit_takes_the_model_that_carries_the_edits(llama, tmp_path):
    edits = headedit.attach(llama)
    assert fit(llama, output_dir=tmp_path / "a", seed=numpy.int64(3)).edits is edits
    other = attached()
    fit(other, output_dir=tmp_path / "b", seed=3)
    assert same(edits, other)


def test_fit_loads_a_tokenizer_by_its_folder(tmp_path):
    models = [headedit.load_model(str(MODEL_FOLDER), device="cpu") for _ in range(2)]
    both = [headedit.attach(model) for model in models]
    pairs = [("ab", "cd")] * 8
    fit(both[0], pairs, output_dir=tmp_path / "a", tokenizer=str(MODEL_FOLDER))
    fit(both[1], pairs, output_dir=tmp_path / "b", tokenizer=AutoTokenizer.from_pretrained(MODEL_FOLDER))
    assert same(*both)


@pytest.mark.parametrize("make", [lambda: with_task(LlamaModel), encoder_decoder], ids=["headless", "encoder"])
def test_a_model_that_predicts_no_next_token_is_edited_but_not_trained(make, tmp_path):
    model = make()
    edits = headedit.attach(model)
    edits.set_head(0, 0, scale=0.0)
    with pytest.raises(HeadEditError, match=r"(logits for the next token|causal LM).*Load the causal LM in its place"):
        fit(edits, output_dir=tmp_path / "out")
    with pytest.raises(HeadEditError, match="Load the causal LM in its place"):
        headedit.train("cpu-small", base=edits.detach(), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_headless_model_inside_one_of_peft_is_not_trained(tmp_path):
    model = peft.get_peft_model(with_task(LlamaModel), peft.LoraConfig(target_modules=["q_proj"]))
    edits = headedit.attach(model)
    with pytest.raises(HeadEditError, match="LlamaModel has no language model's head"):
        fit(edits, output_dir=tmp_path / "out")
    with pytest.raises(HeadEditError, match="LlamaModel has no language model's head"):
        HeadEditTrainer(edits, args=TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True))


TRAINS = {
    "edits": ({"config": attached()}, r"config: found a HeadEdits, expected the config of a run\. headedit\.fit\("),
    "a model": ({"config": tiny_model("llama")}, "config: found a LlamaForCausalLM, expected the config of a run"),
    "our config": ({"config": EditConfig()}, "config: found an EditConfig, expected the config of a run"),
    "a number": ({"config": 3}, "config: found 3, expected a YAML file"),
    "half a mapping": ({"config": {"model": {"name": "x"}}}, "the run's config: the key 'data' is missing"),
    "edits as base": ({"config": "cpu-small", "base": attached()}, "base: found the handle of edits"),
    "a name as base": ({"config": "cpu-small", "base": "gpt2"}, "Expected a transformers model, found the text 'gpt2'"),
}


@pytest.mark.parametrize(("values", "message"), TRAINS.values(), ids=TRAINS)
def test_train_names_a_wrong_argument_before_anything_is_written(values, message, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        headedit.train(values["config"], base=values.get("base"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("door", [headedit.doctor, headedit.certify, headedit.draft_spec])
def test_the_other_doors_name_what_is_not_a_model(door):
    with pytest.raises(HeadEditError, match=r"found the text 'gpt2'\. Load it first"):
        door("gpt2")


def test_a_model_is_loaded_by_its_name_alone(llama):
    with pytest.raises(HeadEditError, match="Expected the name or the folder of a model, found a LlamaForCausalLM"):
        headedit.load_model(llama)


def test_numbers_are_read_from_every_library_and_in_no_other_form():
    assert real_number(numpy.float16(0.5), "x") == real_number(torch.tensor(0.5).bfloat16(), "x") == 0.5
    assert whole_number(numpy.uint8(3), "x") == whole_number(torch.tensor(3), "x") == 3
    for wrong in ("1", None, True, numpy.bool_(True), torch.tensor(True), [1], 1j, torch.tensor(1.0, device="meta")):
        with pytest.raises(HeadEditError, match=r"x: found .*, expected a finite number"):
            real_number(wrong, "x")
        with pytest.raises(HeadEditError, match=r"x: found .*, expected a whole number"):
            whole_number(wrong, "x")
    assert head_vector(pandas.Series([1, 2]), "x", 2, torch.float32).tolist() == [1.0, 2.0]
    assert head_vector(range(2), "x", 2, torch.float32).dtype is torch.float64


def test_a_value_is_described_in_few_words():
    assert describe("x" * 100) == f"the text {repr('x' * 100)[:57]}..."
    assert [describe(value) for value in (None, 2, ["a"], torch.ones(2, 3), int)] == [
        "None",
        "2",
        "a list of 1",
        "a Tensor of shape (2, 3)",
        "the class int",
    ]
