"""``steer`` finds a planted head and direction without training, and writes an edit that acts, is kept and trained."""

import accelerate
import pytest
import torch
from test_probes import HEAD, LAYER, hooks, outputs_by_hand, plant, random_rows
from tiny import logits, randomise, tiny_model
from torch.nn.functional import cosine_similarity
from zoo import zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.data.reading import tokens_to_read
from headedit.demo import MODEL_FOLDER
from headedit.edits.gate_set import open_gates
from headedit.hf.loading import load_model, load_tokenizer


def planted_model(model_type="llama", width=16):
    """A model with one head that tells odd rows from even ones, and the difference between the two."""
    changes = {"num_key_value_heads": 4} if model_type == "llama" else {}
    model = tiny_model(model_type, **changes)
    half = torch.randn(width, generator=torch.Generator().manual_seed(1))
    plant(model, half)
    return model, 2 * half


def odd_and_even(count=96):
    rows, labels = random_rows(count)
    return [
        [row for row, label in zip(rows, labels, strict=True) if label],
        [row for row, label in zip(rows, labels, strict=True) if not label],
    ]


def steer(edits, positive=None, negative=None, **options):
    odd, even = odd_and_even()
    sets = (odd if positive is None else positive, even if negative is None else negative)
    return headedit.steer(edits, *sets, progress=False, **options)


@pytest.fixture
def planted():
    """Edits on a Llama with a planted head, and the difference that it makes."""
    model, difference = planted_model()
    return headedit.attach(model), difference


METHODS = ("mean_difference", "probe")


