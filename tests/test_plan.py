"""``headedit plan``: what is told without weights against torch's own account of a step, and the commands' words."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import LlamaConfig, Olmo2Config, PreTrainedModel

import headedit
from headedit import EditConfig, HeadEditError
from headedit.bench.cost.memory import peak_of_tensors
from headedit.cli.main import main
from headedit.data.losses import WithoutLogits, is_large
from headedit.hf.output_head import output_head
from headedit.training.loop.token_loss import token_loss
from headedit.training.memory_plan import Plan, Planner, Setup, advise, estimate
from headedit.training.memory_plan.memory import GIB, read_memory, show
from headedit.training.memory_plan.planner import UNCERTAINTY
from headedit.training.memory_plan.skeleton import Skeleton

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 500}
SIZES = {
    "gpt2": {"n_embd": 64, "n_layer": 4, "vocab_size": 500},
    "gemma2": {**WIDE, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mixtral": {**WIDE, "intermediate_size": 96},
}
L8 = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TEST = {"dtype": "float32", "device": "cpu", "tokens": 48}


def sized(model_type: str) -> PreTrainedModel:
    return tiny_model(model_type, **SIZES.get(model_type, WIDE)).train()


def measured(model: PreTrainedModel, setup: Setup) -> int:
    """The most that torch's allocator holds in a step beside weights, edits and their gradients, in bytes."""
    edits = headedit.attach(model)
    for parameter in edits.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if setup.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    ids = torch.randint(3, 100, (setup.batch_size, setup.tokens))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0

    step = partial(loss_of_the_trainer, model, ids, mask if setup.batch_size > 1 else None)
    step().backward()
    return peak_of_tensors(lambda: step().backward(), torch.device("cpu"))


def measured_validation(model: PreTrainedModel, rows: int, setup: Setup) -> int:
    """The most that torch's allocator holds in a pass of validation, in bytes."""
    if not hasattr(model, "headedit"):
        headedit.attach(model)
    ids = torch.randint(3, 100, (rows, setup.tokens))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    model.eval()
    with torch.no_grad():
        loss_of_the_trainer(model, ids, mask)
        return peak_of_tensors(lambda: loss_of_the_trainer(model, ids, mask), torch.device("cpu"))


def loss_of_the_trainer(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The loss as the trainer computes it, with a label for every token."""
    called = WithoutLogits(model, output_head(model)) if is_large(ids, model.config.vocab_size) else model
    return token_loss(called(input_ids=ids, attention_mask=mask, use_cache=False), ids)


def told_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints, on one line and without the table's frame."""
    with pytest.raises(SystemExit, match="0"):
        main(["plan", *arguments])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def of_step(plan: Plan) -> int:
    return plan.saved + plan.working


@pytest.mark.parametrize(("batch_size", "checkpointing"), [(1, False), (3, True)])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "gemma2", "mixtral", "falcon"])
def test_the_planned_memory_of_a_step_is_what_torch_measures(
    model_type: str, batch_size: int, checkpointing: bool
) -> None:
    model = sized(model_type)
    setup = Setup(batch_size=batch_size, checkpointing=checkpointing, **TEST)
    told = of_step(estimate(model.config, setup))
    assert told == pytest.approx(measured(model, setup), rel=UNCERTAINTY)


