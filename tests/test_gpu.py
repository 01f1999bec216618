"""On a GPU: the same as on the CPU, in 16 bits too, with every kernel, without making the host wait.

Skipped without a GPU. ``HEADEDIT_TEST_DEVICE=cpu`` tries out there what does not need one.
"""

import contextlib
import copy
import importlib.util
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DynamicCache,
    Mamba2Config,
    Mamba2ForCausalLM,
    StaticCache,
)
from transformers.utils import is_flash_attn_2_available

import headedit
from headedit import EditConfig, HeadEditError
from headedit.bench.cost import Shape, measure_cost
from headedit.bench.cost.memory import peak_of_tensors
from headedit.bench.cost.methods import edited as prepared
from headedit.bench.cost.methods import upper_bound
from headedit.bench.cost.shapes import build, random_ids
from headedit.bench.cost.workloads import training_step

DEVICE = torch.device(os.environ.get("HEADEDIT_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no GPU")
needs_a_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COMPILED = {"mode": "reduce-overhead"} if ON_GPU else {"backend": "aot_eager"}
FUSED_MAMBA = [name for name in ("mamba_ssm", "causal_conv1d") if importlib.util.find_spec(name)]


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def edited(device=DEVICE, dtype=torch.float32, weights=None, **changes):
    """Edits that matter on a tiny Llama, the same on every device.

    Args:
        device, dtype: of the model.
        weights: a dtype to which the weights are rounded first.
    """
    model = tiny_model("llama", **changes)
    edits = headedit.attach(model.to(weights or dtype).to(device, dtype))
    randomise(edits)
    return edits


def units_off(found, wanted):
    """The largest difference from float32, in units in the last place of the token's largest logit, in 16 bits."""
    wanted = wanted.cpu().double()
    unit = torch.finfo(found.dtype).eps * 2 ** wanted.abs().amax(-1, keepdim=True).log2().floor()
    return float(((found.cpu().double() - wanted).abs() / unit).max())


def check_close(found, wanted):
    torch.testing.assert_close(found.cpu(), wanted.cpu(), atol=1e-5, rtol=1e-5)


def check_parity(compute, dtype, compute_on_cpu=None):
    """Logits on the device are those of a float32 model on the CPU with the same weights.

    In float32 within 1e-5. In 16 bits the model itself rounds at every layer and is off by some units; edits may add
    two units to that.

    Args:
        compute: takes a model and computes its logits.
        dtype: of the model on the device.
        compute_on_cpu: the same for the model on the CPU, where it is another computation.
    """
    compute_on_cpu = compute_on_cpu or compute
    on_cpu, on_device = edited(torch.device("cpu"), weights=dtype), edited(dtype=dtype)
    with torch.no_grad():
        wanted, found = compute_on_cpu(on_cpu.model), compute(on_device.model)
        assert (found.dtype, wanted.dtype) == (dtype, torch.float32)
        if dtype == torch.float32:
            check_close(found, wanted)
            return
        with on_cpu.disable_adapter(), on_device.disable_adapter():
            off_without_edits = units_off(compute(on_device.model), compute_on_cpu(on_cpu.model))
    assert units_off(found, wanted) <= off_without_edits + 2
    assert off_without_edits < 8  # so that the bound is one


def decode(call, model, ids, cache):
    """The logits of all tokens, three of them at once and the others one by one by ``call``."""
    with torch.no_grad():
        found = [model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True).logits]
        for token in ids[:, 3:].split(1, dim=1):
            torch.compiler.cudagraph_mark_step_begin()
            out = call(input_ids=token.contiguous(), past_key_values=cache, use_cache=True)
            found.append(out.logits.clone())  # the next step writes over the memory of a CUDA graph
    return torch.cat(found, dim=1)