@pytest.mark.parametrize("rank_by", ["accuracy", "effect"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("model_type", "width"), [("llama", 16), ("gpt2", 8)])
def test_the_planted_head_and_its_direction_are_found(model_type, width, method, rank_by):
    model, difference = planted_model(model_type, width)
    edits = headedit.attach(model)
    found = steer(edits, method=method, rank_by=rank_by)
    assert found.chosen == [(LAYER, HEAD)]  # a twentieth of 8 heads, at least one
    assert found.accuracy[LAYER, HEAD] == 1
    others = torch.ones(2, 4, dtype=torch.bool)
    others[LAYER, HEAD] = False
    assert found.accuracy[others].max() < 0.8
    assert found.effect[LAYER, HEAD] > 3 > 2 > found.effect[others].abs().max()
    least = 0.99 if method == "mean_difference" else 0.9
    assert cosine_similarity(found.direction[LAYER, HEAD], difference, dim=0) > least
    assert found.sigma[LAYER, HEAD] == pytest.approx(difference.norm().item() / 2, rel=0.1)


def test_steering_turns_the_output_for_one_set_into_that_for_the_other(planted):
    edits, difference = planted
    model = edits.model
    _, even = odd_and_even()
    found = steer(edits)
    found.apply(edits, strength=(difference.norm() / found.sigma[LAYER, HEAD]).item())
    by_hand = headedit.attach(planted_model()[0])
    by_hand.set_head(LAYER, HEAD, offset=difference)
    for row in even[:8]:
        ids = torch.tensor([row["input_ids"]])
        target = logits(by_hand.model, ids)
        with edits.disable_adapter():
            before = (logits(model, ids) - target).norm()
        assert (logits(model, ids) - target).norm() < 0.15 * before


@pytest.mark.parametrize("eval_gate", ["clip", "expectation"])
@pytest.mark.parametrize("vectors", ["both", "offset"])
@pytest.mark.parametrize("gates", ["separate", "shared", "none"])
def test_the_chosen_heads_get_their_offset_and_nothing_else_acts(planted, gates, vectors, eval_gate):
    model = planted[0].detach()
    edits = headedit.attach(model, config=EditConfig(gates=gates, vectors=vectors, eval_gate=eval_gate))
    randomise(edits)
    edits.strength = 0.5
    found = steer(edits, heads=3, strength=-2.5)
    assert edits.strength == 1
    assert len(set(found.chosen)) == 3
    for site, edit in edits.module.pairs():
        scale, offset = (values.detach().view(site.heads, -1) for values in edit.scale_and_offset())
        assert torch.equal(scale, torch.ones_like(scale))
        for head in range(site.heads):
            place = (site.layer, head)
            wanted = -2.5 * found.sigma[place] * found.direction[place] if place in found.chosen else torch.zeros(16)
            assert torch.equal(offset[head], wanted)
    if gates != "none":
        assert {(gate.site, gate.head) for gate in open_gates(edits.module)} == set(found.chosen)
        assert {gate.vector for gate in open_gates(edits.module)} == {"offset"}
    model.train()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(logits(model, ids), logits(model, ids))  # no gate is drawn any more


def test_the_result_writes_other_numbers_of_heads_and_strengths_without_the_examples(planted):
    edits, _ = planted
    found = steer(edits, heads=2, strength=3.0)
    once = edits.snapshot()
    found.apply(edits, heads=5, strength=1.0)
    assert edits.count_open()["offset"][0] == 5
    found.apply(edits)
    assert all(map(torch.equal, once, edits.snapshot()))
    again = steer(edits, heads=5, strength=1.0)
    assert again.top(5) == found.top(5)


def test_the_base_model_is_read_whatever_the_edits_and_the_mode_are(planted):
    edits, _ = planted
    first = steer(edits)
    randomise(edits)
    edits.model.train()
    random = torch.get_rng_state()
    again = steer(edits)
    assert torch.equal(torch.get_rng_state(), random)
    assert edits.model.training
    for name in ("direction", "sigma", "accuracy", "effect"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_directions_are_differences_of_means_at_the_tokens_that_are_asked_for(llama):
    edits = headedit.attach(llama)
    generator = torch.Generator().manual_seed(8)
    rows = [torch.randint(3, 128, (n,), generator=generator).tolist() for n in (3, 9, 5, 7, 4, 6)]
    sets = [{"input_ids": ids, "labels": [-100, *ids[1:3], *[-100] * (len(ids) - 3)]} for ids in rows]
    of_token = {}
    for i, row in enumerate(rows):
        for end in range(1, len(row) + 1):
            for site, z in zip(edits.sites, outputs_by_hand(edits, [{"input_ids": row[:end]}]), strict=True):
                of_token[i, end - 1, site.layer] = z[0]
    chosen = {"last": lambda n: [n - 1], "response": lambda n: [1, 2], "all": range}
    for tokens, places in chosen.items():
        for size in (1, 6):
            found = steer(edits, sets[:2], sets[2:], tokens=tokens, rank_by="effect", heads=8, batch_size=size)
            for layer in range(2):
                means = torch.stack(
                    [
                        torch.stack([of_token[i, at, layer] for at in places(len(row))]).mean(0)
                        for i, row in enumerate(rows)
                    ]
                )
                shift = means[:2].mean(0) - means[2:].mean(0)
                unit = shift / shift.norm(dim=-1, keepdim=True)
                assert torch.allclose(found.direction[layer], unit, atol=1e-3)
                sigma = (means * unit).sum(-1).std(0, correction=0)
                assert torch.allclose(found.sigma[layer], sigma, rtol=1e-3)


def test_values_at_padding_never_count(planted):
    edits, _ = planted

    def spoil(module, args, kwargs):
        spoil.padding = kwargs["input_ids"] == 0

    def not_a_number(module, args, output):
        return output.masked_fill(spoil.padding[..., None], float("nan"))

    plain = steer(edits, tokens="all")
    edits.model.register_forward_pre_hook(spoil, with_kwargs=True)
    edits.model.model.layers[1].self_attn.q_proj.register_forward_hook(not_a_number)
    seen = []
    edits.sites[1].module.register_forward_pre_hook(lambda module, args: seen.append(bool(args[0].isnan().any())))
    spoiled = steer(edits, tokens="all")
    assert any(seen)
    assert torch.equal(plain.direction, spoiled.direction)
    assert torch.equal(plain.accuracy, spoiled.accuracy)


def pairs_of_rows(count=12):
    """Rows that differ in much, in pairs that differ in one token, by which their sum is odd or even."""
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(3, 128, (6,), generator=generator).tolist() for _ in range(count)]
    made = [
        [
            {"input_ids": [*row, last + (sum(row) + last + odd) % 2]}
            for row, last in zip(rows, range(3, 3 + count), strict=True)
        ]
        for odd in (1, 0)
    ]
    assert all(sum(row["input_ids"]) % 2 == 1 for row in made[0])
    return made


def test_pairs_are_compared_within_each_pair(planted):
    edits, _ = planted
    odd, even = pairs_of_rows()
    apart = steer(edits, odd, even, heads=8)
    paired = steer(edits, odd, even, heads=8, paired=True)
    assert torch.allclose(apart.direction, paired.direction, atol=1e-5)
    assert torch.allclose(apart.sigma, paired.sigma, rtol=1e-4)
    assert paired.chosen[0] == (LAYER, HEAD)
    assert paired.effect[LAYER, HEAD] > 2 * apart.effect[LAYER, HEAD]
    shuffled = steer(edits, odd, even[1:] + even[:1], heads=8, paired=True)
    assert shuffled.effect[LAYER, HEAD] < paired.effect[LAYER, HEAD]
    with pytest.raises(HeadEditError, match="paired: found 12 positive and 11 negative examples"):
        steer(edits, odd, even[1:], paired=True)


def test_sets_of_unequal_size_and_two_examples_each_are_enough_without_probes(planted):
    edits, _ = planted
    odd, even = odd_and_even()
    found = steer(edits, odd[:2], even[:30], rank_by="effect", heads=1)
    assert (found.positive, found.negative, found.baseline) == (2, 30, 30 / 32)
    assert found.accuracy.isnan().all()
    assert found.chosen == [(LAYER, HEAD)]
    assert "nan" in repr(found)
    with pytest.raises(HeadEditError, match="no accuracy to draw: a set had fewer than 4 examples"):
        headedit.plot.probes(found)


def test_the_result_shows_itself(planted):
    edits, _ = planted
    found = steer(edits, heads=8)
    first, header, *lines = repr(found).splitlines()
    assert first == (
        "Steering(mean_difference on 8 of 8 attention heads, 1 σ long, read at the last token of "
        f"{found.positive} positive and {found.negative} negative examples; accuracy of the larger set "
        f"{found.baseline:.2f})"
    )
    assert header.split("  ")[-1] == "length of the offset"
    assert lines[0].split()[:3] == [str(LAYER), str(HEAD), "1.000"]
    assert len(lines) == 8
    assert "| 1 | 2 | 1.000 |" in found._repr_markdown_()
    assert headedit.plot.probes(found, edits).axes


def test_a_steered_edit_is_saved_merged_routed_and_drawn(ids, tmp_path):
    model, _ = planted_model("gpt2", 8)
    edits = headedit.attach(model)
    base = logits(model, ids)
    steer(edits, heads=2, strength=4.0)
    steered = logits(model, ids)
    assert not torch.allclose(steered, base, atol=1e-2)
    figure = headedit.plot.gates(edits)
    assert figure.axes
    for hardened in (False, True):
        edits.save_pretrained(tmp_path / str(hardened), hardened=hardened)
        fresh, _ = planted_model("gpt2", 8)
        loaded = headedit.load(fresh, tmp_path / str(hardened))
        assert torch.equal(logits(fresh, ids), steered)
        assert loaded.count_open()["any"] == (2, 8)
    with edits.route(["default", None]):
        routed = logits(model, ids)
    assert torch.allclose(routed[0], steered[0], atol=1e-5)
    assert torch.allclose(routed[1], base[1], atol=1e-5)
    edits.harden()
    assert torch.equal(logits(model, ids), steered)
    edits.merge_adapter()
    assert torch.allclose(logits(model, ids), steered, atol=1e-5)
    edits.unmerge_adapter()
    assert torch.equal(logits(model, ids), steered)
    assert not torch.equal(logits(edits.merge_and_unload(), ids), base)


def test_hardened_edits_and_a_second_adapter_are_steered(planted, ids):
    edits, _ = planted
    base = logits(edits.model, ids)
    edits.module.requires_grad_(False)
    for site in edits.module:
        site.set_head(0, torch.tensor(1.0), None)
    edits.harden()
    steer(edits, heads=2, strength=3.0)
    assert not torch.allclose(logits(edits.model, ids), base)
    edits.add_adapter("other", EditConfig(vectors="offset"))
    edits.set_adapter("other")
    assert torch.equal(logits(edits.model, ids), base)
    steer(edits.model, heads=1)
    assert edits["other"].count_open()["offset"] == (1, 8)
    assert edits["default"].count_open()["offset"] == (2, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_steered(dtype):
    edits = headedit.attach(planted_model()[0].to(dtype))
    assert steer(edits, strength=2.0).chosen == [(LAYER, HEAD)]
    assert {vector.dtype for vector in edits.vector_parameters()} == {torch.float32}
    edits.module.to(dtype)
    steer(edits, strength=2.0)
    before = edits.snapshot()
    if dtype is torch.float16:
        with pytest.raises(
            HeadEditError, match=r"strength: found 100000, with which the offset of head 2 in layer 1 is"
        ):
            steer(edits, strength=1e5)
        assert all(map(torch.equal, before, edits.snapshot()))


@pytest.mark.parametrize("offload", ["cpu", "device_map"])
def test_an_offloaded_model_is_steered_as_one_in_memory(offload, tmp_path):
    wanted = steer(headedit.attach(planted_model()[0]))
    model = planted_model()[0]
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        placed = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk"}
        placed |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        accelerate.dispatch_model(model, placed, main_device="cpu", offload_dir=str(tmp_path))
    found = steer(headedit.attach(model))
    assert torch.equal(found.direction, wanted.direction)


def test_edits_that_are_offloaded_with_their_model_are_refused():
    model = planted_model()[0]
    edits = headedit.attach(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(HeadEditError, match="is on the meta device and has no values to write"):
        steer(edits)


def test_sites_of_other_widths_and_numbers_of_heads_are_steered(llama, tmp_path):
    path = tmp_path / "two.yaml"
    o_proj = "{path: 'layers.{layer}.self_attn.o_proj', heads: 4}"
    down_proj = "{path: 'layers.{layer}.mlp.down_proj', heads: 6}"
    path.write_text(f"model_types: [llama]\nsites: {{attention: [{o_proj}, {down_proj}]}}\n")
    edits = headedit.attach(llama, spec=path, config=EditConfig(layers=[1], vectors="offset"))
    found = steer(edits, heads=10, strength=2.0)
    assert found.accuracy.isnan().tolist() == [[True] * 10, [False] * 10]
    assert found.direction[1, 4:, 8:].isnan().all()
    for site, first in zip(edits.sites, (0, 4), strict=True):
        columns = slice(first, first + site.heads)
        wanted = 2.0 * found.sigma[1, columns, None] * found.direction[1, columns, : site.head_dim]
        offset = next(edit.vectors["offset"] for where, edit in edits.module.pairs() if where is site)
        assert torch.equal(offset, wanted)


def test_only_heads_of_the_kind_that_is_asked_for_are_steered(llama):
    edits = headedit.attach(llama, config=EditConfig(sites=["attention", "mlp"]))
    found = steer(edits, kind="mlp", heads=2)  # one site of width 48 per layer, wider than there are examples of a set
    assert sorted(found.chosen) == [(0, 0), (1, 0)]
    assert edits.count_open()["offset"] == (2, 10)
    assert not edits.gates("attention").offset.any()


def test_heads_that_come_in_groups_and_layers_of_other_kinds_are_steered():
    edits = headedit.attach(zoo_model("deepseek_v4"))
    generator = torch.Generator().manual_seed(2)
    rows = [{"input_ids": row} for row in torch.randint(3, 90, (12, 6), generator=generator).tolist()]
    found = steer(edits, rows[:6], rows[6:], heads=3)
    assert edits.count_open()["offset"][0] == 3
    assert found.sigma.isnan().equal(edits.gates().offset.isnan())


ROWS = [{"input_ids": [5, 6, 7 + i]} for i in range(4)]
BAD = {
    r"positive: the set of examples is empty; there is nothing to steer by": {"positive": []},
    r"negative: the set of examples is empty": {"negative": iter([])},
    r"positive: found the text 'a b c', expected examples": {"positive": "a b c"},
    r"negative: found a dict of 2, expected examples\. Give one split, such as data\['train'\]": {
        "negative": {"train": ROWS, "test": ROWS}
    },
    r"positive: found 3 examples, at least 4 are needed to fit and measure probes\. method='mean_difference' with ": {
        "positive": ROWS[:3]
    },
    r"negative: found 1 example, at least 2 are needed to measure a spread": {
        "negative": ROWS[:1],
        "rank_by": "effect",
    },
    r"negative: found 3 examples, at least 4 are needed": {
        "negative": ROWS[:3],
        "rank_by": "effect",
        "method": "probe",
    },
    r"every head has the same output for both, so there is no direction between them": {"negative": ROWS},
    r"method: found the text 'caa', expected one of mean_difference, probe": {"method": "caa"},
    r"tokens: found the text 'first', expected one of last, response, all": {"tokens": "first"},
    r"rank_by: found the text 'acuracy', expected one of accuracy, effect\. Did you mean 'accuracy'": {
        "rank_by": "acuracy"
    },
    r"heads: found 0, expected 1 to 8, the number of attention heads of these edits": {"heads": 0},
    r"heads: found 9, expected 1 to 8": {"heads": 9},
    r"heads: found 0\.5, expected how many heads to steer": {"heads": 0.5},
    r"strength: found 0, which changes nothing": {"strength": 0},
    r"strength: found nan, expected a number such as 4, in standard deviations": {"strength": float("nan")},
    r"strength: found the text '4'": {"strength": "4"},
    r"paired: found the text 'yes', expected True or False": {"paired": "yes"},
    r"l2: found 0, expected a number above 0": {"l2": 0},
    r"l2: found inf, expected a number above 0": {"l2": float("inf")},
    r"batch_size: found 0, expected 1 or more": {"batch_size": 0},
    r"no site of kind 'mlp'; they have attention": {"kind": "mlp"},
    r"positive example 2: has the token id 500, but the model's embedding has 128 tokens": {
        "positive": [ROWS[0], {"input_ids": [500]}, *ROWS[2:]]
    },
    r"negative example 3 has 65 tokens, more than the model's context of 64": {
        "negative": [*ROWS[:2], {"input_ids": [5] * 65}, ROWS[3]]
    },
    r"negative example 1: is empty": {"negative": [{"input_ids": []}, *ROWS]},
    r"positive example 1: has \d+ input_ids but 0 labels|positive example 1: is without a labelled token": {
        "tokens": "response"
    },
    r"positive example 2: found the fields question; expected prompt/response": {
        "positive": [ROWS[0], {"question": "a"}, *ROWS],
        "tokenizer": "embedded",
    },
    r"positive example 1: is an empty text": {"positive": [" "] * 4, "tokenizer": "embedded"},
    r"negative example 1: is a text without a prompt, so it has no response to read at\. Give \(prompt, response\)": {
        "positive": [("a b", " c")] * 4,
        "negative": ["a b"] * 4,
        "tokens": "response",
        "tokenizer": "embedded",
    },
    r"negative example 2: expected an object with named fields, found int": {
        "negative": ["a", 5, "b", "c"],
        "tokenizer": "embedded",
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(MODEL_FOLDER))


@pytest.mark.parametrize("message", BAD)
def test_an_argument_that_cannot_be_used_is_named_and_nothing_is_changed(llama, tokenizer, message):
    edits = headedit.attach(llama)
    randomise(edits)
    before, hooked = edits.snapshot(), hooks(llama)
    options = {"positive": ROWS, "negative": [{"input_ids": [8, 9, 10 + i]} for i in range(4)], **BAD[message]}
    if options.get("tokenizer") == "embedded":
        options["tokenizer"] = tokenizer
    with pytest.raises(HeadEditError, match=message):
        headedit.steer(edits, options.pop("positive"), options.pop("negative"), progress=False, **options)
    assert all(map(torch.equal, before, edits.snapshot()))
    assert hooks(llama) == hooked


def steered_while_merged(edits):
    edits.merge_adapter()
    steer(edits)


def steered_while_disabled(edits):
    edits.disable_adapter_layers()
    steer(edits)


def steered_inside(context):
    def run(edits):
        with context(edits):
            steer(edits)

    return run


def steered_when_detached(edits):
    edits.detach()
    steer(edits)


def steered_on_values_that_are_not_finite(edits):
    values = edits.model.model.layers[1].self_attn.v_proj
    values.register_forward_hook(lambda module, args, output: output * float("inf"))
    steer(edits)


def steered_without_offsets(edits):
    steer(headedit.attach(edits.detach(), config=EditConfig(vectors="scale")))


STATES = {
    "While the edits are merged, they cannot be steered: call unmerge_adapter": steered_while_merged,
    "disabled, so nothing would be steered: call enable_adapter_layers": steered_while_disabled,
    r"Inside disable_adapter\(\), nothing can be steered": steered_inside(lambda edits: edits.disable_adapter()),
    r"Inside route\(\), nothing can be steered": steered_inside(lambda edits: edits.route(["default"])),
    "detached from their model; attach or load them again before they are steered": steered_when_detached,
    r"layers\.1\.self_attn\.o_proj: a head's output is not finite": steered_on_values_that_are_not_finite,
    "These edits have no offset, which steering writes: they were made with vectors='scale'": steered_without_offsets,
    r"expected the handle, which has the model: edits\.set_adapter\(name\), then headedit\.steer\(": lambda edits: (
        steer(edits["default"])
    ),
    r"a model without edits\. Attach them first": lambda edits: steer(edits.detach()),
}


@pytest.mark.parametrize("message", STATES)
def test_edits_and_models_that_cannot_be_steered_are_refused_by_name(llama, message):
    with pytest.raises(HeadEditError, match=message):
        STATES[message](headedit.attach(llama))


def test_a_result_is_not_written_into_other_edits(planted):
    edits, _ = planted
    found = steer(edits, heads=8)
    other = headedit.attach(edits.detach(), config=EditConfig(layers=[LAYER]))
    before = other.snapshot()
    with pytest.raises(HeadEditError, match="no attention head 0 of the same width in layer 0, which was read"):
        found.apply(other)
    with pytest.raises(HeadEditError, match="heads: found 9, expected 1 to 8, the number of heads that were read"):
        found.apply(other, heads=9)
    assert all(map(torch.equal, before, other.snapshot()))


def marked(example, tokenizer, tokens):
    """The text of the tokens that are read."""
    row = tokens_to_read(example, tokenizer, "Example 1", tokens)
    assert row["labels"][-1] != -100
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def test_the_tokens_that_are_read_are_those_of_the_text_without_what_frames_it(tokenizer):
    pair = ("copy : a b =", " b a")
    whole = "copy : a b = b a"
    assert marked(pair, tokenizer, "last").strip() == "a"
    assert marked(pair, tokenizer, "response").split() == ["b", "a"]
    assert marked(pair, tokenizer, "all") == whole
    assert marked({"prompt": pair[0], "response": pair[1]}, tokenizer, "response").split() == ["b", "a"]
    assert marked(whole, tokenizer, "all") == whole
    assert marked(whole, tokenizer, "last").strip() == "a"


def test_every_response_of_a_conversation_is_read_without_what_ends_it(tokenizer):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e f"},
    ]
    record = {"messages": turns}
    read = marked(record, tokenizer, "response")
    assert read.split() == ["b", "c", "e", "f"]
    assert marked(record, tokenizer, "last").strip() == "f"
    assert marked(record, tokenizer, "all").strip().endswith("e f")


def test_texts_pairs_and_records_are_read_alike(tokenizer):
    model = load_model(str(MODEL_FOLDER), device="cpu")
    prompts = ["sort : b a =", "sort : d c =", "sort : f e =", "sort : a c b ="]
    ends = [" a b", " c d", " e f", " a b c"]
    other = [" b a", " d c", " f e", " a c b"]
    records = [{"prompt": prompt, "response": end} for prompt, end in zip(prompts, ends, strict=True)]
    texts = [prompt + end for prompt, end in zip(prompts, other, strict=True)]
    edits = headedit.attach(model)
    found = headedit.steer(edits, records, texts, progress=False)  # the tokenizer is the model's own
    pairs = headedit.steer(
        edits,
        list(zip(prompts, ends, strict=True)),
        [{"input_ids": tokenizer(text)["input_ids"]} for text in texts],
        tokenizer=tokenizer,
        progress=False,
    )
    assert torch.equal(found.direction, pairs.direction)
    assert len(found.chosen) == 1
    assert repr(found).startswith("Steering(mean_difference on 1 of 32 attention heads")
