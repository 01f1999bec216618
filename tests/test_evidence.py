"""One table of all that is known of every head, and whether the signs of an important head agree."""

import io
import math
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import randomise
from zoo import zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.bench.recovery.planted import plant, write
from headedit.demo import MODEL_FOLDER, tasks
from headedit.hf.loading import load_model, load_tokenizer
from headedit.interpret import plots
from headedit.interpret.evidence.agreement import agreement, separation
from headedit.interpret.evidence.attribution import attribute, integrate
from headedit.interpret.evidence.causal import leave_one_out, patch
from headedit.interpret.evidence.iti import iti
from headedit.interpret.evidence.table import evidence, own_or_other
from headedit.interpret.evidence.tokens import tokens

pandas = pytest.importorskip("pandas")
pytest.importorskip("nnsight")

OPEN = [(0, 2), (1, 5), (2, 0), (2, 7), (3, 3)]
RECORDS = tasks.records("reverse", 12, cued=False, seed=1)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(MODEL_FOLDER))


@pytest.fixture(scope="module")
def edits():
    """The embedded model with five edited heads: three with both vectors, one with an offset, one with a scale."""
    handle = headedit.attach(load_model(str(MODEL_FOLDER), device="cpu"), config=EditConfig(gate_init=-10.0))
    generator = torch.Generator().manual_seed(0)
    for i, (layer, head) in enumerate(OPEN):
        offset = 2 * torch.randn(16, generator=generator)
        handle.set_head(layer, head, offset=None if i == 1 else offset, scale=1.0 if i == 0 else 0.2)
    return handle


@pytest.fixture(scope="module")
def frame(edits, tokenizer):
    return evidence(edits, RECORDS, tokenizer=tokenizer, patches=True, batch_size=20, progress=False)


def places(frame):
    return list(zip(frame["layer"], frame["head"], strict=True))


def test_the_table_has_a_row_for_every_head_with_its_edit(frame, edits):
    assert places(frame) == [(layer, head) for layer in range(4) for head in range(8)]
    assert set(frame["kind"]) == {"attention"}
    assert [place for place, there in zip(places(frame), frame["open"], strict=True) if there] == OPEN
    gates = edits.gates()
    for (layer, head), row in zip(places(frame), frame.to_dict("records"), strict=True):
        acting = {name: vector[head] for name, vector in edits.module.site_edits[layer].effective().items()}
        assert row["gate_offset"] == gates.offset[layer, head]
        assert row["gate_scale"] == gates.scale[layer, head]
        assert row["gate"] == max(row["gate_offset"], row["gate_scale"])
        assert row["offset_norm"] == pytest.approx(acting["offset"].norm().item())
        assert row["scale_norm"] == pytest.approx(acting["scale"].norm().item())


def test_the_columns_are_the_results_of_the_public_functions(frame, edits, tokenizer):
    options = {"tokenizer": tokenizer, "batch_size": 20, "progress": False}
    found = attribute(edits, RECORDS, **options)
    exact = leave_one_out(edits, RECORDS, heads="all", **options)
    columns = {
        "contribution": found.contribution,
        "share": found.share,
        "attribution": found.attribution,
        "patch_attribution": found.patch,
        "integrated": integrate(edits, RECORDS, **options),
        "effect": exact.effects,
        "effect_error": exact.errors,
        "patch_base": patch(edits, RECORDS, into="base", **options).effects,
        "patch_edited": patch(edits, RECORDS, into="edited", **options).effects,
    }
    for name, values in columns.items():
        assert frame[name].tolist() == values.tolist(), name
    assert (frame.loc[~frame["open"], ["effect", "effect_error", "attribution", "contribution"]] == 0).all(axis=None)
    assert (frame.loc[frame["open"], "effect"] != 0).all()
    words = {(w.head.layer, w.head.head): w.weights for w in tokens(edits, tokenizer, top=5, progress=False)}
    for place, row in zip(places(frame), frame.to_dict("records"), strict=True):
        said = words.get(place)
        assert row["promotes"] == (None if said is None else [token for token, _ in said.promotes])
        assert row["suppresses"] == (None if said is None else [token for token, _ in said.suppresses])
    assert frame["promotes"].notna().sum() == 4
    assert frame.attrs["loss"] == found.loss
    assert frame.attrs["base_loss"] == found.base_loss
    assert (frame.attrs["examples"], frame.attrs["read"]) == (12, "weights")


