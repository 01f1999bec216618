"""The recipes: which vectors each trains, which gates it keeps open, and which settings it refuses."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import logits, tiny_model

import headedit
from headedit import EditConfig, HeadEditError, Run
from headedit.data.batches import PadRight
from headedit.data.losses import example_losses
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates, heads_of, open_gates
from headedit.runs.history import History
from headedit.runs.pruning_path import Level, PruningPath
from headedit.runs.stability import agreement, expected_jaccard, jaccard
from headedit.training.recipes import RECIPES, make_recipe
from headedit.training.recipes.jola import add_noise
from headedit.training.recipes.model_selection import Search, choose, levels_of
from headedit.training.recipes.pruning import Pruning, level_sizes
from headedit.training.recipes.session import Session

PLANTED = [(GateIndex(0, "offset", 2), 1.0), (GateIndex(1, "scale", 1), 2.0)]
QUICK = {"epochs": 6, "min_steps": 40, "progress": False}
SHORT = {"search_epochs": 6, **QUICK}


def problem(examples=48):
    """A tiny Llama, and examples labelled by it with two planted edits."""
    model = tiny_model("llama", hidden_size=64, initializer_range=0.12, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=1.5, generator=torch.Generator().manual_seed(1))
    edits = headedit.attach(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for gate, size in PLANTED:
            edits.module.site_edits[gate.site].vectors[gate.vector][gate.head] = size * torch.randn(
                16, generator=generator
            )
    freeze_gates(edits.module, [gate for gate, _ in PLANTED])
    ids = torch.randint(3, 128, (examples, 24), generator=generator)
    answers = logits(model, ids).argmax(-1)
    edits.detach()
    return model, [
        {"input_ids": row.tolist(), "labels": [-100, *answer[:-1].tolist()]}
        for row, answer in zip(ids, answers, strict=True)
    ]


@pytest.fixture(scope="module")
def localised(tmp_path_factory):
    """A run of ``localise`` on the planted problem with a validation set: model, edits, run, rows."""
    model, rows = problem(144)
    edits = headedit.attach(model)
    folder = tmp_path_factory.mktemp("localised")
    run = headedit.fit(edits, rows[:96], rows[96:], output_dir=folder, epochs=25, progress=False)
    return SimpleNamespace(model=model, edits=edits, run=run, rows=rows, kept=edits.snapshot())


def test_localise_finds_the_planted_heads_and_no_others(localised):
    found = PruningPath.read(localised.run.output_dir)
    assert set(found.first(gates=2)) == {gate for gate, _ in PLANTED}
    assert open_gates(localised.edits.module) == sorted(gate for gate, _ in PLANTED)
    assert localised.run.record["open"]["any"] == {"open": 2, "of": 8}


def test_the_pruning_path_has_the_measured_levels(localised):
    path = localised.run.path
    numbers = [level.gates for level in path.levels]
    assert numbers == sorted(numbers, reverse=True)
    assert set(level_sizes(16, 1)) <= set(numbers)
    assert sorted(path.levels[0].order) == all_gates(localised.edits.module)
    assert path.chosen == 2
    assert [path.level_of(k).gates for k in (1, 2, 16)] == [1, 2, 16]
    at_one, at_two = path.level_of(1), path.level_of(2)
    assert at_one.loss > 5 * at_two.loss
    assert json.loads((localised.run.output_dir / "path.json").read_text())["chosen"] == 2


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_a_finished_run_restores_the_edits_with_any_number_of_heads(localised, heads):
    edits, again = localised.edits, Run.read(localised.run.output_dir)
    level = again.at(heads=heads, edits=edits)
    try:
        assert edits.count_open()["any"][0] == heads
        assert set(open_gates(edits.module)) == set(localised.run.path.first(heads=heads))
        if level.gates == len(open_gates(edits.module)):
            measured = example_losses(localised.model, localised.rows[96:], PadRight(0), 8).mean().item()
            assert measured == pytest.approx(level.loss, rel=1e-4)
    finally:
        edits.restore(localised.kept)


def test_run_at_refuses_what_is_impossible_and_says_why(localised, tmp_path, llama):
    with pytest.raises(HeadEditError, match=r"heads: found 9, expected 1 to 8, the number of heads"):
        localised.run.at(heads=9)
    with pytest.raises(HeadEditError, match=r"give heads=\.\.\. or gates=\.\.\."):
        localised.run.at()
    with pytest.raises(HeadEditError, match="read from disk; give the handle"):
        Run.read(localised.run.output_dir).at(heads=1)
    edits = headedit.attach(llama)
    plain = headedit.fit(edits, problem(8)[1], recipe="ungated", output_dir=tmp_path, epochs=1, min_steps=1)
    with pytest.raises(HeadEditError, match=r"holds no path\.json"):
        plain.at(heads=1)


def test_run_at_leaves_edits_that_are_merged_or_of_another_shape_as_they_are(tmp_path, llama):
    edits = headedit.attach(llama)
    vectors = {"0.scale": torch.ones(1, edits.sites[0].head_dim)}
    PruningPath([Level(order=[GateIndex(0, "scale", 1)], vectors=vectors)], 1).save(tmp_path)
    run = Run(tmp_path, History(None), {}, edits)
    for given, message in (("1", "heads: found the text '1', expected a whole"), (1.5, r"heads: found 1\.5, expected")):
        with pytest.raises(HeadEditError, match=message):
            run.at(heads=given)
    other = headedit.attach(tiny_model("gpt2"))
    with pytest.raises(HeadEditError, match=r"of other edits: it has scales of 16 numbers on 1 heads of site 0"):
        run.at(heads=1, edits=other)
    edits.set_head(1, 2, scale=0.5)
    before = edits.snapshot()
    edits.merge_adapter()
    with pytest.raises(HeadEditError, match="merged"):
        run.at(heads=1)
    edits.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(before, edits.snapshot(), strict=True))
    assert run.at(heads=1).gates == 1
    assert open_gates(edits.module) == [GateIndex(0, "scale", 1)]


def test_the_refit_uses_what_was_held_out_for_the_search(tmp_path):
    model, rows = problem(16)
    run = headedit.fit(
        headedit.attach(model),
        rows,
        output_dir=tmp_path,
        epochs=1,
        search_epochs=1,
        min_steps=1,
        progress=False,
        effort="thorough",
    )
    by_stage: dict[str, int] = {}
    for row in run.history.rows:
        if "stage" in row:
            by_stage[row["stage"]] = row["step"]
    assert list(by_stage) == [*(f"search {i} of 4" for i in (1, 2, 3, 4)), "search with all", "refit"]
    assert list(by_stage.values()) == [2, 4, 6, 8, 10, 12]  # 12 of 16 examples in a fold, 16 in the last two
    assert None not in [run.path.level_of(gates).loss for gates in (16, 1)]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("localise", {"min_steps": 10, "search_epochs": 4}), ("jola", {})],
    ids=["localise", "jola"],
)
def test_a_budget_limits_the_number_of_open_gates(recipe, settings, tmp_path):
    model, rows = problem(24)
    edits = headedit.attach(model)
    settings = {"recipe": recipe, "epochs": 4, "budget": 0.13, "progress": False, **settings}
    run = headedit.fit(edits, rows, rows[:8], output_dir=tmp_path, **settings)
    assert len(open_gates(edits.module)) <= 2
    assert run.record["settings"]["budget"] == 0.13
    fresh = tiny_model("llama", hidden_size=64, tie_word_embeddings=False)
    assert len(open_gates(headedit.load(fresh, tmp_path).module)) <= 2


def test_localise_keeps_the_number_of_heads_that_is_asked_for(tmp_path):
    model, rows = problem(24)
    edits = headedit.attach(model)
    headedit.fit(edits, rows, rows[:8], heads=3, output_dir=tmp_path, **SHORT)
    assert edits.count_open()["any"][0] == 3


@pytest.mark.parametrize(
    ("config", "gates"),
    [
        ({"gates": "shared"}, 8),
        ({"vectors": "offset"}, 8),
        ({"vectors": "scale"}, 8),
        ({"sites": ["mlp"]}, 4),
        ({"sites": ["attention", "mlp"]}, 20),
        ({"gates": "none"}, 0),
    ],
)
def test_localise_runs_on_the_ablations_of_the_paper(tmp_path, config, gates):
    model, rows = problem(24)
    edits = headedit.attach(model, config=EditConfig(**config))
    run = headedit.fit(
        edits, rows, rows[:8], output_dir=tmp_path, epochs=2, search_epochs=2, min_steps=8, progress=False
    )
    assert len(all_gates(edits.module)) == gates
    if gates:
        assert len(open_gates(edits.module)) == run.path.chosen <= gates
    else:
        assert all(vector.abs().sum() > 0 for vector in edits.vector_parameters())
    trained = edits.snapshot()
    loaded = headedit.load(edits.detach(), tmp_path).snapshot()
    assert all(torch.equal(a, b) for a, b in zip(trained, loaded, strict=True))
    assert all(torch.isfinite(t).all() for t in trained)


def test_pruning_keeps_the_gates_that_contribute_to_the_loss(llama):
    """One offset has a gradient along itself; the vectors of all others are at right angles to theirs, or zero."""
    edits = headedit.attach(llama)
    pruning = Pruning(edits, smallest=1, window=(0.0, 1.0), memory=0.9)
    for edit in edits.module:
        for vector in (edit.vectors["offset"], edit.vectors["scale"]):
            vector.grad = torch.ones_like(vector)
    with torch.no_grad():
        edits.module.site_edits[0].vectors["offset"][1] = 1.0
        edits.module.site_edits[1].vectors["scale"][2, :2] = torch.tensor([30.0, -30.0])
        edits.module.site_edits[1].vectors["scale"][3] = 0.01
    arguments = (None, SimpleNamespace(global_step=5, max_steps=5), None)
    pruning.on_pre_optimizer_step(*arguments)
    assert pruning.order()[:2] == [GateIndex(0, "offset", 1), GateIndex(1, "scale", 3)]
    pruning.on_step_end(*arguments)
    assert open_gates(edits.module) == pruning.alive == [GateIndex(0, "offset", 1)]
    assert sorted(pruning.order()) == all_gates(edits.module)
    assert pruning.order()[:2] == [GateIndex(0, "offset", 1), GateIndex(1, "scale", 3)]


def test_level_sizes_shrink_by_a_tenth_and_then_one_by_one():
    assert level_sizes(64, 1)[:4] == [64, 57, 51, 45]
    assert level_sizes(64, 1)[-9:] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert level_sizes(4, 3) == [4, 3]
    assert len(level_sizes(2048, 1)) < 80


def test_the_smallest_number_of_gates_that_is_as_good_as_the_best_is_chosen():
    spread = torch.tensor([-0.1, 0.1, -0.1, 0.1])  # standard error 0.058
    losses = {1: torch.full((4,), 2.0), 2: 1.05 + spread, 3: torch.full((4,), 1.0), 4: torch.full((4,), 1.01)}
    assert choose(losses, 4, 1.0, 0.0, 0.0) == 3
    assert choose(losses, 4, 1.0, 1.0, 0.0) == 2
    assert choose(losses, 4, 1.0, 0.5, 0.0) == 3
    assert choose(losses, 4, 11.0, 0.0, 0.006) == 2
    assert choose(losses, 1, 1.0, 0.0, 0.0) == 1


def test_levels_have_their_mean_loss_and_standard_error():
    order = [GateIndex(0, "offset", 0), GateIndex(0, "scale", 0), GateIndex(1, "scale", 0)]
    losses = {3: torch.tensor([1.0, 1.0]), 1: torch.tensor([2.0, 4.0])}
    levels = levels_of({k: order[:k] for k in (1, 2, 3)}, {1: {}, 2: {}, 3: {}}, losses)
    assert [(level.gates, level.heads, level.loss) for level in levels] == [(3, 2, 1.0), (2, 1, None), (1, 1, 3.0)]
    assert levels[2].standard_error == pytest.approx(math.sqrt(2) / math.sqrt(2))


def test_two_searches_are_merged_into_the_better_levels():
    a, b, c = GateIndex(0, "offset", 0), GateIndex(0, "offset", 1), GateIndex(0, "offset", 2)
    one = Search({3: [a, b, c], 2: [a, b], 1: [a]}, {3: {}, 2: {}, 1: {}}, losses_of({3: 1.0, 2: 2.0, 1: 3.0}))
    two = Search({2: [b, c], 1: [b]}, {2: {}, 1: {}}, losses_of({2: 1.5, 1: 3.5}))
    both = one.better(two)
    assert both.orders == {3: [a, b, c], 2: [b, c], 1: [a]}
    assert {gates: float(losses.mean()) for gates, losses in both.losses.items()} == {3: 1.0, 2: 1.5, 1: 3.0}


def losses_of(means):
    return {gates: torch.tensor([mean, mean]) for gates, mean in means.items()}


def test_gate_gradients_are_the_norms_of_gradients_of_each_gates_vectors(tmp_path):
    """Compared with gradients by hand, in units of the site's input; closed gates have a gradient too."""
    model, rows = problem(16)
    edits = headedit.attach(model)
    freeze_gates(edits.module, [PLANTED[0][0]])
    session = Session(edits, rows, None, tmp_path, 0, 0, False)
    found = session.gate_gradients(rows)
    batch = PadRight(0)(rows)
    by_hand = headedit.attach(edits.detach(), config=EditConfig(gates="none"))
    model(**batch).loss.backward()
    edit = by_hand.module.site_edits[1]
    assert found[GateIndex(1, "scale", 3)] == pytest.approx(edit.vectors["scale"].grad[3].norm().item(), rel=1e-3)
    unit = found[GateIndex(1, "offset", 0)] / edit.vectors["offset"].grad[0].norm().item()
    assert found[GateIndex(1, "offset", 2)] == pytest.approx(
        unit * edit.vectors["offset"].grad[2].norm().item(), rel=1e-3
    )
    assert math.log2(unit) == pytest.approx(round(math.log2(unit)), abs=1e-3)
    assert len(found) == 16