def cache_of(kind, model):
    return DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_on_a_gpu_are_those_of_the_cpu(ids, dtype):
    check_parity(lambda model: logits(model, ids.to(model.device)), dtype)
    edits, rows = edited(dtype=dtype), ids.to(DEVICE)
    assert {p.device.type for p in edits.module.parameters()} == {DEVICE.type}
    assert {p.dtype for p in edits.module.parameters()} == {torch.float32}
    found = logits(edits.model, rows)
    with edits.disable_adapter():
        base = logits(edits.model, rows)
    assert not torch.allclose(base, found, atol=1e-2)
    edits.detach()
    assert torch.equal(logits(edits.model, rows), base)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_an_edit_in_16_bits_is_rounded_once(dtype):
    (edit, _) = edited(dtype=dtype).module
    z = torch.randn(2, 7, 64).to(DEVICE, dtype)
    with torch.no_grad():
        scale, offset = (part.double() for part in edit.scale_and_offset())
        found = edit(z)
    assert found.dtype == dtype
    half_a_unit = 0.5 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), z.double() * scale + offset, rtol=1.01 * half_a_unit, atol=1e-6)
    assert torch.equal(found, edit(z))  # rounded as it is written, and after it with gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_edits_are_the_same_under_each_attention(ids, attention, dtype):
    if attention == "flash_attention_2" and not (ON_GPU and is_flash_attn_2_available()):
        pytest.skip("flash_attention_2: needs a GPU and the package flash-attn")
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def compute(model):
        if model.device.type == DEVICE.type and model.dtype == dtype:
            model.set_attn_implementation(attention)
        found = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        return found[mask.bool().to(model.device)]

    check_parity(compute, dtype)


