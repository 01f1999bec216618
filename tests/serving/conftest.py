"""Engines on tiny models; see ``make test-serving``, which makes the environment that they need."""

import gc
import importlib.util
import os
from contextlib import contextmanager

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)


@contextmanager
def running(model, edits, *, slots=None, **options):
    """An engine in this process, which serves edits; None for one without."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HEADEDIT_EDITS", raising=False)
        if edits is not None:
            patch.setenv("HEADEDIT_EDITS", str(edits))
        if slots is not None:
            patch.setenv("HEADEDIT_SLOTS", str(slots))
        common = {"skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 128, "max_num_seqs": 8}
        if os.environ.get("SERVING_TESTS_EAGER"):  # a quick look, without the seconds that a compilation takes
            common["enforce_eager"] = True
        llm = LLM(str(model), **{**common, **options})
        try:
            yield llm
        finally:
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()


def answers(llm, prompts, edits, *, tokens=8, n=1, strengths=None):
    """The tokens of requests in one batch; with several answers each, a list of them."""
    from vllm import SamplingParams

    strengths = [None] * len(prompts) if strengths is None else strengths
    params = []
    for edit, strength in zip(edits, strengths, strict=True):
        extra = {"headedit": edit, "headedit_strength": strength}
        given = {key: value for key, value in extra.items() if value is not None}
        params.append(
            SamplingParams(
                temperature=0 if n == 1 else 1.0,
                top_k=0 if n == 1 else 1,
                n=n,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=given or None,
            )
        )
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    found = [[list(answer.token_ids) for answer in output.outputs] for output in outputs]
    return [of[0] if n == 1 else of for of in found]