@pytest.mark.parametrize(("batch_size", "checkpointing"), [(4, False), (1, True)])
def test_the_planned_memory_with_a_large_vocabulary_is_that_of_one_chunk_of_logits(
    batch_size: int, checkpointing: bool
) -> None:
    model = tiny_model("llama", **{**WIDE, "vocab_size": 100_000}).train()
    setup = Setup(batch_size=batch_size, checkpointing=checkpointing, **{**TEST, "tokens": 256})
    plan = estimate(model.config, setup)
    assert of_step(plan) == pytest.approx(measured(model, setup), rel=0.03)
    assert of_step(plan) < 3.5 * 2**24 * 4 < batch_size * 256 * 100_000 * 4 * 3
    assert plan.validation == pytest.approx(measured_validation(model, setup.in_validation, setup), rel=0.03)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_the_planned_memory_of_validation_is_what_torch_measures(model_type: str) -> None:
    model = sized(model_type)
    setup = Setup(batch_size=2, **TEST)
    assert setup.in_validation == 8
    assert estimate(model.config, setup).validation == pytest.approx(
        measured_validation(model, 8, setup), rel=UNCERTAINTY
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_validation_takes_no_more_memory_than_training(checkpointing: bool) -> None:
    plan = estimate(LlamaConfig(**L8), Setup(checkpointing=checkpointing))
    assert 0 < plan.validation < of_step(plan)
    large = estimate(LlamaConfig(**L8), Setup(checkpointing=checkpointing, eval_batch_size=256))
    assert large.total - plan.total == large.validation - of_step(plan) > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_planned_memory_of_each_attention_is_what_torch_measures(attention: str) -> None:
    model = sized("llama")
    model.set_attn_implementation(attention)
    setup = Setup(batch_size=2, attention=attention, **{**TEST, "tokens": 200})
    assert of_step(estimate(model.config, setup)) == pytest.approx(measured(model, setup), rel=0.03)


@pytest.mark.parametrize(
    ("model_type", "edits", "checkpointing"),
    [
        ("llama", EditConfig(), True),
        ("llama", EditConfig(layers="3:"), False),
        ("gpt2", EditConfig(gates="shared"), False),
        ("gemma2", EditConfig(), True),
        ("qwen3_moe", EditConfig(), False),
        ("falcon", EditConfig(), False),
    ],
)
def test_a_short_model_gives_the_same_plan_as_the_whole_one(
    model_type: str, edits: EditConfig, checkpointing: bool
) -> None:
    changes = {
        "gpt2": {"n_layer": 8},
        "gemma2": {"num_hidden_layers": 12, "layer_types": ["sliding_attention", "full_attention"] * 6},
    }
    model = tiny_model(model_type, **{"num_hidden_layers": 8, **changes.get(model_type, {})})
    setup = Setup(checkpointing=checkpointing, **TEST)
    short, whole = (Planner(copy.deepcopy(model.config), edits, whole=whole) for whole in (False, True))
    told, whole_told = short.plan(setup), whole.plan(setup)
    assert (of_step(told), told.saved) == (of_step(whole_told), whole_told.saved)


def test_the_planner_runs_few_layers_where_many_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []
    from headedit.training.memory_plan import planner

    trace = planner.trace_step
    monkeypatch.setattr(planner, "trace_step", lambda s, setup: run.append(len(s.layers)) or trace(s, setup))
    estimate(LlamaConfig(**L8), Setup())
    assert run == [3, 4]


def test_the_plan_of_an_8b_model_has_the_expected_bytes() -> None:
    plan = estimate(LlamaConfig(**L8), Setup(batch_size=4, tokens=2048, checkpointing=True))
    assert plan.weights == 16_060_522_496  # 8,030,261,248 parameters of two bytes
    assert plan.parameters == 32 * 32 * (2 * 128 + 2)
    assert (plan.edits, plan.gradients, plan.optimizer) == tuple(4 * plan.parameters * n for n in (1, 1, 2))
    hidden = 4 * 2048 * 4096 * 2  # of each layer, and of labelled tokens; the last norm saves it in float32
    assert plan.saved == pytest.approx(32 * hidden + hidden + 2 * hidden, rel=0.05)


def test_4_bit_weights_take_half_a_byte_and_their_scales() -> None:
    config = LlamaConfig(**L8)
    linear = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14_336)
    rest = 8_030_261_248 - linear
    plan = estimate(config, Setup(quantization="4bit", batch_size=1, tokens=64))
    assert plan.weights == pytest.approx(linear * (0.5 + 1 / 64 + 4 / 64 / 256) + 2 * rest, rel=1e-4)
    plan = estimate(config, Setup(quantization="8bit", batch_size=1, tokens=64))
    assert plan.weights == pytest.approx(linear + 2 * rest, rel=1e-3)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_weights_are_those_of_bitsandbytes(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from headedit.hf.loading import load_model

    base = tiny_model("llama", **WIDE)
    base.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype="bfloat16", device="cpu", quantization=quantization)
    setup = Setup(quantization=quantization, batch_size=3, **{**TEST, "dtype": "bfloat16"})
    plan = estimate(base.config, setup)
    held = list(model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            held += [state.absmax, state.code, state.state2.absmax, state.state2.code]
        scales = getattr(getattr(module, "weight", None), "SCB", None)
        held += [] if scales is None else [scales]
    assert plan.weights == pytest.approx(sum(t.numel() * t.element_size() for t in held), rel=0.02)


def test_layers_before_the_first_edit_save_nothing() -> None:
    config = tiny_model("llama", num_hidden_layers=8).config
    late, all_of_them = (estimate(config, Setup(**TEST), edits=EditConfig(layers=la)) for la in ("6:", None))
    assert late.saved < 0.5 * all_of_them.saved
    assert late.parameters == all_of_them.parameters // 4


def test_devices_share_whole_layers_or_parts_of_every_weight() -> None:
    config = LlamaConfig(**{**L8, "num_hidden_layers": 8})
    planner = Planner(config)
    setup = Setup(batch_size=1, tokens=256)
    one = planner.plan(setup)
    layers = planner.plan(Setup(batch_size=1, tokens=256, devices=4))
    assert sum(share.base for share in layers.shares) == one.shares[0].base
    assert sum(share.saved for share in layers.shares) == pytest.approx(one.saved, rel=0.01)
    assert max(share.base for share in layers.shares) < 0.4 * one.weights
    fsdp = planner.plan(Setup(batch_size=1, tokens=256, devices=4, split="fsdp"))
    whole_logits = 256 * 128_256 * 4
    assert [share.saved for share in fsdp.shares] == [pytest.approx(one.saved + whole_logits, rel=0.02)] * 4
    assert one.weights / 4 < fsdp.shares[0].base < one.weights


def test_the_advised_changes_fit() -> None:
    planner = Planner(Olmo2Config(**{**L8, "num_hidden_layers": 2, "num_key_value_heads": 32}))
    plan = planner.plan(Setup(batch_size=8, tokens=2048))
    enough = plan.total * 2
    assert plan.verdict(enough) == "fits"
    assert advise(planner, plan, enough) == []
    assert plan.verdict(plan.total + 1) == "tight"
    memory = 2 * plan.weights
    assert plan.verdict(memory) == "does not fit"
    changes = {change.what: change.plan for change in advise(planner, plan, memory)}
    assert all(change.total < plan.total for change in changes.values())
    smaller = changes["batch size 2 with 4 times the accumulation"]
    assert smaller.setup.batch_size == 2
    assert smaller.verdict(memory) == "fits"
    assert planner.plan(Setup(batch_size=4, tokens=2048)).verdict(memory) != "fits"
    joined = advise(planner, plan, plan.weights // 2)[-1]
    assert " + " in joined.what
    assert joined.plan.total < min(change.total for change in changes.values())


def test_nothing_is_advised_that_the_device_or_the_dtype_cannot_have() -> None:
    planner = Planner(LlamaConfig(**WIDE))

    def advised(**changes: Any) -> str:
        plan = planner.plan(Setup(batch_size=1, tokens=128, attention="eager", **changes))
        return "; ".join(change.what for change in advise(planner, plan, 1))

    usual, exact, on_cpu = advised(), advised(dtype="float32"), advised(device="cpu")
    assert "FlashAttention" in usual
    assert "devices" in usual
    assert "FlashAttention" not in exact
    assert "devices" in exact
    assert "FlashAttention" not in on_cpu
    assert "devices" not in on_cpu


def test_planning_creates_no_weight() -> None:
    skeleton = Skeleton(LlamaConfig(**L8), Setup(), EditConfig(), None)
    assert all(tensor.is_meta for tensor in (*skeleton.base(), *skeleton.trained()))


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("512", 512), ("1.5kib", 1536)])
def test_a_size_with_a_unit_is_read_as_bytes(text: str, size: int) -> None:
    assert read_memory(text) == size


