"""Stability selection: the bounds, the choice of gates that halves agree on, and its place in a run."""

import json
import random

import numpy
import pytest
import torch
from test_resume import LOCALISE, ROWS, dying_at_write, in_child, result, train
from tiny import tiny_model

import headedit
from headedit import HeadEditError
from headedit.edits.gate_set import GateIndex, all_gates
from headedit.runs.error_bounds import largest_tail, r_concave_bound, worst_case_bound
from headedit.runs.run import Run
from headedit.runs.selection import Competitor, Exchange, Selection, largest_q, select, sizes_of, with_exchanges
from headedit.training.recipes.decoys import Decoys
from headedit.training.recipes.exchanges import measured_exchanges
from headedit.training.recipes.session import Session
from headedit.training.recipes.stability_selection import halves_of, rank

GATES = [Competitor(GateIndex(0, "offset", head)) for head in range(32)]
DECOYS = [Competitor(one.gate, decoy=True) for one in GATES]


def test_the_worst_case_bound_is_that_of_meinshausen_and_buehlmann():
    assert worst_case_bound(50, 1000, 0.9) == pytest.approx(50**2 / (0.8 * 1000))
    assert worst_case_bound(50, 1000, 0.6) == pytest.approx(12.5)


def test_no_r_concave_distribution_has_a_larger_tail_than_the_bound_says():
    for mean, least, steps, r in ((0.05**2, 10, 50, -0.5), (0.05, 60, 100, -0.25), (0.1, 8, 20, -0.25)):
        largest = 0.0
        for k in range(1, steps + 1):
            i = numpy.arange(k + 1)
            for a in numpy.logspace(-4, 5, 200):
                mass = (1 + i / a) ** (1 / r)
                mass /= mass.sum()
                if (i * mass).sum() <= mean * steps:
                    largest = max(largest, mass[least:].sum())
        assert largest <= largest_tail(mean, least, steps, r) <= 1.2 * largest


def test_the_r_concave_bound_falls_with_the_threshold_and_is_below_the_worst_case():
    found = [r_concave_bound(6, 128, threshold, 10) for threshold in (0.6, 0.75, 0.9, 1.0)]
    assert found == sorted(found, reverse=True)
    assert all(bound < worst_case_bound(6, 128, t) for bound, t in zip(found, (0.6, 0.75, 0.9, 1.0), strict=True))


def test_variables_selected_at_random_pass_no_more_often_than_the_bounds_say():
    draw, p, q, pairs, threshold = random.Random(0), 40, 6, 10, 0.65
    passing = 0
    for _ in range(400):
        counts = [0] * p
        for _ in range(2 * pairs):
            for chosen in draw.sample(range(p), q):
                counts[chosen] += 1
        passing += sum(count >= threshold * 2 * pairs for count in counts)
    assert passing / 400 <= r_concave_bound(q, p, threshold, pairs) <= worst_case_bound(q, p, threshold)


def test_a_bound_of_impossible_numbers_is_refused():
    with pytest.raises(HeadEditError, match=r"threshold: found 0\.5"):
        worst_case_bound(5, 100, 0.5)
    with pytest.raises(HeadEditError, match="q: found 101"):
        r_concave_bound(101, 100, 0.9, 50)


def test_gates_that_all_halves_select_are_chosen_and_their_bound_is_within_the_rate():
    noise = random.Random(1)
    orders = [GATES[:4] + noise.sample(GATES[4:] + DECOYS, 8) for _ in range(10)]
    found = select(orders, 64)
    assert set(found.chosen) == {one.gate for one in GATES[:4]}
    assert found.worst_case <= 0.1 * 4
    assert found.r_concave <= found.worst_case
    assert found.decoys == 0


def test_nothing_is_chosen_where_halves_agree_on_decoys_as_well():
    found = select([[DECOYS[0], GATES[0], DECOYS[1], GATES[1]]] * 10, 64)
    assert found.chosen == []
    assert found.rows() == [
        ("gates that are sure", "none at a rate of 0.1: the 10 halves do not agree, or decoys do as well")
    ]


def test_nothing_is_chosen_where_halves_disagree():
    noise = random.Random(2)
    found = select([noise.sample(GATES + DECOYS, 16) for _ in range(10)], 64)
    assert found.chosen == []
    assert all(0 < row.proportion < 0.8 for row in found.gates)