def test_lofit_edits_offsets_of_the_heads_with_the_largest_scales(tmp_path):
    model, rows = problem(96)
    edits = headedit.attach(model)
    run = headedit.fit(edits, rows, recipe="lofit", share=0.25, output_dir=tmp_path, progress=False, select_lr=5e-2)
    opened = open_gates(edits.module)
    assert len(opened) == 2
    assert {gate.vector for gate in opened} == {"offset"}
    assert all(edit.vectors["scale"].abs().sum() == 0 for edit in edits.module)
    stages = [row["stage"] for row in run.history.rows if "stage" in row]
    assert list(dict.fromkeys(stages)) == ["select", "edit"]
    steps = [row["step"] for row in run.history.rows]
    assert steps == sorted(steps)
    assert (1, 1) in heads_of(opened)  # the planted scale is the one that a scale has to find


def test_lofit_needs_both_vectors(llama, tmp_path):
    edits = headedit.attach(llama, config=EditConfig(vectors="offset"))
    with pytest.raises(HeadEditError, match="needs both vectors with a gate each"):
        headedit.fit(edits, problem(8)[1], recipe="lofit", output_dir=tmp_path, progress=False)


def test_refit_trains_the_vectors_of_open_gates_and_ungated_those_of_all(tmp_path):
    model, rows = problem(16)
    edits = headedit.attach(model)
    freeze_gates(edits.module, [PLANTED[0][0]])
    headedit.fit(edits, rows, recipe="refit", output_dir=tmp_path / "a", **QUICK)
    assert open_gates(edits.module) == [PLANTED[0][0]]
    assert edits.module.site_edits[0].vectors["offset"][2].abs().sum() > 0
    assert sum(int((p.abs().sum(-1) > 0).sum()) for p in edits.vector_parameters()) == 1
    headedit.fit(edits, rows, recipe="ungated", output_dir=tmp_path / "b", **QUICK)
    assert len(open_gates(edits.module)) == 16


