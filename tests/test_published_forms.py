"""The published runs by name: JoLA's released code step by step, its paper's rates, LoFiT's schedule, given heads."""

import math

import numpy as np
import pytest
import torch
from run_inputs import save_model, save_records
from tiny import tiny_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

import headedit
from headedit import EditConfig, HeadEditError
from headedit.cli.main import main
from headedit.cli.train import NOTHING_LEARNT
from headedit.data.batches import PadRight
from headedit.edits import site_edit
from headedit.edits.gate_set import GateIndex, open_gates
from headedit.training.config import read_run
from headedit.training.loop.trainer import HeadEditTrainer
from headedit.training.recipes import make_recipe

ROWS = [
    {"input_ids": row, "labels": [-100] * 3 + row[3:]}
    for row in torch.randint(3, 128, (8, 9), generator=torch.Generator().manual_seed(1)).tolist()
]
FORMS = ["jola-paper", "jola-released"]


def fitted(recipe, folder, rows=ROWS, *, config=None, **fields):
    edits = headedit.attach(tiny_model("llama"), config=config)
    return edits, headedit.fit(edits, rows, output_dir=folder, recipe=recipe, progress=False, **fields)


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every group, and AdamW's settings, at each step of the trainings of a test."""
    seen = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            seen.append(
                [{key: group[key] for key in ("lr", "eps", "weight_decay")} for group in optimizer.param_groups]
            )

    plain = HeadEditTrainer.__init__

    def init(self, *args, callbacks=(), **kwargs):
        plain(self, *args, callbacks=[*callbacks, Watch()], **kwargs)

    monkeypatch.setattr(HeadEditTrainer, "__init__", init)
    return seen


class Published:
    """JoLA's released code in plain torch: a loop over heads, its penalty, its schedules, and AdamW.

    Args:
        vectors: A and v of every head, and log_g1 and log_g2 [H, 1], by layer: the start.
    """

    def __init__(self, model, layers):
        self.model, self.layers = model.requires_grad_(False).train(), layers
        for layer in layers:
            for tensor in (*layer["A"], *layer["v"], layer["log_g1"], layer["log_g2"]):
                tensor.requires_grad_(True)
        for i, decoder in enumerate(model.model.layers):
            decoder.self_attn.o_proj.register_forward_pre_hook(lambda module, args, i=i: (self.edited(args[0], i),))
        self.heads = model.config.num_attention_heads

    def edited(self, z, i):
        width = z.shape[-1] // self.heads
        layer, edited = self.layers[i], z.clone()
        g1, g2 = (
            self.gates(layer[name], noise) for name, noise in zip(("log_g1", "log_g2"), self.noise[i], strict=True)
        )
        for h, (A, v) in enumerate(zip(layer["A"], layer["v"], strict=True)):
            part = slice(h * width, (h + 1) * width)
            edited[:, :, part] = torch.mul(A * g2[h] + 1, z[:, :, part].clone()) + g1[h] * v
        return edited

    def gates(self, log_gate, uniform, low=-0.1, high=1.1, temperature=0.33, eps=1e-6):
        noise = (1 - 2 * eps) * uniform.unsqueeze(-1) + eps
        concrete = torch.sigmoid((torch.log(noise) - torch.log(1 - noise) + log_gate) / temperature)
        return torch.clamp(concrete * (high - low) + low, 0, 1)

    def penalty(self, log_alpha, temperature=0.33, eps=1e-6):
        p_open = torch.sigmoid(log_alpha - temperature * math.log(0.1 / 1.1))
        return torch.clamp(p_open, eps, 1.0 - eps).sum() / p_open.size(0)

    def train(self, batch, noises, *, lr=5e-3, warmup=50):
        """One step for each set of random numbers; returns the plain losses and the penalties."""
        groups = [tensor for layer in self.layers for tensor in (*layer["A"], *layer["v"])]
        groups += [layer[name] for layer in self.layers for name in ("log_g1", "log_g2")]
        optimizer, total = torch.optim.AdamW(groups, lr=lr, eps=1e-8, weight_decay=0.0), len(noises)
        losses, penalties, gated_lambda = [], [], 0.1
        for step, self.noise in enumerate(noises):
            share = (step - warmup) / max(1, total - warmup)
            factor = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
            optimizer.param_groups[0]["lr"] = lr * factor
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
            g1, g2 = (sum(self.penalty(layer[name]) for layer in self.layers) for name in ("log_g1", "log_g2"))
            number = len(self.layers) * self.heads
            penalty = gated_lambda * g1 / number + (1 - gated_lambda) * g2 / number
            optimizer.zero_grad()
            (loss + penalty).backward()
            nn.utils.clip_grad_norm_(groups, 1.0)
            optimizer.step()
            gated_lambda = 0.1 * math.exp(-0.01 * (step + 1))  # the schedule counts before it is read
            losses.append(loss.item())
            penalties.append(penalty.item())
        return losses, penalties


