"""Every row of the table of architectures: vLLM gives the tokens that transformers gives with the same edits."""

import pytest
from conftest import answers, running
from tiny_models import CONFIGS, PROMPT, generate, save_edits, save_model
from transformers import AutoModelForCausalLM

from headedit.serving.vllm.table import ARCHITECTURES

CHOICES = [(None, None), ("a", None), ("b", None), ("a", 0.5)]
MLP = [name for name in CONFIGS if name not in ("mixtral", "qwen3_moe")]


def saved(model_type, folder, sites):
    save_model(model_type, folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    grouped = {"sites": sites, "mlp_groups": 4} if "mlp" in sites else {}
    save_edits(model, folder / "edits", ["a", "b"], **grouped)
    return model


@pytest.mark.parametrize("model_type", CONFIGS)
def test_four_requests_of_a_batch_get_the_tokens_of_transformers(model_type, tmp_path):
    sites = ["attention", "mlp"] if model_type in MLP else ["attention"]
    model = saved(model_type, tmp_path, sites)
    assert type(model).__name__ in ARCHITECTURES
    edits = tmp_path / "edits"
    expected = [generate(model, PROMPT, name and edits / name, strength) for name, strength in CHOICES]
    assert len({tuple(tokens) for tokens in expected}) > 2
    with running(tmp_path / "model", edits) as llm:
        names, strengths = zip(*CHOICES, strict=True)
        assert answers(llm, [PROMPT] * 4, names, strengths=strengths) == expected


def test_every_row_of_the_table_has_a_tiny_model():
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    classes = {MODEL_FOR_CAUSAL_LM_MAPPING[type(CONFIG_MAPPING[name]())].__name__ for name in CONFIGS}
    assert classes == set(ARCHITECTURES)