@pytest.mark.parametrize("recipe", ["ist", "rst"])
def test_sparse_recipes_train_one_layer_per_step(tmp_path, recipe):
    """A quarter of two layers is one layer: a single step moves one of them."""
    model, rows = problem(16)
    edits = headedit.attach(model)
    options = {"recipe": recipe, "output_dir": tmp_path, "epochs": 1, "min_steps": 1, "progress": False}
    headedit.fit(edits, rows, batch_size=16, **options)
    moved = [bool(edit.vectors["offset"].abs().sum() > 0) for edit in edits.module]
    assert sorted(moved) == [False, True]
    assert len(open_gates(edits.module)) == 16
    assert all(parameter.requires_grad for parameter in edits.vector_parameters())


def test_jola_has_the_noise_of_the_paper_and_the_released_learning_rates(llama):
    recipe = make_recipe("jola", {})
    assert (recipe.vector_lr, recipe.gate_lr, recipe.epochs, recipe.batch_size) == (5e-3, 5e-3, 20, 8)
    assert (recipe.adam_epsilon, recipe.warmup_epochs, recipe.patience) == (1e-6, 1.0, 2)
    edits = headedit.attach(llama)
    add_noise(edits, 1e-3, seed=0)
    spread = torch.cat([vector.flatten() for vector in edits.vector_parameters()]).std().item()
    assert spread == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("schedule", ["linear", "cyclic", "adaptive", "exponential"])
