"""Engines in several processes, and with speculative decoding: the tokens of transformers with the same edits."""

import pytest
from conftest import answers, running
from tiny_models import PROMPT, generate, save_edits, save_model
from transformers import AutoModelForCausalLM

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
WAYS = {
    "tensor parallel": {"tensor_parallel_size": 2},
    "n-gram speculation": {"speculative_config": NGRAM},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_edits_gets_the_tokens_of_transformers(way, tmp_path, monkeypatch):
    save_model("llama", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    save_edits(model, tmp_path / "edits", ["a", "b"])
    if "parallel" in way:
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    edits = [None, "a", "b", "a"]
    prompts = [PROMPT, PROMPT, PROMPT, PROMPT * 3]
    wanted = [generate(model, p, e and tmp_path / "edits" / e, tokens=16) for p, e in zip(prompts, edits, strict=True)]
    with running(tmp_path / "model", tmp_path / "edits", **WAYS[way]) as llm:
        assert answers(llm, prompts, edits, tokens=16) == wanted