def test_probes_tell_own_responses_from_those_of_others(frame, edits, tokenizer):
    rows = [
        {"input_ids": ids + response, "labels": [-100] * len(ids) + response}
        for ids, response in (([3, 4], [5, 2]), ([6], [5, 2]), ([7, 8], [9]))
    ]
    examples, labels = own_or_other(rows, tokenizer)
    assert [e["input_ids"] for e in examples] == [[3, 4, 5], [3, 4, 9], [6, 5], [6, 9], [7, 8, 9], [7, 8, 5]]
    assert labels == [1, 0] * 3
    assert frame["probe_accuracy"].between(0, 1).all()
    assert frame.attrs["probe_baseline"] == {"attention": 0.5}
    assert frame["probe_accuracy"].max() > 0.6
    examples = [{"input_ids": ids} for ids in torch.randint(3, 30, (16, 5)).tolist()]
    found = iti(edits, examples, [0, 1] * 8, progress=False)
    given = evidence(edits, RECORDS[:4], tokenizer=tokenizer, probe=found, steps=1, progress=False)
    assert given["probe_accuracy"].tolist() == pytest.approx(found.accuracy.flatten().tolist())


def test_measured_tokens_include_scales_and_closed_heads_have_none(edits, tokenizer):
    found = evidence(
        edits, RECORDS[:8], tokenizer=tokenizer, probe=False, read="measured", top=3, steps=1, progress=False
    )
    assert found["promotes"].notna().tolist() == found["open"].tolist()
    assert {len(words) for words in found["suppresses"].dropna()} == {3}
    assert found["probe_accuracy"].isna().all()
    assert found.attrs["probe_baseline"] == {}


def test_the_table_survives_json_and_csv(frame):
    back = pandas.read_json(io.StringIO(frame.to_json(orient="records")))
    assert back["effect"].tolist() == pytest.approx(frame["effect"].tolist(), abs=1e-9)
    assert back["promotes"].tolist()[OPEN[0][0] * 8 + OPEN[0][1]] == frame["promotes"].iloc[2]
    assert frame.to_csv().count("\n") == 33


def test_edits_without_an_open_head_and_of_other_kinds_have_a_table_too():
    config = EditConfig(sites=["attention", "linear"], gate_init=-10.0, vectors="offset")
    handle = headedit.attach(zoo_model("qwen3_5_text"), config=config)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 100, (4, 6)).tolist()]
    found = evidence(handle, rows, probe=False, steps=1, progress=False)
    assert set(found["kind"]) == {"attention", "linear"}
    assert (found["effect"] == 0).all()
    assert found["gate_scale"].isna().all()
    assert found["scale_norm"].isna().all()
    assert found["promotes"].isna().all()
    assert math.isnan(separation(found))
    with pytest.raises(HeadEditError, match="no head is open"):
        plots.agreement(found)


