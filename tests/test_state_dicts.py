"""A state dict describes its edits: loaded alone, it gives the logits of the model that it was taken from."""

import copy
import io

import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.gate_set import close, open_gates

STATE = "headedit._extra_state"
CONFIGS = {
    "as attached": {},
    "a shared gate": {"gates": "shared"},
    "the expected gate": {"eval_gate": "expectation"},
    "another temperature": {"temperature": 0.6, "stretch": (-0.3, 1.2)},
    "offsets without gates": {"vectors": "offset", "gates": "none"},
    "one layer": {"layers": [1]},
    "another kind of site": {"sites": ["attention", "mlp"], "mlp_groups": 4},
}
PAIRS = [*(("as attached", name) for name in CONFIGS), *((name, "as attached") for name in CONFIGS)]


def edited(config="as attached", seed=0, **changes):
    model = tiny_model("llama", **changes)
    edits = headedit.attach(model, config=EditConfig(**CONFIGS[config]))
    randomise(edits, seed)
    return model, edits


def taken(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_edits_of_any_config_load_over_edits_of_any_other(source, target, assign, ids):
    (model, edits), (other, others) = edited(source), edited(target, seed=1)
    edits.strength = 0.7
    assert other.load_state_dict(taken(model), assign=assign).missing_keys == []
    assert torch.equal(logits(other, ids), logits(model, ids))
    assert (others.config, others.strength) == (edits.config, 0.7)
    edits.set_head(1, 2, offset=torch.ones(16))
    others.set_head(1, 2, offset=torch.ones(16))
    assert torch.equal(logits(other, ids), logits(model, ids))


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("target", [False, True])
def test_open_and_hardened_edits_load_over_each_other(source, target, ids):
    (model, edits), (other, others) = edited(), edited(seed=1)
    for hardened, chosen in ((source, edits), (target, others)):
        if hardened:
            close(chosen.module, [gate for gate in open_gates(chosen.module) if gate.site == 0])
            chosen.harden()
    other.load_state_dict(taken(model))
    assert torch.equal(logits(other, ids), logits(model, ids))
    assert [edit.idle for edit in others.module] == [edit.idle for edit in edits.module] == [source, False]
    assert len(others.gate_parameters()) == len(edits.gate_parameters()) == (0 if source else 4)
    other.train()
    if source:
        assert torch.equal(logits(other, ids), logits(model, ids))


def test_adapters_that_a_model_lacks_are_made_and_the_same_one_is_active(ids):
    model, edits = edited()
    edits.add_adapter("second", EditConfig(layers=[1], gates="shared"))
    edits.set_adapter("second")
    randomise(edits, seed=3)
    edits["default"].strength = 0.5
    other, others = edited(seed=1)
    others.add_adapter("second")
    fresh, made = edited(seed=2)
    for target, handle in ((other, others), (fresh, made)):
        target.load_state_dict(taken(model))
        assert handle.adapters == ["default", "second"]
        for name in edits.adapters:
            edits.set_adapter(name)
            handle.set_adapter(name)
            assert torch.equal(logits(target, ids), logits(model, ids))
        assert not any(p.requires_grad for p in handle["default"].parameters())
        assert all(p.requires_grad for p in handle["second"].parameters())


def test_adapters_in_excess_are_reported_as_torch_reports_them_and_stay(ids):
    model, _ = edited()
    other, others = edited(seed=1)
    others.add_adapter("more")
    others.set_adapter("more")
    with pytest.raises(RuntimeError, match=r"Missing key.*headedit\.more\.site_edits\.0\.vectors\.offset"):
        other.load_state_dict(taken(model))
    missing, unexpected = other.load_state_dict(taken(model), strict=False)
    assert all(name.startswith("headedit.more.") for name in missing)
    assert unexpected == []
    assert others.active_adapter == "default"
    assert torch.equal(logits(other, ids), logits(model, ids))


def test_a_trainer_of_the_loaded_edits_keeps_the_parameters_it_holds(ids):
    other, others = edited(seed=1)
    held = dict(others.module.named_parameters())
    other.load_state_dict(taken(edited("another temperature")[0]))
    assert all(parameter is held[name] for name, parameter in others.module.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_edits_in_low_precision_load_in_it(dtype, ids):
    model, _ = edited()
    model.to(dtype)
    other = tiny_model("llama").to(dtype)
    headedit.attach(other)
    other.load_state_dict(taken(model))
    assert torch.equal(logits(other, ids), logits(model, ids))


def test_a_state_of_an_older_version_loads_and_opens_the_sites_that_were_idle(ids):
    model, _ = edited()
    state = {name: value for name, value in taken(model).items() if name != STATE}
    other, others = edited(seed=1)
    close(others.module, open_gates(others.module))
    others.harden()
    assert other.load_state_dict(state).missing_keys == []
    assert torch.equal(logits(other, ids), logits(model, ids))


def test_the_state_of_one_adapter_loads_as_that_of_any_module(ids):
    model, edits = edited()
    other, others = edited(seed=1)
    others.harden()
    others.module.load_state_dict(edits.module.state_dict())
    assert torch.equal(logits(other, ids), logits(model, ids))
    model.headedit.load_state_dict(other.headedit.state_dict())
    assert edits.gate_parameters() == others.gate_parameters() == []


def test_the_state_of_the_base_model_leaves_the_edits_as_they_are(ids):
    model, _ = edited()
    wanted = logits(model, ids)
    base = tiny_model("llama").state_dict()
    missing, _ = model.load_state_dict(base, strict=False)
    assert torch.equal(logits(model, ids), wanted)
    assert len(missing) == 8


def test_the_edits_of_another_model_are_refused_with_what_differs_before_anything_is_changed():
    model, _ = edited()
    before = taken(model)
    for changes, message in (
        ({"num_hidden_layers": 3}, r"layers: edits 3, model 2.*layers\.2\.self_attn\.o_proj: not in this model"),
        ({"head_dim": 8}, r"head_dim: edits 8, model 16"),
    ):
        with pytest.raises(HeadEditError, match=message):
            model.load_state_dict(taken(edited(**changes)[0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tensors_that_do_not_fit_their_config_are_refused_before_anything_is_changed():
    model, _ = edited()
    before, state = taken(model), taken(edited(seed=1)[0])
    state["headedit.default.site_edits.1.vectors.offset"] = torch.zeros(2, 16)
    with pytest.raises(HeadEditError, match=r"vectors\.offset: edits \(2, 16\), model \(4, 16\)"):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_in_whose_weights_the_edits_are_is_refused_by_a_model_where_they_are_not_and_the_reverse(ids):
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    edits = headedit.attach(model)
    randomise(edits)
    unmerged = taken(model)
    edits.merge_adapter()
    merged, wanted = taken(model), logits(model, ids)
    with pytest.raises(HeadEditError, match=r"default is merged into the weights of this model.*unmerge_adapter"):
        model.load_state_dict(unmerged)
    assert torch.equal(logits(model, ids), wanted)
    model.load_state_dict(merged)  # its own
    strength = changed('"strength": 1.0', '"strength": 3.0')(merged[STATE])
    with pytest.raises(HeadEditError, match=r"unmerge_adapter"):
        model.load_state_dict({**merged, STATE: strength})
    assert edits.strength == 1
    edits.unmerge_adapter()
    before = logits(model, ids)
    with pytest.raises(HeadEditError, match=r"taken while default was merged .* would act twice"):
        model.load_state_dict(merged)
    assert torch.equal(logits(model, ids), before)


def bytes_of(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def changed(old, new):
    def change(state):
        text = bytes(state.numpy()).decode()
        assert old in text
        return bytes_of(text.replace(old, new))

    return change


DAMAGE = {
    "no bytes": (lambda s: s.float(), r"found torch\.float32 of shape"),
    "a table": (lambda s: s[None], r"expected the bytes"),
    "no tensor": (lambda s: [1], r"found list, expected the bytes"),
    "without values": (lambda s: s.to("meta"), r"expected the bytes"),
    "no JSON": (lambda s: bytes_of("{"), r"cannot be read"),
    "nested without end": (lambda s: bytes_of("[" * 200_000), r"cannot be read"),
    "a list": (lambda s: bytes_of("[]"), r"the key 'format_version' is missing"),
    "a newer format": (changed('"format_version": 1', '"format_version": 7'), r"7, this headedit reads 1"),
    "a name that is no name": (changed('"default"', '"../x"'), r"cannot name an adapter"),
    "a name of a method": (changed('"default"', '"training"'), r"cannot name an adapter"),
    "an active one that is not there": (changed('"active": "default"', '"active": "x"'), r"does not describe"),
    "a huge strength": (changed('"strength": 1.0', '"strength": 1e30'), r"strength: found 1e\+30"),
    "an index beyond": (changed('"idle": []', '"idle": [2]'), r"idle: found \[2\], expected indices from 0 to 1"),
    "an index below": (changed('"idle": []', '"idle": [-1]'), r"idle: found"),
    "a site that cannot be": (changed('"heads": 4', '"heads": -4'), r"cannot be a site"),
    "too many heads": (changed('"heads": 4', '"heads": 999999999'), r"more than edits can have"),
    "an unknown setting": (changed('"gates":', '"gate":'), r"unknown key 'gate'"),
    "a huge temperature": (changed('"temperature": 0.33', '"temperature": 1e300'), r"temperature: found"),
    "not finite": (changed('"strength": 1.0', '"strength": NaN'), r"not finite"),
    "frozen in words": (changed('"frozen_gates": false', '"frozen_gates": "no"'), r"frozen_gates: found"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_malicious_state_is_refused_before_anything_is_changed(what):
    change, message = DAMAGE[what]
    model, edits = edited()
    before, state = taken(model), taken(edited(seed=1)[0])
    state[STATE] = change(state[STATE])
    with pytest.raises(HeadEditError, match=message):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert edits.adapters == ["default"]


@pytest.mark.parametrize("full", [False, True])
def test_distributed_checkpoints_hold_the_state(full, ids):
    model, edits = edited("the expected gate")
    edits.strength = 0.7
    other, _ = edited("a shared gate", seed=1)
    state = get_model_state_dict(model)
    set_model_state_dict(other, dict(state), options=StateDictOptions(full_state_dict=full))
    assert torch.equal(logits(other, ids), logits(model, ids))
    base = tiny_model("llama").state_dict()
    set_model_state_dict(other, dict(base), options=StateDictOptions(full_state_dict=full, strict=False))
    assert torch.equal(logits(other, ids), logits(model, ids))


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_distributed_checkpoint_is_read_in_place(tmp_path, ids):
    import torch.distributed.checkpoint as dcp

    model, edits = edited()
    edits.strength = 0.25
    dcp.save(get_model_state_dict(model), checkpoint_id=tmp_path)
    other, _ = edited(seed=1)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(other, state)
    assert torch.equal(logits(other, ids), logits(model, ids))


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_has_a_handle_of_its_own_and_loads_states_of_its_own(copied, ids):
    model, edits = edited()
    edits.add_adapter("second")
    edits.set_adapter("second")
    wanted = logits(model, ids)
    twin = copied(model)
    handle = headedit.handle(twin)
    assert handle is not edits
    assert (handle.adapters, handle.active_adapter) == (["default", "second"], "second")
    assert torch.equal(logits(twin, ids), wanted)
    twin.load_state_dict(taken(edited("one layer", seed=5)[0]), strict=False)
    assert (handle.active_adapter, edits.active_adapter) == ("default", "second")
    assert torch.equal(logits(model, ids), wanted)
    handle.detach()
    assert not twin._load_state_dict_pre_hooks
    assert len(model._load_state_dict_pre_hooks) == 1


def test_detaching_leaves_no_hook_and_no_key_in_the_state_dict(llama):
    before = set(llama.state_dict())
    headedit.attach(llama).detach()
    assert not llama._load_state_dict_pre_hooks
    assert set(llama.state_dict()) == before
