"""Saved edits from strangers are refused with a HeadEditError, or load finite; the model is never half edited."""

import contextlib
import copy
import hashlib
import json
import math
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_files import older_pair
from tiny import randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER
from headedit.edits.files.format import CONFIG_FILE, TENSOR_FILE
from headedit.edits.files.header import split_payload, with_text
from headedit.edits.files.storage import load_tensors, read
from headedit.edits.gate_set import close, open_gates

PACKAGE = Path(headedit.__file__).parent
QUICK = settings(deadline=None, max_examples=90, derandomize=True, suppress_health_check=list(HealthCheck))


BETWEEN_PROCESSES = {"io/processes.py"}
"""What talks to the processes of its own launch, as torch.distributed does with objects; it reads no file."""


def test_the_package_reads_no_file_in_a_way_that_could_run_code():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    for file in files:
        text = file.read_text()
        if file.relative_to(PACKAGE).as_posix() not in BETWEEN_PROCESSES:
            assert "pickle" not in text.replace("allow_pickle=False", "").replace("never pickle", ""), file
        for call in re.findall(r"(?<![\w.])(?:torch|np|numpy)\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call or "allow_pickle=False" in call, f"{file}: {call}"
        assert not re.search(r"yaml\.(unsafe_|full_)?load\((?!.*_StrictLoader)", text), file
        assert not re.search(r"(?<![\w.])(eval|exec)\(", text), file


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The two files, full and hardened, as bytes, in the form of older versions, whose config is a file of its own."""
    pairs = {}
    for form, config in (("full", EditConfig()), ("hardened", EditConfig()), ("shared", EditConfig(gates="shared"))):
        edits = headedit.attach(tiny_model("llama"), config=config)
        randomise(edits)
        close(edits.module, open_gates(edits.module)[::3])
        folder = tmp_path_factory.mktemp(form)
        edits.save_pretrained(folder, hardened=form != "full")
        pairs[form] = older_pair((folder / CONFIG_FILE).read_bytes(), (folder / TENSOR_FILE).read_bytes())
    return pairs


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A model to load on, what it is like untouched, and a folder to load from."""
    model = tiny_model("llama")
    return model, State(model), tmp_path_factory.mktemp("fuzzed")


class State:
    """What must be the same after a load that failed."""

    def __init__(self, model):
        self.parameters = {n: (p, p.clone(), p.requires_grad) for n, p in model.named_parameters()}
        self.modules = list(model.named_modules())
        self.hooks = self._hooks(model)

    def _hooks(self, model):
        return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]

    def check(self, model):
        assert list(model.named_modules()) == self.modules
        assert self._hooks(model) == self.hooks
        for name, parameter in model.named_parameters():
            same, value, grad = self.parameters[name]
            assert parameter is same
            assert torch.equal(parameter, value)
            assert parameter.requires_grad == grad


def attempt(target, config, tensors):
    """Loads a pair in all three ways: each refuses with a HeadEditError, or gives finite edits."""
    model, state, folder = target
    (folder / CONFIG_FILE).write_bytes(config)
    (folder / TENSOR_FILE).write_bytes(tensors)
    refused = _refusal(lambda: _check_loaded(headedit.load(model, folder), state))
    if refused is not None:
        assert len(refused.encode()) < 5000
    state.check(model)
    _refusal(lambda: read(folder).gates())
    _refusal(lambda: load_tensors(headedit.attach(tiny_model("llama")), folder))
    return refused is None


def _check_loaded(edits, state):
    assert all(torch.isfinite(p).all() for p in edits.module.parameters())
    assert not any(torch.isinf(gates).any() for gates in edits.gates())
    ours = {name for name, _ in edits.model.named_parameters() if not name.startswith("headedit.")}
    assert ours == set(state.parameters)
    edits.detach()


def _refusal(action):
    """The message of the HeadEditError that is raised, None where there is none; other errors are raised."""
    try:
        action()
    except HeadEditError as error:
        return str(error)
    return None


def rehashed(config, tensors):
    data = json.loads(config)
    return json.dumps({**data, "tensors_sha256": hashlib.sha256(tensors).hexdigest()}).encode()