def test_a_selection_on_disk_is_the_same_and_a_damaged_one_is_named(tmp_path):
    found = select([[GATES[0], GATES[1], DECOYS[3]]] * 4, 64)
    assert Selection.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    record = {"recipe": "localise", "kept_step": 1, "selection": {**found.to_dict(), "q": "many"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(HeadEditError, match=r"damaged: .*q: found 'many'"):
        Run.read(tmp_path)


def test_gates_that_are_selected_in_each_others_place_are_a_group():
    first, second = [GATES[0], GATES[1], GATES[2]], [GATES[0], GATES[1], GATES[3]]
    found = select([first, second] * 6, 640)
    assert found.groups == [[tuple(GATES[2].gate), tuple(GATES[3].gate)]]
    assert select([first] * 12, 640).groups == []


def test_gates_whose_exchange_is_free_join_a_group_and_others_do_not():
    first, second, third, fourth = (tuple(one.gate) for one in GATES[:4])
    found = select([GATES[:2]] * 4, 64)
    free = Exchange(gate=first, other=third, cost=0.01, standard_error=0.02)
    also = Exchange(gate=second, other=third, cost=-0.01, standard_error=0.005)
    dear = Exchange(gate=second, other=fourth, cost=0.03, standard_error=0.02)
    assert with_exchanges(found, [free, dear]).groups == [[first, third]]
    assert with_exchanges(found, [free, also, dear]).groups == [[first, second, third]]
    kept = with_exchanges(found, [free, dear])
    assert Selection.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept


def test_an_exchange_names_another_gate_and_leaves_the_edits_as_they_were(tmp_path, llama):
    edits = headedit.attach(llama)
    start = edits.snapshot()
    session = Session(edits, ROWS, None, tmp_path, 0, 0, progress=False)
    chosen = [GateIndex(0, "offset", 1), GateIndex(1, "scale", 2)]
    found = measured_exchanges(session, chosen)
    assert [one.gate for one in found] == chosen
    assert not {one.other for one in found} & set(chosen)
    assert all(one.standard_error > 0 for one in found)
    assert all(torch.equal(a, b) for a, b in zip(start, edits.snapshot(), strict=True))


def test_the_numbers_that_are_tried_rise_to_the_largest_that_the_rate_allows():
    assert sizes_of(128) == sorted(set(sizes_of(128)))
    assert sizes_of(128)[-1] == largest_q(128) == 12
    assert sizes_of(3) == [1]


def test_the_halves_of_a_pair_have_all_examples_and_none_twice():
    halves = list(halves_of(11, 6, seed=3))
    assert len(halves) == 6
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert len(first) == len(second) == 5
        assert len({*first, *second}) == 10
    assert halves[0] != halves[2]


def test_a_decoy_changes_the_model_only_while_it_is_there(llama, ids):
    edits = headedit.attach(llama)
    before = llama(ids).logits
    decoys = Decoys(edits, 0)
    with torch.no_grad(), decoys:
        assert torch.equal(llama(ids).logits, before)  # its vectors are zero
        decoys.vectors[0]["offset"][1] = 3.0
        decoys.vectors[1]["scale"][2] = 0.5
        assert not torch.allclose(llama(ids).logits, before)
        decoys.close([GateIndex(0, "offset", 1), GateIndex(1, "scale", 2)], list(edits.module))
        assert torch.equal(llama(ids).logits, before)
    assert torch.equal(llama(ids).logits, before)


def test_a_decoys_offset_is_the_same_everywhere_and_its_scale_reads_other_heads(llama):
    edits = headedit.attach(llama)
    decoys, width = Decoys(edits, 0), edits.sites[0].heads * edits.sites[0].head_dim
    z = torch.randn(2, 3, width)
    with torch.no_grad():
        decoys.vectors[0]["offset"][1] = 1.0
        offset = decoys.added(0, z)
        decoys.vectors[0]["offset"].zero_()
        decoys.vectors[0]["scale"][1] = 2.0
        scale = decoys.added(0, z)
    touched = offset[0, 0].nonzero().flatten()
    assert len(touched) == edits.sites[0].head_dim
    assert len({int(i) // edits.sites[0].head_dim for i in touched}) > 1
    assert torch.equal(offset, offset[:1, :1].expand_as(offset))
    assert torch.allclose(scale[..., touched], 2 * z[..., touched])


def test_ranking_has_every_gate_and_every_decoy_once_and_is_repeatable(llama):
    edits = headedit.attach(llama)
    start = edits.snapshot()
    orders = []
    for _ in range(2):
        edits.restore(start)
        torch.rand(7)  # the ranking does not depend on other random numbers
        orders.append(rank(edits, ROWS, rms=[1.0] * 2, batch_size=8, pad_token_id=0, seed=0, steps=6))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(Competitor(gate, d) for gate in all_gates(edits.module) for d in (False, True))


def test_a_run_says_how_sure_its_gates_are_and_has_the_same_edits_as_without(tmp_path):
    plain = train(tmp_path / "plain", **LOCALISE)
    sure = train(tmp_path / "sure", bootstrap=4, **LOCALISE)
    assert plain.selection is None
    assert sure.selection.halves == 4
    assert sure.selection.competitors == 2 * 8
    assert Run.read(tmp_path / "sure").selection == sure.selection
    assert any(what == "gates that are sure" for what, _ in sure.rows())
    for name in ("headedit.safetensors", "history.jsonl"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "sure" / name).read_bytes()


def test_a_run_that_is_killed_between_halves_resumes_with_the_same_selection(tmp_path):
    settings = {"recipe": "refit", "epochs": 1, "bootstrap": 4}
    train(tmp_path / "whole", **settings)
    folder = tmp_path / "killed"
    for writes in (4, 7, 12):
        assert not in_child(dying_at_write(lambda: train(folder, resume=True, **settings), writes))
    train(folder, resume=True, **settings)
    assert result(folder) == result(tmp_path / "whole")


def test_an_odd_number_of_halves_is_refused(tmp_path):
    with pytest.raises(HeadEditError, match="bootstrap: found 5, expected an even number"):
        train(tmp_path, bootstrap=5)


def test_edits_without_gates_have_nothing_to_select(tmp_path):
    edits = headedit.attach(tiny_model("llama"), config=headedit.EditConfig(gates="none"))
    with pytest.raises(HeadEditError, match="no gates"):
        headedit.fit(edits, ROWS, output_dir=tmp_path, bootstrap=2, recipe="refit", epochs=1, progress=False)
