"""Predictions that are resumed are of this model: other weights, edits, settings or tokenizers are measured again."""

import contextlib
import json
import logging

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from tiny import randomise, tiny_model

import headedit
from headedit import HeadEditError, Task, evaluate
from headedit.data.tokens import TokenisedPrompt
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.reports.fingerprints import fingerprint
from headedit.hf.digest import settings_digest, weights_digest
from headedit.hf.loading import load_model, load_tokenizer

TASK = Task(name="letters", prompt="{{ prompt }}", answer="response", template="plain", max_new_tokens=8, num_beams=1)
ROWS = tasks.records("sort", 6, cued=True, seed=9)


@pytest.fixture
def model():
    return load_model(str(MODEL_FOLDER), device="cpu")


def texts(model, output, **options):
    """What the predictions next to a report say."""
    options = {"data": ROWS, "progress": False, **options}
    evaluate(model, options.pop("task", TASK), output=output, **options)
    lines = map(json.loads, output.with_suffix(".predictions.jsonl").read_text().splitlines()[1:])
    return sorted((line["system"], line["row"], line["text"]) for line in lines)


def seconds(output):
    lines = map(json.loads, output.with_suffix(".predictions.jsonl").read_text().splitlines()[1:])
    return [line["seconds"] for line in lines]


@contextlib.contextmanager
def another_checkpoint(model, edits):
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(0.1)
    yield


@contextlib.contextmanager
def other_values(model, edits):
    randomise(edits, seed=7)
    yield


@contextlib.contextmanager
def another_strength(model, edits):
    edits.strength = -3.0
    yield


@contextlib.contextmanager
def another_active_adapter(model, edits):
    edits.add_adapter("other")
    edits.set_adapter("other")
    yield


@contextlib.contextmanager
def disabled_layers(model, edits):
    edits.disable_adapter_layers()
    yield


@contextlib.contextmanager
def inside_disable_adapter(model, edits):
    with edits.disable_adapter():
        yield


@contextlib.contextmanager
def detached(model, edits):
    edits.detach()
    yield


@contextlib.contextmanager
def hand_set_head(model, edits):
    for head in range(8):
        edits.set_head(3, head, scale=-5.0)
    yield


@contextlib.contextmanager
def another_end_of_text(model, edits):
    model.generation_config.eos_token_id = [2, *range(10, 200)]
    yield


@contextlib.contextmanager
def another_base_of_rotary_positions(model, edits):
    parameters = model.config.rope_parameters
    parameters["rope_theta"] = 3.0
    rotary = model.model.rotary_emb
    rotary.inv_freq = 1 / 3.0 ** (torch.arange(0, rotary.inv_freq.numel() * 2, 2) / (rotary.inv_freq.numel() * 2))
    yield


