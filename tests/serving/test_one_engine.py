"""One compiled engine of two slots: many edits, a shared prefix, prompts in chunks, preemption, loading."""

import pytest
import torch
from conftest import answers, running
from tiny_models import generate, save_edits, save_model
from transformers import AutoModelForCausalLM

from headedit import HeadEditError
from headedit.serving.vllm import names
from headedit.serving.vllm.live import load_edit, served_edits, unload_edit

PREFIX = [3 + (7 * i) % 120 for i in range(64)]
PROMPTS = [[*PREFIX, 5 + i, 9, 40 + i] for i in range(8)]
NAMES = ["a", "b", "c", "d", "e"]
KINDS = ["prompt", "generated", "last_prompt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    save_model("llama", folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    save_edits(model, folder / "edits", NAMES)
    for kind in KINDS:
        save_edits(model, folder / "edits", [kind], positions=kind)
    save_edits(model, folder / "more", ["x", "f"])
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def llm(folder):
    options = {"block_size": 32, "max_num_batched_tokens": 48, "num_gpu_blocks_override": 14}
    with running(folder / "model", folder / "edits", slots=2, disable_log_stats=False, **options) as llm:
        yield llm


@pytest.fixture
def fresh(llm):
    llm.reset_prefix_cache()
    return llm


def expected(model, folder, prompts, edits, tokens=8):
    return [generate(model, p, e and folder / "edits" / e, tokens=tokens) for p, e in zip(prompts, edits, strict=True)]


def test_more_edits_than_slots_give_what_each_gives_alone(fresh, model, folder):
    edits = ["a", "b", "c", None, "d", "e", "a", None]
    assert answers(fresh, PROMPTS, edits) == expected(model, folder, PROMPTS, edits)


def test_edits_of_some_tokens_alone_act_on_these(fresh, model, folder):
    edits = [*KINDS, None]
    prompts = [PROMPTS[0]] * 4
    wanted = expected(model, folder, prompts, edits)
    assert len({tuple(tokens) for tokens in wanted}) == 4
    assert answers(fresh, prompts, edits) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_of_a_prompt_is_not_used_where_its_end_is_elsewhere(kind, fresh, model, folder):
    first = answers(fresh, [PREFIX[:50]], [kind], tokens=20)[0]
    longer = [*PREFIX[:50], *first[:15], 8]
    assert answers(fresh, [longer], [kind]) == expected(model, folder, [longer], [kind])


def hits(llm):
    return next(m.value for m in llm.get_metrics() if m.name == "vllm:prefix_cache_hits")


def one_after_the_other(llm):
    edits = ["a", "b", None, "a", "a"]
    strengths = [None, None, None, 0.25, None]
    return [
        answers(llm, [PROMPTS[0]], [edit], strengths=[strength])[0]
        for edit, strength in zip(edits, strengths, strict=True)
    ]


def test_the_prefix_cache_of_one_edit_is_never_used_for_another(fresh, model, folder):
    before = hits(fresh)
    found = one_after_the_other(fresh)
    edit = folder / "edits" / "a"
    assert found[:3] == expected(model, folder, [PROMPTS[0]] * 3, ["a", "b", None])
    assert found[3] == generate(model, PROMPTS[0], edit, 0.25)
    assert found[4] == found[0]
    assert hits(fresh) > before  # of the last one, by the first


def test_without_its_key_the_prefix_cache_of_one_edit_is_used_for_another(fresh, monkeypatch):
    right = one_after_the_other(fresh)
    fresh.reset_prefix_cache()
    monkeypatch.setattr("vllm.v1.core.kv_cache_utils._gen_lora_extra_hash_keys", lambda request: [])
    assert one_after_the_other(fresh) != right
    monkeypatch.undo()
    fresh.reset_prefix_cache()


def test_preempted_requests_give_what_they_give_alone(fresh, model, folder):
    def preemptions():
        return next(m.value for m in fresh.get_metrics() if m.name == "vllm:num_preemptions")

    before, edits = preemptions(), ["a", "b", "a", None, "b", "generated", "a", "b"]
    prompts = [[7 + i, *prompt] for i, prompt in enumerate(PROMPTS)]
    assert answers(fresh, prompts, edits, tokens=40) == expected(model, folder, prompts, edits, tokens=40)
    assert preemptions() > before


def test_several_answers_of_a_request_have_its_edit(fresh, model, folder):
    found = answers(fresh, PROMPTS[:2], ["a", "b"], n=3)
    for each, wanted in zip(found, expected(model, folder, PROMPTS[:2], ["a", "b"]), strict=True):
        assert each == [wanted] * 3


def test_edits_are_loaded_and_unloaded_without_a_new_compilation(fresh, model, folder):
    compiled = dict(torch._dynamo.utils.counters["stats"])
    load_edit(fresh, "x", folder / "more" / "x")
    first = answers(fresh, PROMPTS[:1], ["x"])
    assert first == [generate(model, PROMPTS[0], folder / "more" / "x")]
    load_edit(fresh, "x", folder / "more" / "f")  # another one by the same name
    assert answers(fresh, PROMPTS[:1], ["x"]) == [generate(model, PROMPTS[0], folder / "more" / "f")] != first
    unload_edit(fresh, "x")
    assert "x" not in served_edits(fresh)
    with pytest.raises(HeadEditError, match="No edit is called 'x'"):
        answers(fresh, PROMPTS[:1], ["x"])
    assert dict(torch._dynamo.utils.counters["stats"]) == compiled
    assert answers(fresh, PROMPTS[:1], ["a"]) == expected(model, folder, PROMPTS[:1], ["a"])


WRONG = {
    "a name that is not there": ({"headedit": "aa"}, "No edit is called 'aa'"),
    "a misspelled argument": ({"headedit": "a", "headedit_strenght": 1}, "Did you mean 'headedit_strength'"),
    "a strength that is none": ({"headedit": "a", "headedit_strength": "much"}, "expected a number"),
    "a strength without an edit": ({"headedit_strength": 0.5}, "no edit"),
    "a name that is no text": ({"headedit": 3}, "expected the name"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_refused_by_itself(what, llm):
    from vllm import SamplingParams

    extra, message = WRONG[what]
    with pytest.raises(HeadEditError, match=message):
        llm.generate([{"prompt_token_ids": [5]}], SamplingParams(extra_args=extra), use_tqdm=False)
    assert len(answers(llm, [[5, 6]], [None])[0]) == 8


def test_a_name_that_vllm_lacks_is_said_with_the_versions_that_were_tried():
    with pytest.raises(HeadEditError, match=r"no .*InputProcessor.process_prompts.*0\.32\.0"):
        names.find(names.INPUTS._replace(function="process_prompts"))
    with pytest.raises(HeadEditError, match="no parameter lora of"):
        names.find(names.INPUTS._replace(parameters=("lora",)))