def test_the_learning_rate_follows_its_schedule(tmp_path, schedule):
    model, rows = problem(16)
    options = {"recipe": "jola", "patience": None, "epochs": 6, "progress": False, "lr_schedule": schedule}
    run = headedit.fit(headedit.attach(model), rows, rows[:4], output_dir=tmp_path, **options)
    _, rates = run.history.column("learning_rate")
    peak = 5e-3
    expected = {  # at the last logged step, which shows the rate of the next one
        "linear": 0.0,
        "cyclic": peak * (0.5 + 0.5 * math.sin(2 * math.pi * 10 / 20)),
        "adaptive": peak,
        "exponential": peak * 0.1 * math.exp(-0.01 * 10),
    }
    assert rates[-1] == pytest.approx(expected[schedule], abs=1e-6)


def test_the_adaptive_schedule_needs_a_validation_set(llama, tmp_path):
    with pytest.raises(HeadEditError, match="'adaptive' follows the validation loss"):
        headedit.fit(headedit.attach(llama), problem(8)[1], recipe="jola", lr_schedule="adaptive", output_dir=tmp_path)


def test_offset_rates_are_in_units_of_the_activations(tmp_path):
    """With inputs four times as large, the offset learned in one step is four times as large."""
    moved = []
    for factor in (1.0, 4.0):
        model, rows = problem(8)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.v_proj.weight.mul_(factor)
                layer.self_attn.o_proj.weight.div_(factor)
        edits = headedit.attach(model)
        headedit.fit(
            edits, rows, recipe="ungated", output_dir=tmp_path / str(factor), epochs=1, min_steps=1, progress=False
        )
        moved.append(
            (
                edits.module.site_edits[0].vectors["offset"].abs().mean().item(),
                edits.module.site_edits[0].vectors["scale"].abs().mean().item(),
            )
        )
    assert moved[1][0] == pytest.approx(4 * moved[0][0], rel=0.02)
    assert moved[1][1] == pytest.approx(moved[0][1], rel=0.02)