def in_header(config, tensors):
    """A file of tensors that has a config in its header, whatever the config is; the hash of the tensors fits."""
    text = config.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(text)
        if isinstance(data, dict):
            hashed = hashlib.sha256(split_payload(tensors)[1]).hexdigest()
            text = f'{{"data_sha256": "{hashed}", {text.lstrip()[1:]}'
    return with_text(tensors, text)


def attempt_in_header(target, config, tensors):
    """As ``attempt``, of a file with the config in its header and nothing next to it."""
    model, state, folder = target
    alone = folder / "alone"
    alone.mkdir(exist_ok=True)
    (alone / TENSOR_FILE).write_bytes(in_header(config, tensors))
    refused = _refusal(lambda: _check_loaded(headedit.load(model, alone), state))
    assert refused is None or len(refused.encode()) < 5000
    state.check(model)
    _refusal(lambda: read(alone).gates())
    return refused is None


@st.composite
def mutation(draw):
    """A function of bytes: some are changed, taken out or put in, or the end is cut off."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["set", "delete", "insert", "cut", "double"]),
                st.floats(0, 1, exclude_max=True),
                st.binary(min_size=1, max_size=12),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def apply(payload):
        for kind, where, value in steps:
            i = int(where * len(payload))
            if kind == "set":
                payload = payload[:i] + value + payload[i + len(value) :]
            elif kind == "delete":
                payload = payload[:i] + payload[i + len(value) :]
            elif kind == "insert":
                payload = payload[:i] + value + payload[i:]
            elif kind == "cut":
                payload = payload[:i]
            else:
                payload = payload[:i] + payload[i : i + 64] + payload[i:]
        return payload

    return apply


FORMS = st.sampled_from(["full", "hardened", "shared"])


@QUICK
@given(FORMS, mutation())
def test_tensors_with_changed_bytes_and_a_fitting_hash_are_refused_or_load_finite(stored, target, form, mutate):
    config, tensors = stored[form]
    changed = mutate(tensors)
    assert attempt(target, rehashed(config, changed), changed) or changed != tensors


@QUICK
@given(FORMS, mutation())
def test_tensors_with_a_changed_header_are_refused_or_load_finite(stored, target, form, mutate):
    config, tensors = stored[form]
    size = struct.unpack("<Q", tensors[:8])[0]
    header = mutate(tensors[8 : 8 + size])
    changed = struct.pack("<Q", len(header)) + header + tensors[8 + size :]
    assert attempt(target, rehashed(config, changed), changed) or changed != tensors


@QUICK
@given(FORMS, mutation())
def test_a_config_with_changed_bytes_is_refused_or_loads_finite(stored, target, form, mutate):
    config, tensors = stored[form]
    changed = mutate(config)
    assert attempt(target, changed, tensors) or changed != config


@QUICK
@given(FORMS, mutation())
def test_a_config_with_changed_bytes_in_the_header_is_refused_or_loads_finite(stored, target, form, mutate):
    config, tensors = stored[form]
    changed = mutate(config)
    assert attempt_in_header(target, changed, tensors) or changed != config


@QUICK
@given(FORMS, mutation())
def test_a_file_with_its_config_in_a_changed_header_is_refused_or_loads_finite(stored, target, form, mutate):
    payload = in_header(*stored[form])
    changed = mutate(payload)
    _, state, folder = target
    (folder / "alone").mkdir(exist_ok=True)
    (folder / "alone" / TENSOR_FILE).write_bytes(changed)
    refused = _refusal(lambda: _check_loaded(headedit.load(target[0], folder / "alone"), state))
    assert refused is None or changed != payload


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, -1, 3, 2**31, 2**63, 10**30, 0.5, 1e300, -1e300, 1e-300, math.inf, math.nan]),
    st.sampled_from(["", "../../x", "/etc/passwd", "layers.{layer}", "\ud800", "a" * 5000, "both", "none", "\x1b[2J"]),
    st.sampled_from([[], {}, [[]], [{}], {"a": []}, [1, 2], {"by_layer_type": {"a": {"value": 1}}}]),
)


def places(data, above=()):
    """Every path into nested data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