def ranks(values):
    """Rank of each value from 1, ties at their mean."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def pearson(x, y):
    dx, dy = ([v - sum(values) / len(values) for v in values] for values in (x, y))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / math.sqrt(sum(a * a for a in dx) * sum(b * b for b in dy))


def test_agreement_is_the_rank_correlation_over_open_heads(frame):
    found = agreement(frame, ["contribution", "effect", "gate"])
    opened = frame[frame["open"]]
    expected = pearson(ranks(opened["contribution"].tolist()), ranks(opened["effect"].tolist()))
    assert found.loc["contribution", "effect"] == pytest.approx(expected)
    assert math.isnan(found.loc["gate", "effect"])  # all are 1
    every = agreement(frame, ["contribution", "effect"], heads="all")
    expected = pearson(ranks(frame["contribution"].tolist()), ranks(frame["effect"].tolist()))
    assert every.loc["contribution", "effect"] == pytest.approx(expected)


def test_separation_is_the_share_of_pairs_in_order():
    table = pandas.DataFrame({"effect": [3.0, 1.0, 2.0, 1.0, math.nan], "open": [True, True, False, False, True]})
    assert separation(table) == (1 + 1 + 0 + 0.5) / 4
    assert separation(table, chosen=[True, False, True, False, False]) == 1.0
    assert math.isnan(separation(table, chosen=[True] * 5))


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_planted_heads_have_larger_effects_than_all_others(shape):
    planted = plant(shape, 3, examples=1, test_examples=16, tokens=16, edits=4)
    handle = headedit.attach(planted.model)
    write(handle, planted.values)
    found = evidence(handle, planted.test, probe=False, patches=True, steps=4, batch_size=16, progress=False)
    chosen = planted.truth["offset"] | planted.truth["scale"]
    assert [place in chosen for place in places(found)] == found["open"].tolist()
    assert separation(found, "effect") == 1.0
    assert (found.loc[found["open"], "effect"] > 2 * found.loc[found["open"], "effect_error"]).all()
    assert separation(found, "patch_edited") > 0.95
    assert separation(found, "integrated") == 1.0


def test_the_scatter_shows_every_open_head_and_the_correlation(frame):
    figure = plots.agreement(frame, signs=("contribution", "gate"), effect="effect")
    left, right = figure.axes
    rho = agreement(frame, ["contribution", "effect"]).iloc[0, 1]
    assert left.get_title() == f"ρ = {rho:+.2f}"
    assert "undefined" in right.get_title()
    points = {tuple(point) for dots in left.collections for point in getattr(dots, "get_offsets", list)().tolist()}
    opened = frame[frame["open"]]
    assert set(zip(opened["contribution"], opened["effect"], strict=True)) <= points
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["offset and scale (3)", "offset (1)", "scale (1)"]
    best = opened.sort_values("effect").iloc[-1]
    assert f"L{best['layer']}H{best['head']}" in [text.get_text() for text in left.texts]
    plt.close("all")


def test_a_sign_may_be_the_effect_itself(frame):
    left, right = plots.agreement(frame, signs=("effect", "effect")).axes
    assert left.get_title() == right.get_title() == "ρ = +1.00"
    plt.close("all")


def test_the_scatter_counts_the_heads_that_it_cannot_place_and_shows_those_of_size_0(frame):
    changed = frame.copy()
    first, second, *_ = changed.index[changed["open"]]
    changed.loc[first, "share"] = math.inf  # of a head without an output
    changed.loc[second, ["offset_norm", "scale_norm"]] = 0.0
    figure = plots.agreement(changed, signs=("share", "gate"))
    left, right = figure.axes
    assert left.get_xlabel().endswith("(without a finite number, not drawn: 1)")
    assert "not drawn" not in right.get_xlabel()
    assert "of size 0 (1)" in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close("all")


def test_the_scatter_names_the_kind_of_a_head_that_is_not_attention(frame):
    changed = frame.assign(kind="mlp")
    (axis,) = plots.agreement(changed, signs=("gate",)).axes
    assert axis.texts
    assert all(text.get_text().endswith(" mlp") for text in axis.texts)
    plt.close("all")


def test_a_mistake_in_evidence_is_explained(frame, edits, tokenizer, llama, monkeypatch):
    with pytest.raises(HeadEditError, match="no column 'efect'"):
        separation(frame, "efect")
    with pytest.raises(HeadEditError, match="chosen: found 2 values for 32 heads"):
        separation(frame, chosen=[True, False])
    with pytest.raises(HeadEditError, match="heads: found 'some', expected 'open' or 'all'"):
        agreement(frame, heads="some")
    with pytest.raises(HeadEditError, match="no sign is named"):
        plots.agreement(frame, signs=())
    with pytest.raises(HeadEditError, match="The column 'kind' of the evidence holds no numbers"):
        plots.agreement(frame, signs=("kind",))
    with pytest.raises(HeadEditError, match="The column 'promotes' of the evidence holds no numbers"):
        separation(frame, "promotes")
    with pytest.raises(HeadEditError, match="columns: found 5, expected a list of columns"):
        agreement(frame, 5)
    for call in (agreement, separation, plots.agreement):
        with pytest.raises(HeadEditError, match="evidence: found a HeadEdits, expected the frame that"):
            call(edits)
    with pytest.raises(HeadEditError, match="read: found 'guessed'"):
        evidence(edits, RECORDS, read="guessed")
    options = {"top": 0, "steps": "8", "seed": None, "probe": "yes"}
    for name, value in options.items():
        with pytest.raises(HeadEditError, match=f"{name}: found "):
            evidence(edits, RECORDS, **{name: value})
    small, rows = headedit.attach(llama), [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}]
    randomise(small)
    with pytest.raises(HeadEditError, match="tokens, but the model's unembedding has 128"):
        evidence(small, rows, tokenizer=tokenizer, probe=False, progress=False)
    other = iti(edits, [{"input_ids": [3, 4, i]} for i in range(8)], [0, 1] * 4, progress=False)
    with pytest.raises(HeadEditError, match=r"probe: is of \(4, 8\) layers and heads"):
        evidence(small, rows, probe=other, progress=False)
    with pytest.raises(HeadEditError, match="probe: example 1 is not a prompt followed by a response"):
        own_or_other([{"input_ids": [3, 4], "labels": [-100, 9]}], None)
    with pytest.raises(HeadEditError, match="all examples have the same response"):
        own_or_other([{"input_ids": [3, 4], "labels": [-100, 4]}] * 2, None)
    with pytest.raises(HeadEditError, match="expected the handle of edits"):
        evidence(llama, RECORDS, tokenizer=tokenizer)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(HeadEditError, match="pip install pandas"):
        evidence(edits, RECORDS, tokenizer=tokenizer)
