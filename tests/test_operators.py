"""What edits add to a model in operators, memory and copies: exact, without a clock."""

import gc

import pytest
import torch
from tiny import tiny_model
from torch import nn
from torch.autograd import forward_ad

import headedit
from headedit import EditConfig
from headedit.bench.cost.memory import peak_of_tensors
from headedit.bench.cost.methods import Prepared, edited, upper_bound
from headedit.bench.cost.operators import count_operators
from headedit.bench.cost.shapes import Shape, build, random_ids
from headedit.bench.cost.workloads import forward, loss_and_gradients, training_step
from headedit.edits.affine import apply_affine
from headedit.edits.gate_set import GateIndex, freeze_gates
from headedit.edits.gates import HardConcrete

SMALL = {"hidden": 64, "heads": 4, "batch": 2, "tokens": 16}
CPU = torch.device("cpu")
IDS = random_ids(1000, 2, 16, "cpu")


def with_config(config):
    def method(model):
        edits = headedit.attach(build(model), config=EditConfig(**config))
        return Prepared(edits.model, list(edits.module.parameters()))

    return method


def counted(method, layers, work):
    run = work(method(Shape(layers=layers, **SMALL)), IDS)
    run()
    return count_operators(run, large=2 * 16 * 64)


def added(method, reference, work):
    """What one more layer adds to the method beyond what it adds to the reference."""
    more = counted(method, 3, work) - counted(method, 2, work)
    return more - (counted(reference, 3, work) - counted(reference, 2, work))


@pytest.mark.parametrize(
    ("config", "in_training", "over_the_batch"),
    [
        ({}, 7, 6),
        ({"gates": "shared"}, 7, 6),
        ({"gates": "none"}, 7, 6),
        ({"vectors": "offset"}, 2, 2),
        ({"vectors": "scale"}, 4, 4),
        ({"eval_gate": "expectation"}, 7, 6),
    ],
    ids=["default", "shared gates", "no gates", "offset", "scale", "expectation"],
)
def test_a_site_adds_one_operator_in_eval_mode_and_a_few_in_training(config, in_training, over_the_batch):
    method = with_config(config)
    more = added(method, lambda shape: Prepared(build(shape)), forward)
    assert (more.kernels.total(), more.views.total(), more.large) == (1, 0, 1)
    more = added(method, lambda shape: upper_bound(build(shape)), loss_and_gradients)
    assert (more.kernels.total(), more.large) == (in_training, over_the_batch)
    assert more.synchronising == 0


@pytest.mark.parametrize(
    ("config", "most"),
    [({}, 10), ({"gates": "shared"}, 10), ({"gates": "none"}, 2), ({"eval_gate": "expectation"}, 10)],
    ids=["default", "shared gates", "no gates", "expectation"],
)
def test_a_pass_in_eval_mode_takes_one_operator_per_site_and_a_few_for_all_of_them(config, most):
    def more(layers):
        model = build(Shape(layers=layers, **SMALL))
        edits, run = headedit.attach(model, config=EditConfig(**config)), forward(Prepared(model), IDS)
        with edits.disable_adapter():
            bare = count_operators(run)
        return count_operators(run) - bare

    few, many = more(2), more(7)
    assert ((many - few).kernels, (many - few).views) == ({"addcmul": 5}, {})
    assert few.kernels.total() - 2 <= most <= 12
    assert few.synchronising == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("vectors", "operator"), [("both", "addcmul"), ("offset", "add"), ("scale", "mul")])