@settings(QUICK, max_examples=200)
@given(FORMS, st.data())
def test_a_config_with_changed_values_is_refused_or_loads_finite(stored, target, form, data):
    config, tensors = stored[form]
    content = json.loads(config)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(list(places(content))))
        holder = content
        for key in above:
            holder = holder[key]
        what = data.draw(st.sampled_from(["set", "set", "delete", "add", "double"]))
        if what == "set":
            holder[last] = copy.deepcopy(data.draw(ODD))
        elif what == "delete":
            del holder[last]
        elif what == "add" and isinstance(holder, dict):
            holder["more"] = copy.deepcopy(data.draw(ODD))
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        if not any(True for _ in places(content)):
            break
    changed = json.dumps(content).encode()
    assert attempt(target, changed, tensors) or content != json.loads(config)
    assert attempt_in_header(target, changed, tensors) or content != json.loads(config)


def with_header(tensors, change):
    """The tensors with another header, as a writer of bad files would have it."""
    size = struct.unpack("<Q", tensors[:8])[0]
    header = change(json.loads(tensors[8 : 8 + size]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + tensors[8 + size :]


def first(header, **changes):
    name = next(key for key in header if key != "__metadata__")
    return {**header, name: {**header[name], **changes}}


HEADERS = {
    "huge shape": lambda h: first(h, shape=[2**40, 2**40]),
    "shape that overflows": lambda h: first(h, shape=[2**63, 4]),
    "negative shape": lambda h: first(h, shape=[-4, 16]),
    "offsets out of range": lambda h: first(h, data_offsets=[0, 2**40]),
    "offsets backwards": lambda h: first(h, data_offsets=[256, 0]),
    "offsets overlapping": lambda h: {**h, **{n: {**v, "data_offsets": [0, 256]} for n, v in h.items() if n[0] != "_"}},
    "no offsets": lambda h: first(h, data_offsets=[]),
    "another dtype": lambda h: first(h, dtype="I32"),
    "a dtype of fewer bits": lambda h: first(h, dtype="F8_E4M3"),
    "a dtype that is not": lambda h: first(h, dtype="F31"),
    "a dtype of half bytes": lambda h: first(h, dtype="F4"),
    "a name with a path": lambda h: {("../../x" if n[0] != "_" else n): v for n, v in h.items()},
    "a key twice": lambda h: json.dumps(h).encode()[:-1] + b"," + json.dumps(h).encode()[1:],
    "nested without end": lambda h: b'{"a":' * 50_000,
    "not UTF-8": lambda h: b"\xff" * 200,
    "empty": lambda h: b"",
    "null": lambda h: b"null",
}


@pytest.mark.parametrize("form", ["full", "hardened"])
@pytest.mark.parametrize("what", HEADERS)
def test_a_malicious_header_is_refused(stored, target, form, what):
    config, tensors = stored[form]
    tensors = with_header(tensors, HEADERS[what])
    assert not attempt(target, rehashed(config, tensors), tensors)


@pytest.mark.parametrize("length", [0, 7, 2**31, 2**63, 2**64 - 1])
def test_a_wrong_length_of_the_header_is_refused(stored, target, length):
    config, tensors = stored["full"]
    tensors = struct.pack("<Q", length) + tensors[8:]
    assert not attempt(target, rehashed(config, tensors), tensors)


def edit(config, change):
    data = json.loads(config)
    change(data)
    return json.dumps(data).encode()


def in_sites(**values):
    return lambda data: data["sites"][0].update(values)


def in_config(**values):
    return lambda data: data["config"].update(values)


TEXTS = {
    "a key twice": (lambda c: c[:-2] + b', "format_version": 1}', r"the key 'format_version' is given twice"),
    "nested without end": (lambda c: b"[" * 200_000, r"cannot be read"),
    "nested too deep": (lambda c: c[:-2] + b', "a": ' + b"[" * 30 + b"]" * 30 + b"}", r"more than 20 levels deep"),
    "a number of many digits": (lambda c: c[:-2] + b', "a": ' + b"9" * 5000 + b"}", r"9…? is too large"),
    "not a number": (lambda c: c[:-2] + b', "a": NaN}', r"the number NaN is not finite"),
    "a number too large": (lambda c: c[:-2] + b', "a": 1e999}', r"the number 1e999 is not finite"),
    "half a surrogate pair": (lambda c: c[:-2] + b', "a": "\\ud800"}', r"surrogates not allowed"),
    "not UTF-8": (lambda c: c[:-2] + b', "a": "\xff"}', r"can't decode"),
    "too long": (lambda c: c + b" " * 2**22, r"bytes, more than the 4,194,304 that edits can have"),
    "true as a version": (lambda c: edit(c, lambda d: d.update(format_version=True)), r"'format_version' is missing"),
    "versions of another kind": (lambda c: edit(c, lambda d: d.update(format_version=9, versions=[1])), r"unknown"),
    "a name with a path": (lambda c: edit(c, in_sites(name="../../x")), r"\.\./\.\./x: not in this model"),
    "an absolute path": (lambda c: edit(c, in_sites(name="/etc/passwd")), r"/etc/passwd: not in this model"),
    "a name that is a list": (lambda c: edit(c, in_sites(name=["a"])), r"which cannot be a site"),
    "a kind that is not": (lambda c: edit(c, in_sites(kind={})), r"which cannot be a site"),
    "a layer beyond": (lambda c: edit(c, in_sites(layer=2)), r"which cannot be a site"),
    "no heads": (lambda c: edit(c, in_sites(heads=0)), r"which cannot be a site"),
    "half a head": (lambda c: edit(c, in_sites(heads=4.0)), r"which cannot be a site"),
    "huge heads": (lambda c: edit(c, in_sites(heads=10**12)), r"numbers, more than edits can have"),
    "huge layers": (lambda c: edit(c, in_sites(layers=10**12)), r"numbers, more than edits can have"),
    "a site twice": (lambda c: edit(c, lambda d: d["sites"].append(d["sites"][0])), r"one is named twice"),
    "no site": (lambda c: edit(c, lambda d: d["sites"].clear()), r"there is none"),
    "a huge temperature": (lambda c: edit(c, in_config(temperature=1e300)), r"temperature: found 1e\+300"),
    "a huge stretch": (lambda c: edit(c, in_config(stretch=[-1e308, 1e308])), r"stretch: found"),
    "a huge start": (lambda c: edit(c, in_config(gate_init=1e300)), r"gate_init: found"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_malicious_config_is_refused(stored, target, what):
    change, message = TEXTS[what]
    model, state, folder = target
    config, tensors = stored["full"]
    config = change(config.strip() + b"\n")
    assert not attempt(target, config, tensors)
    with pytest.raises(HeadEditError, match=message):
        headedit.load(model, folder)
    state.check(model)


@pytest.mark.parametrize("what", [what for what in TEXTS if what not in ("not UTF-8", "half a surrogate pair")])
def test_a_malicious_config_in_the_header_is_refused(stored, target, what):
    change, message = TEXTS[what]
    model, state, folder = target
    config, tensors = stored["full"]
    assert not attempt_in_header(target, change(config.strip() + b"\n"), tensors)
    with pytest.raises(HeadEditError, match=message):
        headedit.load(model, folder / "alone")
    state.check(model)


def test_a_spec_that_is_nested_without_end_is_refused(stored, target):
    def nest(data):
        rule = {"value": 1}
        for _ in range(300):
            rule = {"by_layer_type": {"a": rule}}
        data["spec"]["sites"]["attention"]["heads"] = rule

    config, tensors = stored["full"]
    assert not attempt(target, edit(config, nest), tensors)


def hardened_with(tensors, **changes):
    """A hardened file of which some tensors are replaced, or left out by None; the hash fits."""
    import safetensors.torch

    values = safetensors.torch.load(tensors)
    name = "layers.0.self_attn.o_proj"
    values |= {f"{name}.{key}": value for key, value in changes.items()}
    return safetensors.torch.save({key: value for key, value in values.items() if value is not None})


INDICES = {
    "beyond the heads": (torch.tensor([0, 4]), r"expected rising indices from 0 to 3"),
    "below 0": (torch.tensor([-1, 0]), r"expected rising indices"),
    "one twice": (torch.tensor([1, 1]), r"expected rising indices"),
    "falling": (torch.tensor([2, 1]), r"expected rising indices"),
    "too few": (torch.tensor([1]), r"has shape \(2, 16\), expected \(1, 16\)"),
    "of floating point": (torch.tensor([0.0, 1.0]), r"expected a list of whole numbers"),
    "a table": (torch.tensor([[0, 1]]), r"expected a list of whole numbers"),
    "none": (None, r"has shape \(2, 16\), expected \(0, 16\)"),
}


@pytest.mark.parametrize("what", INDICES)
def test_impossible_indices_of_a_hardened_file_are_refused(stored, target, what):
    heads, message = INDICES[what]
    config, tensors = stored["hardened"]
    tensors = hardened_with(tensors, offset=torch.ones(2, 16), offset_heads=heads)
    config = rehashed(config, tensors)
    assert not attempt(target, config, tensors)
    with pytest.raises(HeadEditError, match=message):
        headedit.load(target[0], target[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": torch.full((1, 16), torch.nan), "offset_heads": torch.tensor([0])}, "holds NaN"),
        (
            {"offset": torch.ones(1, 16).half(), "offset_heads": torch.tensor([0])},
            "float16, float32, expected one dtype",
        ),
        ({"offset": torch.ones(1, 16).int(), "offset_heads": torch.tensor([0])}, "expected one dtype"),
        ({"more": torch.ones(1)}, r"o_proj\.more' is not known"),
        ({"offset_gate": torch.ones(4)}, r"offset_gate' is not known"),
    ],
)
def test_impossible_tensors_of_a_hardened_file_are_refused(stored, target, changes, message):
    config, tensors = stored["hardened"]
    tensors = hardened_with(tensors, **changes)
    assert not attempt(target, rehashed(config, tensors), tensors)
    with pytest.raises(HeadEditError, match=message):
        headedit.load(target[0], target[2])


def test_a_file_whose_heads_share_a_gate_but_do_not_open_together_is_refused(stored, target):
    config, tensors = stored["shared"]
    tensors = hardened_with(tensors, offset=None, offset_heads=None)
    assert not attempt(target, rehashed(config, tensors), tensors)
    with pytest.raises(HeadEditError, match="share their gates, but open other heads"):
        headedit.load(target[0], target[2])


def test_files_that_are_links_load_as_in_the_hubs_cache(stored, target, tmp_path):
    config, tensors = stored["hardened"]
    for name, payload in ((CONFIG_FILE, config), (TENSOR_FILE, tensors)):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / name).write_bytes(payload)
        (tmp_path / name).symlink_to(tmp_path / "blobs" / name)
    _, state, _ = target
    _check_loaded(headedit.load(tiny_model("llama"), tmp_path), state)
    assert (tmp_path / CONFIG_FILE).is_symlink()


def test_unchanged_files_load(stored, target):
    assert [attempt(target, *files) for files in stored.values()] == [True, True, True]


def test_a_config_that_asks_for_terabytes_takes_no_memory(stored, target, tmp_path):
    config, tensors = stored["full"]
    many = edit(
        config, lambda d: d.update(sites=[{**d["sites"][0], "name": f"s{i}", "heads": 2**20} for i in range(99)])
    )
    (tmp_path / CONFIG_FILE).write_bytes(many)
    (tmp_path / TENSOR_FILE).write_bytes(tensors)
    with pytest.raises(HeadEditError, match="more than edits can have"):
        read(tmp_path)


def test_the_message_about_an_unprintable_site_name_can_be_printed(stored, tmp_path, capsys):
    config, tensors = stored["full"]
    (tmp_path / CONFIG_FILE).write_bytes(edit(config, in_sites(name="\x00é漢")))
    (tmp_path / TENSOR_FILE).write_bytes(tensors)
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "--model", str(MODEL_FOLDER), "--edits", str(tmp_path), "--data", str(_data(tmp_path))])
    assert "made for another model" in capsys.readouterr().err


def _data(folder):
    (folder / "data.json").write_text('[{"prompt": "a", "response": "b"}]')
    return folder / "data.json"
