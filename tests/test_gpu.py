"""On a GPU: the same as on the CPU, in bfloat16 too, without making the host wait. Skipped without one."""

import copy

import pytest
import torch
from tiny import logits, randomise, tiny_model

import headedit
from headedit.bench.cost import Shape, measure_cost
from headedit.bench.cost.memory import peak_of_tensors
from headedit.bench.cost.methods import edited, upper_bound
from headedit.bench.cost.shapes import build, random_ids
from headedit.bench.cost.workloads import training_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def pair(dtype=torch.float32):
    """The same edited model on the CPU and on the GPU."""
    handles = []
    for device in ("cpu", "cuda"):
        edits = headedit.attach(tiny_model("llama").to(device, dtype))
        randomise(edits)
        handles.append(edits)
    return handles


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_logits_on_a_gpu_are_those_of_the_cpu(ids, dtype, tolerance):
    on_cpu, on_gpu = pair(dtype)
    assert {p.device.type for p in on_gpu.module.parameters()} == {"cuda"}
    assert {p.dtype for p in on_gpu.module.parameters()} == {torch.float32}
    found, wanted = logits(on_gpu.model, ids.to(GPU)), logits(on_cpu.model, ids)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().float(), wanted.float(), atol=tolerance, rtol=tolerance)
    with on_gpu.disable_adapter():
        base = logits(on_gpu.model, ids.to(GPU))
    assert not torch.allclose(base, found, atol=1e-2)
    on_gpu.detach()
    assert torch.equal(logits(on_gpu.model, ids.to(GPU)), base)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_gradients_on_a_gpu_are_those_of_the_cpu(ids, dtype, tolerance):
    gradients = []
    for edits in pair(dtype):
        device = next(edits.model.parameters()).device
        rows = ids.to(device)
        edits.model(input_ids=rows, labels=rows).loss.backward()  # in eval mode, so that gates are not drawn
        gradients.append([p.grad.cpu() for p in edits.module.parameters()])
    assert len(gradients[0]) > 0
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("training", [True, False])
def test_an_edit_does_not_make_the_host_wait(training):
    edits = headedit.attach(tiny_model("llama").to(GPU))
    randomise(edits)
    edits.model.train(training)
    z = torch.randn(2, 7, 64, device=GPU)
    (edit, _) = edits.module
    edit(z).sum().backward()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (edit(z).sum() + edits.penalty()).backward()
        with torch.no_grad():
            edit(z)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert edit(z).isfinite().all()


def test_a_captured_cuda_graph_sees_parameters_that_change():
    edits = headedit.attach(tiny_model("llama").to(GPU))
    randomise(edits)
    edits.module.eval()
    (edit, _) = edits.module
    z = torch.randn(2, 7, 64, device=GPU)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            edit(z)  # fills what is kept
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = edit(z)
        edit.vectors["scale"].mul_(2)
        graph.replay()
        assert torch.equal(out, copy.deepcopy(edit)(z))


def test_routed_rows_on_a_gpu_are_those_of_their_adapters(ids):
    edits = pair()[1]
    edits.add_adapter("b")
    edits.set_adapter("b")
    randomise(edits, 1)
    rows = ids.to(GPU)
    wanted = logits(edits.model, rows)[1]
    with edits.disable_adapter():
        base = logits(edits.model, rows)[0]
    with edits.route([None, "b"]):
        found = logits(edits.model, rows)
    torch.testing.assert_close(found[0], base)
    torch.testing.assert_close(found[1], wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_memory_of_a_training_step_is_that_of_the_upper_bound(dtype):
    base = build(Shape(layers=4, hidden=512, heads=8, dtype=dtype, device="cuda"))
    ids = random_ids(1000, 4, 128, GPU)
    peaks = []
    for method in (upper_bound, edited):
        step = training_step(method(base), ids)
        step()
        peaks.append(peak_of_tensors(step, GPU))
    assert peaks[1] <= 1.02 * peaks[0]


def test_the_bench_runs_on_a_gpu():
    shape = Shape(layers=2, hidden=64, heads=4, batch=2, tokens=8, dtype="bfloat16", device="cuda")
    cost = measure_cost(shape, methods=["edited"], repeats=2, progress=False)
    assert cost.machine["device"] == torch.cuda.get_device_name()
    assert all(row["value"] > 0 for row in cost.rows if not row["work"].startswith("operators"))