@pytest.mark.parametrize("kernel", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_edits_are_the_same_with_each_kernel_of_sdpa(ids, kernel, dtype):
    if not ON_GPU and kernel in ("EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        pytest.skip(f"{kernel} of SDPA: needs a GPU")

    def compute(model):
        if model.device.type != DEVICE.type or model.dtype != dtype:
            return logits(model, ids)
        model.set_attn_implementation("sdpa")
        try:
            with sdpa_kernel(getattr(SDPBackend, kernel)):
                return logits(model, ids.to(model.device))
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            return pytest.skip(f"{kernel} of SDPA: unavailable for heads of width 16 on this device")

    check_parity(compute, dtype)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cached_decoding_gives_the_logits_of_one_pass(ids, kind, dtype):
    def step_by_step(model):
        return decode(model, model, ids.to(DEVICE), cache_of(kind, model))

    check_parity(step_by_step, dtype, lambda model: logits(model, ids))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_gradients_on_a_gpu_are_those_of_the_cpu(ids, dtype, tolerance):
    gradients = []
    for device in (torch.device("cpu"), DEVICE):
        edits = edited(device, dtype)
        rows = ids.to(device)
        edits.model(input_ids=rows, labels=rows).loss.backward()  # in eval mode, so that gates are not drawn
        gradients.append([p.grad.cpu() for p in edits.module.parameters()])
    assert len(gradients[0]) > 0
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_gradients_are_the_same_with_checkpointing(ids, dtype):
    edits = edited(dtype=dtype)
    rows, gradients = ids.to(DEVICE), []
    edits.model.train()
    for checkpointing in (False, True):
        if checkpointing:
            edits.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)  # the gates that are drawn
        edits.module.zero_grad()
        edits.model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in edits.module.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@needs_a_gpu
@pytest.mark.parametrize("training", [True, False])
def test_an_edit_does_not_make_the_host_wait(training):
    edits = edited()
    edits.model.train(training)
    z = torch.randn(2, 7, 64, device=DEVICE)
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


@needs_a_gpu
def test_the_host_waits_no_more_often_in_a_pass_with_edits(ids):
    edits, rows = edited(), ids.to(DEVICE)

    def waits():
        logits(edits.model, rows)  # fills what is kept
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                logits(edits.model, rows)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return sum("synchronizing" in str(warning.message) for warning in seen)

    with_edits = waits()
    edits.detach()
    assert with_edits <= waits()


@needs_a_gpu
def test_a_captured_cuda_graph_sees_parameters_that_change():
    edits = edited()
    edits.module.eval()
    (edit, _) = edits.module
    z = torch.randn(2, 7, 64, device=DEVICE)
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_routed_rows_on_a_gpu_are_those_of_their_adapters(ids, dtype):
    edits = edited(dtype=dtype)
    edits.add_adapter("b")
    edits.set_adapter("b")
    randomise(edits, 1)
    rows = ids.to(DEVICE)
    wanted = logits(edits.model, rows)[1]
    with edits.disable_adapter():
        base = logits(edits.model, rows)[0]
    with edits.route([None, "b"]):
        found = logits(edits.model, rows)
    torch.testing.assert_close(found[0], base)
    torch.testing.assert_close(found[1], wanted)
    assert not torch.allclose(found[1], logits(edits.model, rows)[0], atol=1e-2)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_routed_rows_are_decoded_to_the_logits_of_one_pass(ids, kind):
    edits, rows = edited(), ids.to(DEVICE)
    with edits.route([None, edits.active_adapter]):
        wanted = logits(edits.model, rows)
        check_close(decode(edits.model, edits.model, rows, cache_of(kind, edits.model)), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hardening_changes_no_bit_on_a_gpu_and_merging_is_undone_to_the_bit(ids, dtype):
    edits, rows = edited(dtype=dtype), ids.to(DEVICE)
    wanted = logits(edits.model, rows)
    edits.harden()
    assert torch.equal(logits(edits.model, rows), wanted)
    edits.merge_adapter()
    merged = logits(edits.model, rows)
    if dtype == torch.float32:  # in 16 bits the merged weights are rounded
        torch.testing.assert_close(merged, wanted, atol=1e-4, rtol=1e-4)
    edits.unmerge_adapter()
    assert torch.equal(logits(edits.model, rows), wanted)


def test_passes_of_two_threads_on_two_streams_do_not_mix(ids):
    edits, rows = edited(), ids.to(DEVICE)
    names = [edits.active_adapter, "b"]
    edits.add_adapter("b")
    edits.set_adapter("b")
    randomise(edits, 1)
    wanted = []
    for name in names:
        edits.set_adapter(name)
        wanted.append(logits(edits.model, rows))
    assert not torch.allclose(*wanted, atol=1e-2)
    barrier = threading.Barrier(2)

    def passes(name):
        stream = torch.cuda.Stream() if ON_GPU else None
        if stream is not None:
            stream.wait_stream(torch.cuda.default_stream())
        barrier.wait(60)
        with torch.cuda.stream(stream) if ON_GPU else contextlib.nullcontext(), edits.route([name, name]):
            found = [logits(edits.model, rows) for _ in range(10)]
        if stream is not None:
            stream.synchronize()
        return found

    with ThreadPoolExecutor(2) as pool:
        for found, expected in zip(pool.map(passes, names), wanted, strict=True):
            for one in found:
                check_close(one, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_edited_trained_and_restored_to_the_bit(bits, ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    config = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16} if bits == 4 else {"load_in_8bit": True}
    options = {"device_map": {"": DEVICE.index or 0}} if ON_GPU else {}
    quantization = BitsAndBytesConfig(**config)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.bfloat16, **options
    )
    edits, rows = headedit.attach(model), ids.to(DEVICE)
    randomise(edits)
    model.train()  # before any inference, for which bitsandbytes repacks 4-bit weights on some CPUs
    model(input_ids=rows, labels=rows).loss.backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in edits.vector_parameters())
    model.eval()
    wanted = logits(model, rows)
    with edits.disable_adapter():
        base = logits(model, rows)
    assert not torch.allclose(wanted, base, atol=1e-2)
    edits.save_pretrained(tmp_path / "edits")
    edits.detach()
    assert torch.equal(logits(model, rows), base)
    headedit.load(model, tmp_path / "edits")
    assert torch.equal(logits(model, rows), wanted)


def mamba2(device):
    config = Mamba2Config(
        vocab_size=128,
        hidden_size=64,
        num_heads=8,
        head_dim=16,
        state_size=16,
        n_groups=1,
        chunk_size=64,
        num_hidden_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    edits = headedit.attach(Mamba2ForCausalLM(config).eval().to(device), config=EditConfig(sites=["linear"]))
    randomise(edits)
    return edits


def test_edits_of_mamba_2_are_those_of_the_cpu(ids):
    wanted = logits(mamba2(torch.device("cpu")).model, ids)
    found = logits(mamba2(DEVICE).model, ids.to(DEVICE)).cpu()
    tolerance = 1e-2 if ON_GPU and FUSED_MAMBA else 1e-4  # Triton's products are in TF32
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@needs_a_gpu
@pytest.mark.skipif(len(FUSED_MAMBA) < 2, reason="needs mamba-ssm and causal-conv1d")
def test_the_fused_kernel_of_mamba_2_that_passes_its_heads_by_is_refused_in_training(ids):
    model = mamba2(DEVICE).model.train()
    with pytest.raises(HeadEditError, match="mamba_split_conv1d_scan_combined"):
        model(input_ids=ids.to(DEVICE))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_memory_of_a_training_step_is_that_of_the_upper_bound(dtype):
    base = build(Shape(layers=4, hidden=512 if ON_GPU else 128, heads=8, dtype=dtype, device=str(DEVICE)))
    ids = random_ids(1000, 4, 128, DEVICE)
    peaks = []
    for method in (upper_bound, prepared):
        step = training_step(method(base), ids)
        step()
        peaks.append(peak_of_tensors(step, DEVICE))
    assert peaks[1] <= 1.02 * peaks[0]


def test_the_bench_runs_on_a_gpu():
    shape = Shape(layers=2, hidden=64, heads=4, batch=2, tokens=8, dtype="bfloat16", device=str(DEVICE))
    cost = measure_cost(shape, methods=["edited"], repeats=2, progress=False)
    assert cost.machine["device"] == (torch.cuda.get_device_name() if ON_GPU else "cpu")
    assert all(row["value"] > 0 for row in cost.rows if not row["workload"].startswith(("operators", "resident")))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_with_cuda_graphs_follows_the_edits(ids):
    base = logits(tiny_model("llama"), ids)
    edits, rows = edited(), ids.to(DEVICE)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(edits.model, **COMPILED)

    def found():
        for _ in range(3):  # a graph is warmed up, captured and replayed
            torch.compiler.cudagraph_mark_step_begin()
            last = logits(compiled, rows).clone()
        return last

    before = logits(edits.model, rows)
    check_close(found(), before)
    edits.set_head(1, 2, scale=0.0)
    changed = logits(edits.model, rows)
    assert not torch.allclose(changed, before, atol=1e-3)
    check_close(found(), changed)
    with edits.disable_adapter():
        check_close(found(), base)
    check_close(found(), changed)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_compiled_decoding_with_a_static_cache_gives_the_logits_of_one_pass(ids, dtype):
    edits, rows = edited(dtype=dtype), ids.to(DEVICE)
    compiled = torch.compile(edits.model, **COMPILED)
    found = decode(compiled, edits.model, rows, cache_of("static", edits.model))
    if dtype == torch.float32:
        check_close(found, logits(edits.model, rows))
        return
    exact = logits(edited(torch.device("cpu"), weights=dtype).model, ids)
    assert units_off(found, exact) <= units_off(logits(edits.model, rows), exact) + 2


@pytest.mark.usefixtures("fresh_compiler")
def test_generate_with_a_static_cache_that_a_gpu_compiles_gives_the_same_tokens(ids):
    edits, rows = edited(), ids.to(DEVICE)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    wanted = edits.model.generate(rows, **options)
    assert torch.equal(edits.model.generate(rows, cache_implementation="static", **options), wanted)