def test_several_seeds_report_how_far_the_chosen_heads_agree(tmp_path):
    model, rows = problem(40)
    edits = headedit.attach(model)
    run = headedit.fit(edits, rows[:32], rows[32:], output_dir=tmp_path, seeds=2, seed=5, metric=lambda: 0.25, **SHORT)
    found = run.stability
    chosen = [heads_of(Run.read(f).path.first(gates=Run.read(f).path.chosen)) for f in (tmp_path, tmp_path / "seed-6")]
    assert found.seeds == [5, 6]
    assert found.heads == [len(c) for c in chosen]
    assert found.jaccard == pytest.approx(jaccard(*chosen))
    assert found.chance == pytest.approx(expected_jaccard(*found.heads, 8))
    assert found.metric.mean == 0.25
    assert len(found.validation_loss.values) == 2
    assert Run.read(tmp_path).stability == found
    kept = edits.snapshot()
    headedit.load(edits.detach(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.headedit.parameters(), strict=True))


def test_random_sets_of_heads_agree_as_often_as_the_formula_says():
    generator = torch.Generator().manual_seed(0)
    total, a, b = 32, 5, 9
    drawn = [
        jaccard(*({(0, int(i)) for i in torch.randperm(total, generator=generator)[:n]} for n in (a, b)))
        for _ in range(4000)
    ]
    assert expected_jaccard(a, b, total) == pytest.approx(sum(drawn) / len(drawn), abs=0.005)
    assert expected_jaccard(4, 4, 4) == 1.0
    assert agreement([{(0, 0)}, {(0, 0)}, {(0, 1)}], 2)[0] == pytest.approx(1 / 3)


