"""``headedit plan`` for every model type that ``headedit.attach`` takes, against the tiny model itself."""

import copy
from typing import Any

import pytest
from image_text import IMAGE_TEXT
from torch import nn
from transformers import CONFIG_MAPPING, BartConfig
from zoo import WITH_HEADS, ZOO, zoo_model

import headedit
from headedit import HeadEditError
from headedit.hf.building import build_model
from headedit.hf.config import text_config
from headedit.specs.tiny import tiny_config
from headedit.training.memory_plan import Planner, Setup, estimate

SETUP = Setup(batch_size=1, tokens=8, dtype="float32", device="cpu")

UNTRAINABLE = {
    "reformer": "its reversible layers pass no gradient on where the embeddings are frozen",
}
"""Types of which transformers 5.23 itself cannot run a training step with a frozen base."""


def counted(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's weights, and numbers in the edits that are attached to it."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights, sum(p.numel() for p in headedit.attach(model).module.parameters())


@pytest.mark.parametrize("model_type", sorted(set(WITH_HEADS) - set(UNTRAINABLE)))
def test_the_plan_of_a_type_has_the_edits_of_its_heads(model_type: str) -> None:
    plan = estimate(tiny_config(model_type), SETUP)
    assert plan.parameters == sum(2 * heads * width + 2 * heads for _, heads, width in ZOO[model_type].sites)
    assert min(plan.saved, plan.working) > 0


@pytest.mark.parametrize(
    "model_type", ["bart", "blt", "dbrx", "emu3", "gpt2", "hrm_text", "mamba2", "mllama", "musicgen", "zamba2"]
)
def test_the_plan_of_a_type_has_the_bytes_and_the_edits_of_its_model(model_type: str) -> None:
    plan = estimate(tiny_config(model_type), SETUP)
    assert (plan.weights, plan.parameters) == counted(zoo_model(model_type))


@pytest.mark.parametrize("model_type", ["evolla", "kosmos-2.5", "llava", "mistral4", "qwen2_vl"])
def test_the_plan_of_an_image_text_type_has_the_bytes_and_the_edits_of_its_model(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**copy.deepcopy(IMAGE_TEXT[model_type][0]))
    plan = estimate(config, SETUP)
    assert (plan.weights, plan.parameters) == counted(build_model(copy.deepcopy(config)))
    assert min(plan.saved, plan.working) > 0


@pytest.mark.parametrize("model_type", sorted(UNTRAINABLE))
def test_a_type_that_cannot_be_trained_is_refused_by_name(model_type: str) -> None:
    tokens = 64  # what the positions of Reformer want
    with pytest.raises(HeadEditError, match=f"{type(zoo_model(model_type)).__name__} cannot be run on 64 tokens"):
        estimate(tiny_config(model_type), Setup(batch_size=1, tokens=tokens, dtype="float32", device="cpu"))


def uneven_bart(**changes: Any) -> BartConfig:
    """More layers in the encoder than in the decoder, and heads of another number."""
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 128}
    layers = {"encoder_layers": 12, "decoder_layers": 9, "encoder_attention_heads": 2, "decoder_attention_heads": 4}
    return BartConfig(**{**sizes, **layers, **changes})


def test_the_layers_of_an_uneven_bart_are_those_of_its_decoder() -> None:
    plan = Planner(uneven_bart()).plan(Setup(batch_size=1, tokens=8, dtype="float32", device="cpu", devices=3))
    assert (plan.weights, plan.parameters) == counted(build_model(uneven_bart()))
    assert len(plan.shares) == 3
    assert sum(share.trained for share in plan.shares) == 4 * plan.edits


def test_alike_layers_of_a_decoder_with_an_encoder_take_what_all_of_them_take() -> None:
    short, whole = (Planner(uneven_bart(), whole=whole).plan(SETUP) for whole in (False, True))
    assert (short.saved, short.working) == (whole.saved, whole.working)


def test_experts_that_read_their_tokens_get_an_equal_share_of_them() -> None:
    few, many = (estimate(changed("dbrx", moe_num_experts=n), SETUP) for n in (4, 8))
    assert many.saved < 1.5 * few.saved


def changed(model_type: str, **ffn: Any) -> Any:
    config = tiny_config(model_type)
    for key, value in ffn.items():
        setattr(config.ffn_config, key, value)
    return config


@pytest.mark.parametrize("model_type", ["llama", "bart", "gemma3", "musicgen", "blt"])
def test_the_text_config_is_a_part_of_the_config_that_can_be_written_to(model_type: str) -> None:
    config = tiny_config(model_type)
    text_config(config).sentinel = 1
    assert "sentinel" in str(config.to_dict())
    model = zoo_model(model_type)
    assert text_config(model) is text_config(model.config)


def test_the_heads_of_a_whole_bart_are_those_of_its_decoder() -> None:
    from transformers import BartForConditionalGeneration

    model = BartForConditionalGeneration(uneven_bart(encoder_layers=2, decoder_layers=3))
    assert {(site.heads, site.head_dim) for site in headedit.attach(model).sites} == {(4, 8)}