def start_of(edits):
    """The edits as the released code names their parts, by layer."""
    return [
        {
            "A": [row.clone() for row in edit.vectors["scale"].detach()],
            "v": [row.clone() for row in edit.vectors["offset"].detach()],
            "log_g1": edit.gates["offset_gate"].detach().clone().unsqueeze(-1),
            "log_g2": edit.gates["scale_gate"].detach().clone().unsqueeze(-1),
        }
        for edit in edits.module
    ]


def test_the_released_form_takes_the_steps_of_the_released_code_on_the_same_random_numbers(tmp_path, monkeypatch):
    """60 steps, 50 of them of warm-up: every loss, every penalty, and every vector and gate at the end."""
    drawn, starts = [], []
    edits = headedit.attach(tiny_model("llama"))
    plain = site_edit.gate_noise

    def kept(edited, values, group=None):
        noise = plain(edited, values, group)
        if noise:
            if not starts:
                starts.append(start_of(edits))
            drawn.append([noise[edit].view(2, -1).clone() for edit in edited])
        return noise

    monkeypatch.setattr(site_edit, "gate_noise", kept)
    settings = {"recipe": "jola-released", "epochs": 60, "arguments": {"logging_steps": 1}}
    run = headedit.fit(edits, ROWS, output_dir=tmp_path, progress=False, **settings)
    assert len(drawn) == run.record["steps"] == 60
    published = Published(tiny_model("llama"), starts[0])
    losses, penalties = published.train(PadRight()(ROWS), drawn)
    rows = [row for row in run.history.rows if "loss" in row]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    assert [row["penalty"] for row in rows[:-1]] == pytest.approx(penalties[1:], rel=1e-4)  # logged after the step
    moved = 0.0
    for ours, theirs, start in zip(start_of(edits), published.layers, start_of(edits), strict=True):
        for name in ("A", "v"):
            assert torch.allclose(torch.stack(ours[name]), torch.stack(theirs[name]).detach(), atol=1e-4), name
            moved = max(moved, torch.stack(start[name]).abs().max().item())
        for name in ("log_g1", "log_g2"):
            assert torch.allclose(ours[name], theirs[name].detach(), atol=1e-4), name
    assert moved > 0.05


@pytest.mark.parametrize("heads", [4, 8])
def test_the_gates_of_the_released_form_start_as_xaviers_rule_draws_them(heads, tmp_path, monkeypatch):
    """With learning rates too small to move anything; the rule's bound is √(6 / (H + 1))."""
    edits = headedit.attach(tiny_model("llama", num_attention_heads=heads, num_hidden_layers=8))
    headedit.fit(edits, ROWS, output_dir=tmp_path, recipe="jola-released", epochs=1, vector_lr=1e-9, progress=False)
    gates = torch.stack([gate.detach() for gate in edits.gate_parameters()])
    bound = math.sqrt(6 / (heads + 1))
    probe = nn.init.xavier_uniform_(torch.empty(heads, 1)).abs().max().item()
    assert max(gates.abs().max().item(), probe) < bound + 1e-6
    assert gates.abs().max().item() > 0.8 * bound
    assert abs(gates.mean().item()) < 0.25 * bound
    vectors = torch.cat([vector.detach().flatten() for vector in edits.vector_parameters()])
    assert vectors.std().item() == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("config", [EditConfig(gates="shared"), EditConfig(vectors="offset"), EditConfig(gates="none")])
def test_the_released_form_refuses_edits_that_its_code_does_not_have(config, tmp_path):
    with pytest.raises(HeadEditError, match=r"'jola-released' needs both vectors with a gate each"):
        fitted("jola-released", tmp_path, config=config, epochs=1)


def test_the_paper_form_has_the_rates_that_the_paper_prints(tmp_path, rates):
    """5e-4 · 0.1 · e^(−0.01 t) for vectors and gates alike, after one epoch (four steps) of linear warm-up."""
    fitted("jola-paper", tmp_path, batch_size=2, epochs=5)
    assert len(rates) == 20
    for step, groups in enumerate(rates):
        wanted = 5e-5 * (step / 4 if step < 4 else math.exp(-0.01 * (step - 4)))
        assert [group["lr"] for group in groups] == pytest.approx([wanted] * len(groups))
        assert {group["eps"] for group in groups} == {1e-6}
        assert {group["weight_decay"] for group in groups} == {0.0}


@pytest.mark.parametrize("name", FORMS)
def test_one_learning_rate_sets_that_of_vectors_and_gates_in_both_forms(name, tmp_path, rates):
    fitted(name, tmp_path, epochs=3, arguments={"warmup_steps": 0, "lr_scheduler_type": "constant"}, vector_lr=7e-4)
    assert {group["lr"] for groups in rates for group in groups} == {7e-4}


def test_the_configs_of_the_two_forms_have_the_published_settings():
    paper, released = read_run("jola-paper"), read_run("jola-released")
    for run in (paper, released):
        assert (run.data.examples, run.data.max_length, run.seed) == (200, 400, 42)
        assert (run.recipe["epochs"], run.recipe["batch_size"], run.recipe["patience"]) == (20, 8, 2)
        assert (run.edits.temperature, run.edits.stretch) == (0.33, (-0.1, 1.1))
    assert paper.recipe == {"name": "jola-paper", **vars(make_recipe("jola-paper", {}))}
    assert released.recipe == {"name": "jola-released", **vars(make_recipe("jola-released", {}))}
    assert (paper.edits.eval_gate, released.edits.eval_gate) == ("expectation", "clip")
    assert (released.recipe["vector_lr"], released.recipe["lr_schedule"]) == (5e-3, "cosine")