def test_controls_are_measured_and_leave_the_edits_unchanged(tmp_path):
    model, rows = problem(40)
    edits = headedit.attach(model)
    run = headedit.fit(edits, rows[:32], rows[32:], output_dir=tmp_path, controls=True, metric=lambda: 1.0, **SHORT)
    found = run.controls
    assert list(found) == ["chosen heads", "matched norm", "random heads", "no gate"]
    assert found["random heads"]["gates"] == found["matched norm"]["gates"] == found["chosen heads"]["gates"]
    assert found["no gate"]["gates"] == 16
    assert found["chosen heads"]["validation_loss"] < found["matched norm"]["validation_loss"]
    assert found["chosen heads"]["validation_loss"] == pytest.approx(run.record["best_eval_loss"])
    kept = edits.snapshot()
    headedit.load(edits.detach(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.headedit.parameters(), strict=True))
    assert Run.read(tmp_path).controls == found


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_good_edits(tmp_path):
    model, rows = problem(32)
    edits = headedit.attach(model)
    calls = []

    def poisoned(module, args, output):
        if module.training:
            calls.append(1)
            if len(calls) == 11:
                return output * float("nan")
        return output

    handle = model.lm_head.register_forward_hook(poisoned)
    with pytest.raises(
        HeadEditError,
        match=r"NaN or infinite at step 11, so the run was stopped\. The edits of step 10, the last good ones",
    ):
        headedit.fit(edits, rows, recipe="jola", output_dir=tmp_path, patience=None, epochs=8, progress=False)
    handle.remove()
    assert not model.training
    kept = edits.snapshot()
    assert all(torch.isfinite(t).all() for t in kept)
    assert any(t.abs().sum() > 0 for t in kept)
    headedit.load(edits.detach(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.headedit.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "localize"}, r"no recipe 'localize'\. Did you mean 'localise'\? Recipes: localise, jola, lofit"),
        ({"budget": 0.0}, r"recipe localise: budget: found 0, expected a share of the gates above 0 and at most 1"),
        ({"budget": 1.5}, r"budget: found 1\.5, expected a share"),
        ({"recipe": "jola", "budget": -1}, r"recipe jola: budget: found -1"),
        ({"budget": 0.01}, r"budget: 0\.01 of 16 gates is less than one gate; the smallest budget here is 0\.062"),
        ({"lambda_offset": -0.1}, r"recipe localise: lambda_offset: found -0\.1, expected 0 or more"),
        ({"heads": 3, "budget": 0.5}, r"heads and budget: give one of them"),
        ({"heads": 20}, r"heads: found 20, expected 1 to 8"),
        ({"prune_from": 0.9}, r"prune_until: found 0\.9, expected more than prune_from"),
        ({"prune_until": 1.0}, r"prune_until: found 1\.0, expected a share above 0 and below 1"),
        ({"batch_size": 64}, r"The training set has 16 examples, fewer than the batch size of 64; give more"),
        ({"seeds": 0}, r"seeds: found 0, expected 1 or more"),
        ({"controls": True}, r"compared on validation examples or a metric; give one"),
        ({"recipe": "lofit", "share": 0.0}, r"recipe lofit: share: found 0\.0"),
        ({"recipe": "rst", "layer_share": 0.0}, r"recipe rst: layer_share: found 0\.0"),
        ({"recipe": "lofit", "select_lambda": -1.0}, r"select_lambda: found -1\.0, expected 0 or more"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_message_that_says_what_to_do(llama, tmp_path, options, message):
    with pytest.raises(HeadEditError, match=message):
        headedit.fit(
            headedit.attach(llama), problem(16)[1], output_dir=tmp_path / "out", **{"progress": False, **options}
        )


def test_every_recipe_documents_its_fields():
    assert RECIPES
    for name, cls in RECIPES.items():
        texts = "".join(base.__doc__ or "" for base in cls.__mro__)
        for field in vars(make_recipe(name, {})):
            assert f"{field}:" in texts, (name, field)


def test_gradients_of_gates_are_those_of_all_tokens_however_the_examples_are_batched(tmp_path):
    model, rows = problem(12)
    edits = headedit.attach(model)
    rows = [{**row, "labels": [-100] * i + row["labels"][i:]} for i, row in enumerate(rows)]
    rows = [row for row in rows if any(label != -100 for label in row["labels"][1:])]
    one, many = (
        Session(edits, rows, None, tmp_path / str(size), 0, 0, False, batch_size=size).gate_gradients(rows)
        for size in (1, 12)
    )
    assert one == pytest.approx(many, rel=1e-4)


def test_gradients_of_gates_keep_gradient_checkpointing_and_leave_dropout_out(tmp_path):
    model = tiny_model("opt", num_hidden_layers=6, dropout=0.5)
    edits = headedit.attach(model)
    rows = [{"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]}] * 2
    session = Session(edits, rows, None, tmp_path, 0, 0, False)
    plain = session.gate_gradients(rows)
    again = []
    layer = model.model.decoder.layers[3]
    layer.register_forward_hook(lambda *call: again.append(1))
    checkpointed = replace(session, arguments={"gradient_checkpointing": True})
    assert checkpointed.gate_gradients(rows) == pytest.approx(plain, rel=1e-4)
    assert len(again) == 2
    assert layer.dropout == 0.5
