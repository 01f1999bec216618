"""Another adapter for each row of a batch: every row is what it would be with that adapter alone."""

import pytest
import torch
from test_adapters import of_each, with_adapters
from tiny import logits, randomise, tiny_model
from zoo import WITH_HEADS, zoo_ids, zoo_model

import headedit
from headedit import EditConfig, HeadEditError

ROWS = ["b", None, "default", "b"]


def batch(rows=4, length=7):
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(9))


def row_by_row(edits, ids, names):
    """The logits of the whole batch under each row's adapter, of which the row is taken."""
    found = of_each(edits, ids)
    with edits.disable_adapter():
        found[None] = logits(edits.model, ids)
    return torch.stack([found[name][i] for i, name in enumerate(names)])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "falcon"])
def test_rows_are_those_of_their_adapters(model_type):
    model, ids = tiny_model(model_type), batch()
    edits = with_adapters(model, "b")
    wanted = row_by_row(edits, ids, ROWS)
    before = logits(model, ids)
    with edits.route(ROWS):
        assert torch.equal(logits(model, ids), wanted)
        with edits.disable_adapter():
            base = logits(model, ids)
        with edits.route(["b"] * 4):
            assert torch.equal(logits(model, ids)[0], wanted[0])
        assert torch.equal(logits(model, ids), wanted)
    assert torch.equal(base[1], wanted[1])
    assert torch.equal(logits(model, ids), before)


def test_adapters_of_other_sites_shapes_and_strengths_in_one_batch(llama):
    edits = with_adapters(llama, "b")
    edits.add_adapter("mlp", EditConfig(sites=["mlp"], vectors="offset", gates="none", layers=[1]))
    edits.set_adapter("mlp")
    randomise(edits, 4)
    edits.set_adapter("default")
    edits["b"].strength = 0.3
    names = ["mlp", "b", None, "default"]
    wanted = row_by_row(edits, batch(), names)
    with edits.route(names):
        assert torch.equal(logits(llama, batch()), wanted)


def test_a_routed_edit_in_low_precision_is_rounded_once(llama):
    llama.to(torch.bfloat16)
    edits = with_adapters(llama, "b")
    wanted = row_by_row(edits, batch(), ROWS)
    with edits.route(ROWS):
        assert torch.equal(logits(llama, batch()), wanted)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "beams", "all beams", "samples"],
)
def test_generation_with_a_cache_and_left_padding(llama, options):
    edits = with_adapters(llama, "b")
    ids = batch()
    mask = torch.ones_like(ids)
    for row, empty in enumerate([2, 0, 3, 1]):
        ids[row, :empty], mask[row, :empty] = 0, 0
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, **options}

    def generate(ids, mask):
        torch.manual_seed(3)
        return llama.generate(ids, attention_mask=mask, **options)

    each = options.get("num_return_sequences", 1)
    found = {}
    for name in ("b", None, "default"):
        edits.set_adapter(name or "default")
        if name is None:
            with edits.disable_adapter():
                found[name] = generate(ids, mask)
        else:
            found[name] = generate(ids, mask)
    wanted = torch.cat([found[name][i * each : (i + 1) * each] for i, name in enumerate(ROWS)])
    with edits.route(ROWS):
        assert torch.equal(generate(ids, mask), wanted)
    assert not torch.equal(found["b"], found["default"])
    if options["do_sample"]:
        return
    for i, name in enumerate(ROWS):  # and as the row by itself, without padding
        empty = int((mask[i] == 0).sum())
        with edits.route([name]):
            alone = generate(ids[i : i + 1, empty:], mask[i : i + 1, empty:])
        assert torch.equal(alone[:, 7 - empty :], wanted[i * each : (i + 1) * each, 7:])


@pytest.mark.parametrize("model_type", WITH_HEADS)
def test_every_type_is_routed_or_refused(model_type):
    model = zoo_model(model_type)
    ids = zoo_ids(model).repeat(3, 1)
    edits = headedit.attach(model)
    randomise(edits)
    edits.add_adapter("b")
    edits.set_adapter("b")
    randomise(edits, 1)
    names = ["b", None, "default"]
    if model_type == "jetmoe":
        with pytest.raises(HeadEditError, match="cannot be routed by row: its experts see the tokens of all rows"):
            edits.route(names).__enter__()
        return

    def run():
        torch.manual_seed(0)  # reformer draws its hashes
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits.unflatten(0, (3, -1))

    found = {}
    for name in ("b", "default"):
        edits.set_adapter(name)
        found[name] = run()
    with edits.disable_adapter():
        found[None] = run()
    with edits.route(names):
        routed = run()
    for row, name in enumerate(names):  # experts are given tokens of other rows together, so not to the bit
        off = {other: float((routed[row] - found[other][row]).abs().max()) for other in names}
        assert off[name] <= 1e-6
        assert all(off[other] > 20 * max(off[name], 1e-8) for other in names if other != name), off


def test_rows_that_cannot_be_routed_are_refused(llama):
    edits = with_adapters(llama, "b")
    with pytest.raises(HeadEditError, match=r"no adapter 'bb'.*Adapters: default, b"), edits.route(["bb"]):
        pass
    for rows in ([], "b"):
        with pytest.raises(HeadEditError, match=r"route: found .*, expected a list"), edits.route(rows):
            pass
    with (
        edits.route(["b", None, None]),
        pytest.raises(HeadEditError, match=r"given 3 rows, but the batch has 4, which is not a multiple"),
    ):
        logits(llama, batch())
    llama.train()
    with pytest.raises(HeadEditError, match=r"route\(\) works in eval mode"), edits.route(["b"]):
        pass