def test_the_released_lofit_falls_linearly_without_warm_up_and_without_decay(tmp_path, rates):
    fitted("lofit-released", tmp_path, batch_size=4, epochs=3, heads=2)
    assert len(rates) == 12
    for stage, peak in ((rates[:6], 5e-3), (rates[6:], 1e-2)):
        for step, groups in enumerate(stage):
            trained = [group["lr"] for group in groups if group["lr"] > 0]
            assert trained == pytest.approx([peak * (1 - step / 6)] * len(trained))
            assert {group["weight_decay"] for group in groups} == {0.0}
            assert {group["eps"] for group in groups} == {1e-8}


def test_the_released_lofit_rounds_the_number_of_heads_down():
    assert [make_recipe("lofit-released", {}).count(heads) for heads in (1024, 64, 25, 8)] == [102, 6, 2, 1]
    assert make_recipe("lofit", {}).count(25) == 2
    assert make_recipe("lofit-released", {"share": 0.29}).count(100) == 29


def saved(folder, heads=((1, 3), (0, 2), (1, 0))):
    np.save(folder / "top_heads.npy", np.array(heads))
    return str(folder / "top_heads.npy")


@pytest.mark.parametrize("recipe", ["lofit", "lofit-released"])
@pytest.mark.parametrize("form", ["file", "pairs"])
def test_lofit_edits_the_heads_that_it_is_given(form, recipe, tmp_path):
    pairs = [[1, 3], [0, 2], [1, 0]]
    given = {"file": saved(tmp_path), "pairs": pairs}[form]
    edits, run = fitted(recipe, tmp_path / "out", given_heads=given, heads=2, epochs=2)
    assert set(open_gates(edits.module)) == {GateIndex(1, "offset", 3), GateIndex(0, "offset", 2)}
    assert {row["stage"] for row in run.history.rows if "stage" in row} == {"edit"}
    assert run.record["settings"]["given_heads"] == pairs
    moved = edits.module.site_edits[1].vectors["offset"][3].detach()
    assert moved.abs().max() > 5e-3


def test_lofit_is_trained_on_given_heads_from_the_command_line(tmp_path):
    model, data = save_model(tmp_path / "model"), save_records(tmp_path, "commonsense", 8)
    words = ["train", "--recipe", "lofit-released", "--model", model, "--data", data, "--output", str(tmp_path / "out")]
    settings = ["given_heads=" + saved(tmp_path), "heads=2", "epochs=1", "data.valid=null"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *(word for setting in settings for word in ("--set", setting))])
    assert ended.value.code in (0, NOTHING_LEARNT)
    found = headedit.load(headedit.load_model(model), tmp_path / "out")
    assert found.count_open()["any"] == (2, 8)
    assert {(gate.site, gate.head) for gate in open_gates(found.module)} == {(1, 3), (0, 2)}


def test_the_heads_in_a_file_are_part_of_the_resolved_config(tmp_path):
    given = {"recipe.name": "lofit", "recipe.given_heads": saved(tmp_path), "model.name": "m", "data.train": "d.json"}
    run = read_run(None, given)
    assert run.recipe["given_heads"] == [[1, 3], [0, 2], [1, 0]]
    assert read_run(run.save(tmp_path)).recipe == run.recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"given_heads": [[0, 1, 2]]}, r"expected pairs of a layer and a head, both counted from 0"),
        ({"given_heads": [[0, -1]]}, r"expected pairs of a layer and a head"),
        ({"given_heads": []}, r"expected pairs of a layer and a head"),
        ({"given_heads": [[1, 2], [1, 2]]}, r"head 2 of layer 1 is named twice"),
        ({"given_heads": [[1, 2]], "heads": 2}, r"heads: found 2, expected 1 to 1, the number of given_heads"),
        ({"given_heads": "nowhere.npy"}, r"nowhere\.npy: no array can be read"),
        ({"given_heads": [[2, 0]]}, r"found layer 2, head 0; the edited layers are 0 to 1, with 4 heads"),
        ({"given_heads": [[0, 4]]}, r"found layer 0, head 4; the edited layers"),
    ],
)
def test_heads_that_cannot_be_edited_are_refused_by_name(fields, message, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        fitted("lofit", tmp_path / "out", epochs=1, **fields)


def test_a_file_of_something_else_than_heads_is_refused(tmp_path):
    np.save(tmp_path / "top_heads.npy", np.zeros((4, 2)))
    with pytest.raises(HeadEditError, match=r"top_heads\.npy: found float32 of shape \(4, 2\), expected whole numbers"):
        make_recipe("lofit", {"given_heads": str(tmp_path / "top_heads.npy")})