def test_a_site_in_16_bits_adds_one_operator_in_inference_which_rounds_as_it_writes(dtype, vectors, operator):
    def count(layers):
        model = build(Shape(layers=layers, dtype=dtype, **SMALL))
        edits, run = headedit.attach(model, config=EditConfig(vectors=vectors)), forward(Prepared(model), IDS)
        with edits.disable_adapter():
            bare = count_operators(run)
        return count_operators(run) - bare

    assert (count(3) - count(2)).kernels == {operator: 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", ["both", "offset", "scale", "rows"])
def test_rounding_as_it_is_written_gives_the_bits_of_rounding_after(dtype, given):
    draw = torch.Generator().manual_seed(0)
    shape = (3, 1, 64) if given == "rows" else (64,)
    offset, scale = (torch.randn(shape, generator=draw) for _ in range(2))
    offset, scale = None if given == "scale" else offset, None if given == "offset" else scale
    z = torch.randn(3, 40, 128, generator=draw).to(dtype)
    for each in (z[..., :64], z[..., ::2], z[..., :64].transpose(0, 1).contiguous().transpose(0, 1)):
        each[0, 0, 0], each[0, 0, 1], each[0, 0, 2] = float("nan"), float("inf"), 1e-8
        with torch.no_grad():
            found = apply_affine(each, scale, offset)
        wanted = apply_affine(each, scale, offset)  # with gradients
        assert found.dtype == dtype
        assert torch.equal(found.view(torch.int16), wanted.view(torch.int16))


def test_transforms_of_torch_func_and_forward_mode_derivatives_pass_an_edit_in_16_bits_without_gradients():
    z, scale, offset = torch.randn(3, 8).bfloat16(), torch.randn(8), torch.randn(8)
    with torch.no_grad():
        wanted = apply_affine(z, scale, offset)
        assert torch.equal(torch.func.vmap(apply_affine, (0, None, None))(z, scale, offset), wanted)
        _, tangent = torch.func.jvp(lambda x: apply_affine(x, scale, offset), (z,), (torch.ones_like(z),))
        with forward_ad.dual_level():
            dual = apply_affine(forward_ad.make_dual(z, torch.ones_like(z)), scale, offset)
            assert torch.equal(forward_ad.unpack_dual(dual).primal, wanted)
    torch.testing.assert_close(tangent, scale.bfloat16().expand(3, 8))


def test_a_hardened_site_without_an_open_head_adds_no_operator():
    edits = headedit.attach(build(Shape(layers=3, **SMALL)))
    freeze_gates(edits.module, [GateIndex(1, "scale", 2)])
    edits.harden()
    plain = Prepared(build(Shape(layers=3, **SMALL)))
    run, reference = forward(Prepared(edits.model), IDS), forward(plain, IDS)
    run(), reference()
    more = count_operators(run) - count_operators(reference)
    freeze_gates(edits.module, [GateIndex(0, "scale", 0), GateIndex(1, "scale", 2), GateIndex(2, "offset", 1)])
    all_open = count_operators(run) - count_operators(reference)
    assert more.kernels["addcmul"] == 1
    assert (all_open - more).kernels == {"addcmul": 2}
    freeze_gates(edits.module, [])
    edits.harden()
    nothing = count_operators(run) - count_operators(reference)
    assert (nothing.kernels.total(), nothing.views.total()) == (0, 0)


def test_the_penalty_adds_as_many_operators_for_any_number_of_layers():
    def of(layers):
        edits = headedit.attach(build(Shape(layers=layers, **SMALL)))
        return count_operators(lambda: edits.penalty()).kernels, edits

    (few, _), (many, edits) = of(2), of(6)
    assert few == many
    by_hand = sum(HardConcrete().open_probability(gate).sum() for gate in edits.gate_parameters())
    torch.testing.assert_close(edits.penalty(), by_hand)
    edits.penalty().backward()
    for gate in edits.gate_parameters():
        assert torch.equal(gate.grad, torch.autograd.grad(HardConcrete().open_probability(gate).sum(), gate)[0])


def test_attach_copies_no_weight_and_makes_nothing_of_a_weights_size(llama):
    weights = {name: p.data_ptr() for name, p in llama.named_parameters()}
    smallest = min(p.numel() for p in llama.parameters() if p.dim() == 2)
    count = count_operators(lambda: headedit.attach(llama), large=smallest)
    assert count.large == 0
    assert {name: p.data_ptr() for name, p in llama.named_parameters() if "headedit" not in name} == weights


def test_layers_below_the_first_edit_run_without_autograd():
    model = build(Shape(layers=3, **SMALL))
    edits = headedit.attach(model, config=EditConfig(layers="2:"))
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    run = loss_and_gradients(Prepared(model, list(edits.module.parameters())), IDS)
    run()
    assert seen == [False, False, True]
    deeper = headedit.attach(build(Shape(layers=5, **SMALL)), config=EditConfig(layers="4:"))
    one, other = model(input_ids=IDS, labels=IDS).loss, deeper.model.train()(input_ids=IDS, labels=IDS).loss
    assert count_operators(one.backward).kernels == count_operators(other.backward).kernels


def test_nothing_grows_over_a_hundred_steps():
    prepared = edited(build(Shape(layers=2, **SMALL)))
    step = training_step(prepared, IDS)
    for _ in range(5):
        step()

    def objects():
        gc.collect()
        return len(gc.get_objects()), sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    before, peak = objects(), peak_of_tensors(step, CPU)
    for _ in range(100):
        step()
    after = objects()
    assert after[1] == before[1]
    assert after[0] <= before[0] + 50  # a hundred steps that each left an object would leave more
    assert peak_of_tensors(step, CPU) == peak


def test_nothing_grows_over_a_hundred_evaluations(llama, ids):
    edits = headedit.attach(llama, config=EditConfig(init_std=0.1))
    run = forward(Prepared(llama), ids)
    run()
    gc.collect()
    before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    for i in range(100):
        edits.set_head(0, i % 4, scale=0.5)
        run()
    gc.collect()
    assert sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()) == before


def test_the_peak_memory_of_a_training_step_is_that_of_the_upper_bound():
    base = build(Shape(layers=4, hidden=128, heads=4))
    ids = random_ids(1000, 4, 128, "cpu")
    peaks = []
    for method in (upper_bound, edited):
        step = training_step(method(base), ids)
        step()
        peaks.append(peak_of_tensors(step, CPU))
    assert peaks[0] < peaks[1] <= 1.02 * peaks[0]


def test_gates_drawn_at_once_are_those_drawn_one_after_the_other():
    logits = [torch.randn(32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    torch.manual_seed(0)
    together = HardConcrete().sample(torch.stack(logits))
    torch.manual_seed(0)
    assert torch.equal(together, torch.stack([HardConcrete().sample(gate) for gate in logits]))


def test_the_bench_counts_copies_and_what_waits_for_the_device():
    z = torch.randn(4, 4)
    count = count_operators(lambda: [z.view(16).clone(), z.sum().item(), z[0] + 1], large=16)
    assert dict(count.kernels) == {"clone": 1, "sum": 1, "_local_scalar_dense": 1, "add": 1}
    assert (count.views.total(), count.large, count.synchronising) == (2, 2, 1)


def test_adding_an_adapter_looks_at_no_other(llama, monkeypatch):
    edits = headedit.attach(llama)
    walked = []
    before = nn.Module.named_modules

    def counted(module, *args, **kwargs):
        walked.append(module)
        return before(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    counts = []
    for i in range(3):
        walked.clear()
        edits.add_adapter(f"a{i}")
        counts.append(len(walked))
    assert counts[0] == counts[1] == counts[2] > 0


def test_a_model_on_the_meta_device_is_attached_to_without_any_of_its_weights():
    with torch.device("meta"):
        model = tiny_model("llama")
    edits = headedit.attach(model)
    assert {p.device.type for p in edits.module.parameters()} == {"cpu"}
    assert all(p.is_meta for name, p in model.named_parameters() if "headedit" not in name)
    assert isinstance(model, nn.Module)