CHANGES = [
    another_checkpoint,
    other_values,
    another_strength,
    another_active_adapter,
    disabled_layers,
    inside_disable_adapter,
    detached,
    hand_set_head,
    another_end_of_text,
    another_base_of_rotary_positions,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_predictions_are_made_again_after_a_change_of(change, model, tmp_path, caplog):
    edits = headedit.attach(model)
    randomise(edits, seed=3)
    before = texts(model, tmp_path / "one.json")
    times = seconds(tmp_path / "one.json")
    assert texts(model, tmp_path / "one.json") == before
    assert seconds(tmp_path / "one.json") == times  # nothing was measured twice
    with change(model, edits), caplog.at_level(logging.WARNING):
        right = texts(model, tmp_path / "two.json")
        assert right != before
        assert texts(model, tmp_path / "one.json") == right
    assert "they are made again" in caplog.text


@pytest.mark.parametrize(
    "change", [another_checkpoint, other_values, another_strength, another_active_adapter], ids=lambda c: c.__name__
)
def test_both_systems_are_made_again_where_edits_are_compared_with_the_base_after(change, model, tmp_path):
    edits = headedit.attach(model)
    randomise(edits, seed=3)
    before = texts(model, tmp_path / "one.json", edits=edits)
    with change(model, edits):
        right = texts(model, tmp_path / "two.json", edits=edits)
        assert right != before
        assert texts(model, tmp_path / "one.json", edits=edits) == right


@pytest.mark.parametrize("way", ["harden", "merge"])
def test_hardened_and_merged_edits_are_measured_again_though_they_say_the_same(way, model, tmp_path):
    edits = headedit.attach(model)
    for layer in range(4):
        edits.set_head(layer, 1, scale=0.0)
    before = texts(model, tmp_path / "one.json")
    digests = fingerprint(model, None)
    edits.harden() if way == "harden" else edits.merge_adapter()
    assert fingerprint(model, None) != digests
    times = seconds(tmp_path / "one.json")
    assert texts(model, tmp_path / "one.json") == before
    assert seconds(tmp_path / "one.json") != times


def test_predictions_of_another_tokenizer_are_made_again(model, tmp_path):
    first, second = load_tokenizer(str(MODEL_FOLDER)), load_tokenizer(str(MODEL_FOLDER))
    before = texts(model, tmp_path / "one.json", tokenizer=first)
    second.add_tokens(["c d"])
    assert texts(model, tmp_path / "one.json", tokenizer=first) == before
    right = texts(model, tmp_path / "two.json", tokenizer=second, task=TASK)
    digest = fingerprint(model, None, first)["tokenizer"]
    assert digest != fingerprint(model, None, second)["tokenizer"]
    times = seconds(tmp_path / "one.json")
    assert texts(model, tmp_path / "one.json", tokenizer=second) == right
    assert seconds(tmp_path / "one.json") != times
    second = load_tokenizer(str(MODEL_FOLDER))
    second.chat_template = "{{ messages }}"
    assert digest != fingerprint(model, None, second)["tokenizer"]
    first(["a b", "c"], padding=True, truncation=True, max_length=3)
    assert digest == fingerprint(model, None, first)["tokenizer"]


def test_token_ids_of_the_prompts_are_part_of_what_is_resumed(model):
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    digests = {
        fingerprint(model, None, tokenizer, prompts)["tokenizer"]
        for prompts in (
            [],
            [TokenisedPrompt("a", [5], [2])],
            [TokenisedPrompt("a", [6], [2])],
            [TokenisedPrompt("a", [6], [3])],
        )
    }
    assert len(digests) == 4


def test_predictions_without_digests_as_an_older_version_wrote_them_are_made_again(model, tmp_path):
    before = texts(model, tmp_path / "one.json")
    file = tmp_path / "one.predictions.jsonl"
    first, *rest = file.read_text().splitlines()
    header = {k: v for k, v in json.loads(first).items() if k not in ("weights", "settings", "attached", "tokenizer")}
    rest = [line.replace('"text": "', '"text": "of long ago ') for line in rest]
    file.write_text("\n".join([json.dumps(header), *rest]) + "\n")
    assert texts(model, tmp_path / "one.json") == before


@pytest.mark.parametrize("other", ["dtype", "task", "name"])
def test_another_dtype_task_or_name_is_refused_by_its_name(other, model, tmp_path):
    texts(model, tmp_path / "one.json")
    options = {}
    if other == "dtype":
        model.to(torch.bfloat16)
    elif other == "name":
        model.config._name_or_path = "another"
        options["tokenizer"] = load_tokenizer(str(MODEL_FOLDER))
    else:
        options["task"] = Task(**{**vars(TASK), "prompt": "{{ prompt }} "})
    message = {"dtype": "dtype was 'float32', is 'bfloat16'", "task": "task was", "name": "model was"}[other]
    with pytest.raises(HeadEditError, match=f"holds predictions of another evaluation: {message}"):
        texts(model, tmp_path / "one.json", **options)


# The digest of the weights sees every bit, and is the same wherever the weights are.


def places(model):
    """A parameter of each kind, and the element that is changed."""
    return {
        "one element of a matrix": (model.model.layers[1].mlp.up_proj.weight, (7, 5)),
        "the last element of the embeddings": (model.get_input_embeddings().weight, (-1, -1)),
        "one element of a norm": (model.model.layers[0].input_layernorm.weight, (3,)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", list(places(tiny_model("llama"))))
def test_the_digest_of_the_weights_changes_with(place, dtype):
    model = tiny_model("llama").to(dtype)
    before = weights_digest(model)
    assert weights_digest(tiny_model("llama").to(dtype)) == before
    parameter, at = places(model)[place]
    with torch.no_grad():
        parameter[at] = torch.nextafter(parameter[at], torch.tensor(9.0, dtype=dtype))
    assert weights_digest(model) != before


def test_the_digest_of_the_weights_changes_when_rows_are_swapped_and_with_saved_buffers_alone(llama):
    before = weights_digest(llama)
    weight = llama.model.layers[0].self_attn.o_proj.weight
    with torch.no_grad():
        weight.copy_(weight[[1, 0, *range(2, len(weight))]])
    swapped = weights_digest(llama)
    assert swapped != before
    llama.register_buffer("ours", torch.zeros(2), persistent=False)
    assert weights_digest(llama) == swapped
    llama.register_buffer("kept", torch.zeros(2))
    assert weights_digest(llama) != swapped


def test_the_digest_of_the_weights_is_that_of_the_base_whatever_edits_are_attached(llama):
    before, settings = weights_digest(llama), settings_digest(llama)
    edits = headedit.attach(llama)
    randomise(edits)
    found = fingerprint(llama, edits)
    assert (found["weights"], found["settings"]) == (before, settings)
    assert found["parameters"] == sum(p.numel() for p in tiny_model("llama").parameters())
    assert found["attached"] is None
    assert fingerprint(llama, None)["attached"] == found["edits"]


def test_the_digest_of_the_weights_is_the_same_offloaded_sharded_and_compiled(llama, tmp_path):
    before = weights_digest(llama)
    assert weights_digest(torch.compile(llama)) == before
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "disk"}
    device_map |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded = dispatch_model(tiny_model("llama"), device_map, main_device="cpu", offload_dir=tmp_path)
    assert any(p.is_meta for p in offloaded.parameters())
    assert weights_digest(offloaded) == before
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert weights_digest(cpu_offload(llama, execution_device=torch.device("cpu"))) != before


@pytest.mark.parametrize("bits", [4, 8])
def test_the_digest_of_quantized_weights_changes_with_their_scales(bits, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})

    def quantized(factor, folder):
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(factor)
        model.save_pretrained(folder)
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map={"": "cpu"}
        )

    first, same, other = (quantized(factor, tmp_path / str(i)) for i, factor in enumerate((1, 1, 2)))
    assert weights_digest(first) == weights_digest(same)
    assert weights_digest(first) != weights_digest(other)
    assert weights_digest(first) != weights_digest(tiny_model("llama"))
    before = weights_digest(first)
    with torch.no_grad():
        first(input_ids=torch.tensor([[1, 5]]))
    assert weights_digest(first) == before  # though bitsandbytes moves the scales of 8 bits in the first pass
    assert settings_digest(first) != settings_digest(tiny_model("llama"))


def test_the_digest_of_the_weights_sees_a_lora_next_to_the_edits_its_scale_and_whether_it_acts(llama):
    peft = pytest.importorskip("peft")
    found = [weights_digest(llama)]
    wrapped = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    found.append(weights_digest(wrapped))
    with wrapped.disable_adapter():
        found.append(weights_digest(wrapped))
    assert weights_digest(wrapped) == found[1]
    wrapped.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"], r=2))
    found.append(weights_digest(wrapped))
    wrapped.set_adapter("other")
    found.append(weights_digest(wrapped))
    for module in wrapped.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["other"] = 3.0
    found.append(weights_digest(wrapped))
    assert len(set(found)) == len(found)