def test_bytes_are_shown_with_a_unit() -> None:
    assert [show(n) for n in (5, 2048, 3.5 * GIB, 2048 * GIB)] == ["5 B", "2.0 KiB", "3.5 GiB", "2048.0 GiB"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setup(batch_size=0), "batch_size: found 0, expected 1 or more"),
        (lambda: Setup(attention="flush"), "attention: found 'flush'"),
        (lambda: read_memory("24 gigs"), "--memory: found '24 gigs', expected a number with a unit"),
        (
            lambda: estimate(tiny_model("gemma2").config, Setup(attention="sdpa", **TEST)),
            "transformers cannot build a causal LM from this Gemma2Config",
        ),
    ],
)
def test_a_mistake_in_the_setup_is_named(make: object, message: str) -> None:
    with pytest.raises(HeadEditError, match=message.replace("(", r"\(")):
        make()  # type: ignore[operator]


def test_the_command_shows_the_plan_of_a_run_and_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LlamaConfig(**{**L8, "num_hidden_layers": 2}, dtype="bfloat16").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = tmp_path / "run.yaml"
    run.write_text(
        f"model: {{name: '{tmp_path}', device: cuda}}\n"
        "data: {train: none.jsonl, max_length: 1024}\n"
        "recipe: {name: jola}\n"
        "training: {per_device_train_batch_size: 16}\n"
    )
    told = told_by(capsys, str(run), "--memory", "8GiB")
    assert "16 x 1,024 tokens, bfloat16, without gradient checkpointing" in told
    assert "weights, bfloat16" in told
    assert "does not fit" in told
    assert "times the accumulation" in told
    told = told_by(capsys, str(run), "--memory", "80GiB", "--batch-size", "2", "--checkpointing")
    assert "2 x 1,024 tokens, bfloat16, with gradient checkpointing" in told
    assert " fits: " in told
    told = told_by(capsys, "--model", str(tmp_path), "--max-length", "64", "--device", "cpu", "--memory", "1TB")
    assert "8 x 64 tokens" in told


def test_the_command_refuses_to_plan_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan"])
    assert "Give a run's file or name" in capsys.readouterr().err
