"""Edits of prompt tokens, generated tokens or the last prompt token: the same however a model is run, or refused."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from test_adapters import with_adapters
from tiny import logits, randomise, tiny_model
from torch.nn.functional import pad
from zoo import zoo_ids, zoo_model

import headedit
from headedit import EditConfig, HeadEditError

TYPES = ["llama", "gpt2", "gemma3_text", "opt"]
KINDS = ["prompt", "generated", "last_prompt"]
PROMPTS = [4, 6]  # tokens, in a batch padded on the left to 6
NEW = 5
OPTIONS = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
UNTOLD = "It cannot be told which tokens of this pass are prompt"


def edited(model_type, positions, **config):
    model = tiny_model(model_type)
    edits = headedit.attach(model, config=EditConfig(positions=positions, **config))
    randomise(edits)
    return model, edits


def prompts():
    ids = torch.randint(3, 128, (2, 6), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    ids[0, :2] = mask[0, :2] = 0
    return ids, mask


def whole(ids):
    """What a pass over prompts and new tokens is given."""
    mask = torch.cat([prompts()[1], torch.ones(2, ids.shape[1] - 6, dtype=torch.long)], 1)
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def labels_of(ids):
    labels = ids.clone()
    labels[:, :6] = -100
    return labels


@contextmanager
def by_hand(edits, mask):
    """A context in which plain hooks edit the tokens of a mask, [batch, tokens], and the edits do nothing."""

    def hook(edit):
        scale, offset = edit.scale_and_offset()
        return lambda module, args: (torch.where(mask[..., None], args[0] * scale + offset, args[0]), *args[1:])

    hooks = [site.module.register_forward_pre_hook(hook(edit)) for site, edit in edits.module.pairs()]
    try:
        with edits.disable_adapter():
            yield
    finally:
        for handle in hooks:
            handle.remove()


def acting(positions, columns, prompt=6):
    column = torch.arange(columns)
    return {"prompt": column < prompt, "generated": column >= prompt, "last_prompt": column == prompt - 1}[positions]


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("model_type", TYPES)
def test_labels_lengths_and_plain_hooks_edit_the_same_tokens(model_type, positions):
    model, edits = edited(model_type, positions)
    ids = torch.cat([prompts()[0], torch.randint(3, 128, (2, NEW))], 1)
    with by_hand(edits, acting(positions, 6 + NEW).expand(2, -1)):
        wanted = run(model, **whole(ids))
    assert torch.allclose(run(model, **whole(ids), labels=labels_of(ids)), wanted, atol=1e-5)
    with edits.prompt_lengths(PROMPTS) as same:
        assert same is model
        by_lengths = run(model, **whole(ids))
        assert torch.equal(run(model, **whole(ids), labels=ids), by_lengths)  # they count before labels
    assert torch.equal(by_lengths, run(model, **whole(ids), labels=labels_of(ids)))
    with edits.disable_adapter():
        assert not torch.allclose(run(model, **whole(ids)), wanted, atol=1e-3)


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("model_type", TYPES)
def test_every_way_to_generate_gives_the_tokens_of_the_full_pass(model_type, positions):
    model, edits = edited(model_type, positions)
    ids, mask = prompts()

    def generate(ids=ids, mask=mask, **options):
        return model.generate(ids, attention_mask=mask, **OPTIONS, **options)

    found = generate()
    given = whole(found) if model_type == "opt" else whole(found) | {
        "position_ids": (whole(found)["attention_mask"].cumsum(1) - 1).clamp(min=0)
    }  # fmt: skip
    with edits.prompt_lengths(PROMPTS):
        assert torch.equal(run(model, **given)[:, 5:-1].argmax(-1), found[:, 6:])
        assert torch.equal(generate(), found)
        assert torch.equal(generate(use_cache=False), found)
    assert torch.equal(generate(use_cache=False), found)
    assert torch.equal(generate(ids[1:], mask[1:], prompt_lookup_num_tokens=2), found[1:])
    assert torch.equal(generate(ids[:1, 2:], mask[:1, 2:])[:, 4:], found[:1, 6:])
    beams = generate(num_beams=3, num_return_sequences=2)
    assert torch.equal(generate(num_beams=3, num_return_sequences=2, use_cache=False), beams)
    if model_type != "opt":
        assert torch.equal(generate(prefill_chunk_size=2), found)
        assert torch.equal(generate(cache_implementation="static"), found)
        with edits.prompt_lengths(PROMPTS):
            assert torch.equal(generate(cache_implementation="static"), found)


@pytest.mark.parametrize("positions", KINDS)
def test_a_cache_gives_the_full_pass_token_by_token(positions, ids):
    model, edits = edited("llama", positions)
    labels = ids.clone()
    labels[:, :4] = -100
    wanted = run(model, input_ids=ids, labels=labels)
    with torch.no_grad():
        first = model(input_ids=ids[:, :4], use_cache=True)
        found = [first.logits]
        for i in range(4, ids.shape[1]):
            found.append(model(input_ids=ids[:, i : i + 1], past_key_values=first.past_key_values).logits)
        assert torch.allclose(torch.cat(found, 1), wanted, atol=1e-5)
        with edits.prompt_lengths([4, 4]):  # in pieces of which one has both kinds
            first = model(input_ids=ids[:, :2], use_cache=True)
            rest = model(input_ids=ids[:, 2:], past_key_values=first.past_key_values).logits
        assert torch.allclose(torch.cat([first.logits, rest], 1), wanted, atol=1e-5)


def test_a_call_of_generate_that_goes_on_from_a_cache_has_its_own_prompt(llama):
    edits = headedit.attach(llama, config=EditConfig(positions="prompt"))
    randomise(edits)
    ids, mask = prompts()[0][1:], prompts()[1][1:]
    with torch.no_grad():
        cache = llama(input_ids=ids[:, :3], use_cache=True).past_key_values
    found = llama.generate(ids, attention_mask=mask, past_key_values=cache, **OPTIONS)
    assert torch.equal(found, llama.generate(ids, attention_mask=mask, **OPTIONS))


@pytest.mark.parametrize("positions", KINDS)
def test_an_edited_assistant_knows_the_prompt_of_the_model_that_it_assists(positions):
    assistant, edits = edited("llama", positions)
    target = tiny_model("llama")
    ids, mask = prompts()[0][1:], prompts()[1][1:]
    seen = []
    acts = edits._hooks._tokens.current

    def note():
        seen.append(acts())
        return seen[-1]

    edits._hooks._tokens.current = note
    target.generate(ids, attention_mask=mask, assistant_model=assistant, **OPTIONS)
    assert {tokens._boundary for tokens in seen} >= {6}  # in the first pass of each call: not what it was given
    assert all(tokens._boundary <= 6 for tokens in seen)


def test_what_a_logits_processor_runs_in_generate_has_a_prompt_of_its_own(llama):
    randomise(headedit.attach(llama, config=EditConfig(positions="prompt")))
    ids, mask = prompts()
    negative = torch.full((1, 2), 9)
    options = {**OPTIONS, "guidance_scale": 1.5, "negative_prompt_ids": negative}
    found = llama.generate(ids[1:], attention_mask=mask[1:], **options)
    with pytest.raises(HeadEditError, match=UNTOLD):
        llama.generate(ids[1:], attention_mask=mask[1:], use_cache=False, **options)
    scores, both = [], torch.cat([negative, found[:, 6:]], 1)
    for step in range(NEW):
        a = run(llama, input_ids=found[:, : 6 + step], labels=labels_of(found[:, : 6 + step]))[:, -1].log_softmax(-1)
        labels = both[:, : 2 + step].clone()
        labels[:, :2] = -100
        b = run(llama, input_ids=both[:, : 2 + step], labels=labels)[:, -1].log_softmax(-1)
        scores.append((1.5 * (a - b) + b).argmax(-1))
    assert torch.equal(torch.stack(scores, 1), found[:, 6:])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_routed_rows_keep_the_positions_of_their_adapters(llama, options):
    edits = headedit.attach(llama)
    randomise(edits)
    for seed, name in enumerate(KINDS, start=1):
        edits.add_adapter(name, EditConfig(positions=name))
        edits.set_adapter(name)
        randomise(edits, seed)
    rows = ["prompt", None, "generated", "default", "last_prompt"]
    ids, mask = (t[[0, 1, 0, 1, 0]] for t in prompts())
    found, scored, every = {}, {}, torch.cat([ids, ids[:, -3:]], 1)
    given = {"input_ids": every, "attention_mask": pad(mask, (0, 3), value=1), "labels": labels_of(every)}
    for name in edits.adapters:
        edits.set_adapter(name)
        found[name] = llama.generate(ids, attention_mask=mask, **OPTIONS, **options)
        scored[name] = run(llama, **given)
    with edits.disable_adapter():
        found[None] = llama.generate(ids, attention_mask=mask, **OPTIONS, **options)
        scored[None] = run(llama, **given)
    with edits.route(rows):
        routed = llama.generate(ids, attention_mask=mask, **OPTIONS, **options)
        assert torch.equal(routed, torch.stack([found[name][i] for i, name in enumerate(rows)]))
        assert torch.equal(run(llama, **given), torch.stack([scored[name][i] for i, name in enumerate(rows)]))
    with edits.route(["prompt", None, "prompt", "prompt", None]):
        assert torch.equal(run(llama, **given)[2], scored["prompt"][2])


def test_a_plain_pass_is_refused_with_the_way_out(llama, ids):
    edits = headedit.attach(llama, config=EditConfig(positions="generated"))
    randomise(edits)
    with pytest.raises(HeadEditError, match=rf"{UNTOLD}.*no labels.*Give labels=.*edits\.prompt_lengths"):
        logits(llama, ids)
    with edits.disable_adapter():
        logits(llama, ids)
    with torch.no_grad():
        cache = llama(input_ids=ids[:, :4], use_cache=True).past_key_values
        with pytest.raises(HeadEditError, match="from a cache with 3 tokens at once"):
            llama(input_ids=ids[:, 4:], past_key_values=cache)
    with pytest.raises(HeadEditError, match="A layer was called without the model around it"):
        llama.model.layers[0].self_attn.o_proj(torch.zeros(1, 2, 64))
    with pytest.raises(HeadEditError, match="given 3 rows, but the batch has 2"), edits.prompt_lengths([1, 2, 3]):
        logits(llama, ids)
    for wrong in ([], 3, [1.5], [-1], "12"):
        with pytest.raises(HeadEditError, match="prompt_lengths"), edits.prompt_lengths(wrong):
            pass
    with edits.prompt_lengths(torch.tensor([3, 4])), edits.prompt_lengths([2]):
        logits(llama, ids)


def test_texts_in_a_row_and_labels_that_do_not_say_one_prompt_are_refused(llama, ids):
    randomise(headedit.attach(llama, config=EditConfig(positions="prompt")))
    labels = ids.clone()
    labels[:, :2] = -100
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2]]).expand(2, -1)
    with pytest.raises(HeadEditError, match="position_ids restart within a row"):
        llama(input_ids=ids, labels=labels, position_ids=packed)
    with pytest.raises(HeadEditError, match="several texts in a row"):
        llama(input_ids=ids, labels=labels, cu_seq_lens_q=torch.tensor([0, 4, 7]))
    labels[1, 4] = -100
    with pytest.raises(HeadEditError, match=r"several labelled parts.*Label the last answer alone"):
        llama(input_ids=ids, labels=labels)


def test_a_site_that_is_given_other_tokens_than_the_pass_is_refused(llama, ids):
    randomise(headedit.attach(llama, config=EditConfig(positions="prompt")))
    projection = llama.model.layers[0].self_attn.o_proj

    def flat(module, args):
        return (args[0].flatten(0, 1),)

    projection.register_forward_pre_hook(flat, prepend=True)
    labels = ids.clone()
    labels[:, :2] = -100
    with pytest.raises(HeadEditError, match=r"o_proj was given \(14, 64\).*positions='all'"):
        llama(input_ids=ids, labels=labels)


@pytest.mark.parametrize("model_type", ["mamba2", "bloom", "falcon_h1", "deepseek_v2", "gpt_bigcode", "zamba2"])
def test_types_of_other_shapes_edit_the_same_tokens_with_their_caches(model_type):
    model = zoo_model(model_type)
    edits = headedit.attach(model, config=EditConfig(positions="prompt"))
    randomise(edits)
    ids = zoo_ids(model)
    with edits.prompt_lengths([4]):
        found = run(model, input_ids=ids, use_cache=False)
    with by_hand(edits, acting("prompt", ids.shape[1], 4).expand(len(ids), -1)):
        assert torch.allclose(found, run(model, input_ids=ids, use_cache=False), atol=1e-5)
    given = {"input_ids": ids[:, :4], "attention_mask": torch.ones_like(ids[:, :4]), **OPTIONS}
    for beams in (1, 2):
        cached = model.generate(**given, num_beams=beams)
        assert torch.equal(cached, model.generate(**given, num_beams=beams, use_cache=False))


@pytest.mark.parametrize("model_type", ["cpmant", "prophetnet", "reformer"])
def test_types_whose_sites_have_tokens_of_their_own_are_refused(model_type):
    model = zoo_model(model_type)
    edits = headedit.attach(model, config=EditConfig(positions="prompt"))
    randomise(edits)
    ids = zoo_ids(model)
    with pytest.raises(HeadEditError, match="its edit can act on all tokens only"), edits.prompt_lengths([4]):
        run(model, input_ids=ids, use_cache=False)


def test_with_a_lora_around_the_model_generate_tells_its_prompt_and_learned_prompts_are_refused(llama):
    peft = pytest.importorskip("peft")
    ids, mask = prompts()
    edits = headedit.attach(llama, config=EditConfig(positions="last_prompt"))
    randomise(edits)
    wanted = llama.generate(ids, attention_mask=mask, **OPTIONS)
    around = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj"]))
    randomise(headedit.attach(around.eval(), config=EditConfig(positions="last_prompt")))
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        assert torch.equal(around.generate(input_ids=ids, attention_mask=mask, **OPTIONS, **options), wanted)
    learned = peft.get_peft_model(llama, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with pytest.raises(HeadEditError, match="PEFT puts learned tokens before the prompt"):
        learned.generate(input_ids=ids, attention_mask=mask, **OPTIONS)


def test_models_whose_experts_mix_the_rows_are_refused_when_attached():
    with pytest.raises(HeadEditError, match="can act on all tokens only"):
        headedit.attach(zoo_model("jetmoe"), config=EditConfig(positions="prompt"))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_pass_is_refused(llama, ids, fullgraph):
    edits = headedit.attach(llama, config=EditConfig(positions="prompt"))
    randomise(edits)
    compiled = torch.compile(llama, backend="aot_eager", fullgraph=fullgraph)
    labels = ids.clone()
    labels[:, :3] = -100
    with pytest.raises(Exception, match=r"without torch\.compile"), torch.no_grad():
        compiled(input_ids=ids, labels=labels)


@pytest.mark.parametrize("layers", [None, [1]], ids=["every layer", "one layer"])
@pytest.mark.parametrize("positions", KINDS)
def test_checkpointing_gives_the_same_gradients_after_other_passes_too(positions, layers):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model, edits = edited("llama", positions, layers=layers)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        ids = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(2))
        losses = []
        for prompt in (3, 6):
            labels = ids.clone()
            labels[:, :prompt] = -100
            losses.append(model(input_ids=ids, labels=labels, use_cache=False).loss)
        (losses[0] + 2 * losses[1]).backward()
        return [parameter.grad for parameter in edits.vector_parameters()]

    plain = gradients(False)
    assert any(bool(gradient.any()) for gradient in plain)
    for a, b in zip(plain, gradients(True), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_edits_of_all_tokens_have_no_hook_more_and_need_no_labels(llama, ids):
    edits = headedit.attach(llama)
    assert not edits._hooks._tokens.there
    assert len(llama._forward_pre_hooks) == 0
    edits.add_adapter("some", EditConfig(positions="prompt"))
    assert edits._hooks._tokens.there
    randomise(edits)
    before = logits(llama, ids)
    with edits.prompt_lengths([1, 1]):
        assert torch.equal(logits(llama, ids), before)
    edits.detach()
    assert len(llama._forward_pre_hooks) == len(llama.model._forward_pre_hooks) == 0


@pytest.mark.parametrize("hardened", [False, True])
def test_saved_edits_keep_their_positions_and_say_so(tmp_path, hardened, caplog):
    model, edits = edited("llama", "last_prompt")
    ids, mask = prompts()
    wanted = model.generate(ids, attention_mask=mask, **OPTIONS)
    edits.save_pretrained(tmp_path, hardened=hardened)
    assert "the last token of each prompt" in repr(edits)
    assert "the last token of each prompt" in (tmp_path / "README.md").read_text()
    fresh = tiny_model("llama")
    loaded = headedit.load(fresh, tmp_path)
    assert "act on the last token of each prompt alone" in caplog.text
    assert loaded.config.positions == "last_prompt"
    assert torch.equal(fresh.generate(ids, attention_mask=mask, **OPTIONS), wanted)
    state, other = model.state_dict(), tiny_model("llama")
    headedit.attach(other)
    other.load_state_dict(state)
    assert torch.equal(other.generate(ids, attention_mask=mask, **OPTIONS), wanted)


def test_files_of_edits_of_all_tokens_do_not_name_positions(llama, tmp_path):
    edits = headedit.attach(llama)
    edits.save_pretrained(tmp_path)
    assert "positions" not in (tmp_path / "headedit_config.json").read_text()
    assert "acts on" not in (tmp_path / "README.md").read_text()
    assert " on " not in repr(edits)
    assert headedit.load(tiny_model("llama"), tmp_path).config.positions == "all"


def test_copies_and_pickles_act_on_the_same_tokens():
    model, _ = edited("llama", "generated")
    ids, mask = prompts()
    wanted = model.generate(ids, attention_mask=mask, **OPTIONS)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.generate(ids, attention_mask=mask, **OPTIONS), wanted)
        with pytest.raises(HeadEditError, match=UNTOLD):
            logits(copied, ids)


@pytest.mark.parametrize("positions", KINDS)
def test_nothing_that_writes_edits_into_weights_takes_them(positions, tmp_path):
    for model_type in ("llama", "qwen2"):
        model, edits = edited(model_type, positions)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for write in (edits.merge_adapter, edits.merge_and_unload, lambda e=edits: e.to_peft(tmp_path / "peft")):
            with pytest.raises(HeadEditError, match=rf"alone \(positions='{positions}'\).*they cannot be"):
                write()
        assert edits.attached
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_edits_of_other_tokens_cannot_be_added_and_those_of_the_same_can(llama):
    edits = with_adapters(llama)
    edits.add_adapter("a", EditConfig(positions="prompt"))
    edits.add_adapter("b", EditConfig(positions="prompt"))
    with pytest.raises(HeadEditError, match=r"one acts on all tokens .* another on prompt tokens"):
        edits["default"] + edits["a"]
    assert (edits["a"] + 0.5 * edits["b"]).config.positions == "prompt"


def test_a_word_that_is_no_positions_is_refused_with_the_nearest():
    with pytest.raises(HeadEditError, match=r"positions: found 'last'"):
        EditConfig(positions="last")


def test_contexts_of_prompt_lengths_can_be_left_in_any_order(llama, ids):
    edits = headedit.attach(llama, config=EditConfig(positions="prompt"))
    randomise(edits)

    def of(length):
        with edits.prompt_lengths([length]):
            return logits(llama, ids)

    wanted = {length: of(length) for length in (2, 4)}
    outer, inner = edits.prompt_lengths([2]), edits.prompt_lengths([4])
    outer.__enter__()
    inner.__enter__()
    assert torch.equal(logits(llama, ids), wanted[4])
    outer.__exit__(None, None, None)
    assert torch.equal(logits(llama, ids), wanted[4])
    inner.__exit__(None, None, None)
    with pytest.raises(HeadEditError, match=UNTOLD):
        logits(llama, ids)
