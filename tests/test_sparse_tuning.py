"""IST and RST: which layers a step trains, how roll-outs change the scores, and that they leave nothing behind."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import headedit
from headedit import EditConfig, HeadEditError, HeadEditTrainer
from headedit.data.batches import PadRight
from headedit.training.sparse.layers import attenuated, find_layers, rolling_out
from headedit.training.sparse.sparse_tuning import SparseTuning, draw, draw_distinct, layer_count, updated_scores

TRAIN = [
    {"input_ids": row, "labels": [-100, *row[1:]]}
    for row in torch.randint(3, 128, (24, 9), generator=torch.Generator().manual_seed(1)).tolist()
]
BATCH = PadRight()(TRAIN[:5])
DEEP = {"llama": {"num_hidden_layers": 4}, "gpt2": {"n_layer": 4}, "gpt_neox": {"num_hidden_layers": 4}}
METHODS = ["edits", "lora", "ia3"]


class Watch(TrainerCallback):
    """Records which trainable parameters each step changes, and for which of them the optimiser sees a gradient."""

    def __init__(self, model, sparse):
        self.sparse, self.steps, self.gradients = sparse, [], []
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def values(self):
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def on_step_begin(self, *args, **kwargs):
        self.before = self.values()

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.gradients.append({name for name, p in self.parameters.items() if p.grad is not None})

    def on_step_end(self, *args, **kwargs):
        after = self.values()
        changed = {name for name, value in after.items() if not torch.equal(value, self.before[name])}
        self.steps.append((list(self.sparse.chosen), changed))


def deep(model_type="llama", method="edits"):
    """A model of 4 layers that is trained by a method, and the handle of its edits, None if it has none."""
    model = tiny_model(model_type, **DEEP[model_type])
    if method == "edits":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model, headedit.attach(model, config=EditConfig(init_std=0.3))
    return adapted(model, method), None


def adapted(model, method, **options):
    peft = pytest.importorskip("peft")
    targets = {"llama": ["q_proj", "o_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
    targets = targets.get(model.config.model_type, ["query_key_value", "dense"])
    if method == "ia3":
        options |= {"feedforward_modules": [name for name in targets if name == "down_proj"]}
    config = {"lora": peft.LoraConfig, "ia3": peft.IA3Config, "vera": peft.VeraConfig}[method]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = peft.get_peft_model(model, config(target_modules=targets, **options))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def trainer(model, edits, folder, sparse, *, cls=None, watch=True, **options):
    options = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1, **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        **{"save_strategy": "no", "logging_steps": 2, **options},
    )
    common = {"args": arguments, "train_dataset": TRAIN, "data_collator": PadRight()}
    callbacks = [Watch(model, sparse), sparse] if watch else [sparse]
    made = Trainer(model=model, callbacks=callbacks, **common) if edits is None or cls is Trainer else None
    return made or HeadEditTrainer(edits, callbacks=callbacks, **common)


def run(folder, *, method="edits", model_type="llama", watch=True, options=None, **choices):
    model, edits = deep(model_type, method)
    sparse = SparseTuning(edits or model, **choices)
    made = trainer(model, edits, folder, sparse, watch=watch, **(options or {}))
    made.train()
    return made, sparse, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def watched(made):
    return next(c for c in made.callback_handler.callbacks if isinstance(c, Watch))


def layer_of(name):
    return int(next(part for part in name.split(".") if part.isdecimal()))


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", DEEP)
def test_a_step_trains_all_of_the_chosen_layers_and_no_others(tmp_path, model_type, method, importance):
    """With momentum and weight decay, which move parameters whose gradient is 0."""
    choices = {"importance": importance, "share": 0.5, "every": 2}
    made, sparse, _ = run(tmp_path, method=method, model_type=model_type, **choices)
    watch = watched(made)
    assert len(watch.steps) == 6
    for (chosen, changed), seen in zip(watch.steps, watch.gradients, strict=True):
        inside = {name for name in watch.parameters if layer_of(name) in chosen}
        assert len(chosen) == 2
        assert seen == inside
        assert changed <= inside  # a sampled gate may be 0 or 1, where its logit has no gradient
        assert all(name.endswith("_gate") for name in inside - changed)
    assert len({tuple(chosen) for chosen, _ in watch.steps}) > 1
    counts = [sum(layer in chosen for chosen, _ in watch.steps) for layer in range(4)]
    assert sparse.times_trained.tolist() == counts
    assert all(p.requires_grad for p in watch.parameters.values())


def test_a_plain_trainer_trains_edits_in_the_chosen_layers_too(tmp_path):
    model, edits = deep()
    sparse = SparseTuning(edits)
    made = trainer(model, edits, tmp_path, sparse, cls=Trainer)
    assert type(made) is Trainer
    made.train()
    watch = watched(made)
    assert watch.steps
    assert all({layer_of(name) for name in changed} == set(chosen) for chosen, changed in watch.steps)


def test_frozen_layers_do_not_enter_the_clipped_norm(tmp_path):
    """With a small max_grad_norm, the length of one step of SGD in the chosen layer is that norm."""
    options = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 1e-3, "weight_decay": 0.0, "learning_rate": 1.0}
    before = {n: p.detach().clone() for n, p in deep()[0].named_parameters() if p.requires_grad}
    _, _, after = run(tmp_path, options={**options, "lr_scheduler_type": "constant"})
    length = math.sqrt(sum((after[name] - before[name]).double().square().sum().item() for name in before))
    assert length == pytest.approx(1e-3, rel=1e-2)


def test_accumulated_batches_train_the_same_layers(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 2}
    made, _, _ = run(tmp_path, options={**options, "max_steps": -1}, importance=False)
    watch = watched(made)
    assert len(watch.steps) == 8
    for (chosen, changed), seen in zip(watch.steps, watch.gradients, strict=True):
        assert {layer_of(name) for name in changed} == {layer_of(name) for name in seen} == set(chosen)


@pytest.mark.parametrize(("method", "reentrant"), [("edits", False), ("lora", False), ("lora", True)])
def test_gradient_checkpointing_changes_no_parameter(tmp_path, method, reentrant):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    _, plain_scores, plain = run(tmp_path / "a", method=method, every=2)
    _, scores, checkpointed = run(tmp_path / "b", method=method, every=2, options=options)
    assert all(torch.equal(plain[name], value) for name, value in checkpointed.items())
    assert torch.equal(plain_scores.scores, scores.scores)


@pytest.mark.parametrize("extra", ["lm_head.weight", "model.norm.weight"])
def test_parameters_in_no_layer_are_always_trained(tmp_path, extra):
    model, edits = deep()
    model.get_parameter(extra).requires_grad_(True)
    sparse = SparseTuning(edits)
    made = trainer(model, edits, tmp_path, sparse)
    made.train()
    assert watched(made).steps
    for _, changed in watched(made).steps:
        assert extra in changed
        assert len({layer_of(name) for name in changed - {extra}}) == 1


def test_edits_and_adapters_of_one_layer_are_trained_together(tmp_path):
    model = adapted(tiny_model("llama", num_hidden_layers=4), "lora")
    adapters = [p for p in model.parameters() if p.requires_grad]
    edits = headedit.attach(model.get_base_model())
    for parameter in adapters:
        parameter.requires_grad_(True)
    sparse = SparseTuning(model)
    layers = find_layers(model)
    assert [layer.layer for layer in layers] == [0, 1, 2, 3]
    assert sum(len(layer.parameters) for layer in layers) == len(adapters) + len(list(edits.module.parameters()))
    made = trainer(model, None, tmp_path, sparse)
    made.train()
    assert watched(made).steps
    for chosen, changed in watched(made).steps:
        assert {layer_of(name) for name in changed} == set(chosen)
        assert {"lora" in name for name in changed} == {True, False}


def test_layers_are_found_by_modules_not_by_names():
    """A parameter shared by two layers belongs to neither, and a frozen layer is not drawn."""
    model, _ = deep()
    edits = model.headedit.default.site_edits
    edits[1].vectors["offset"] = edits[2].vectors["offset"]
    for parameter in edits[3].parameters():
        parameter.requires_grad_(False)
    layers = find_layers(model)
    assert [(layer.layer, len(layer.parameters)) for layer in layers] == [(0, 4), (1, 3), (2, 3)]
    assert all(p is not edits[1].vectors["offset"] for layer in layers for p in layer.parameters)


@pytest.mark.parametrize("importance", [True, False])
def test_layers_are_sampled_in_proportion_to_their_weights(importance):
    """One layer of four, 20,000 times: each frequency is within 4 standard errors of σ(−s) / Σ σ(−s), or of 1/4."""
    scores = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    weights = torch.sigmoid(-scores) if importance else torch.ones(4)
    generator, times = torch.Generator().manual_seed(0), 20_000
    drawn = torch.tensor([draw(weights, 1, generator)[0] for _ in range(times)])
    wanted = weights / weights.sum()
    error = (torch.bincount(drawn, minlength=4) / times - wanted).abs() / (wanted * (1 - wanted) / times).sqrt()
    assert (error < 4).all()


@pytest.mark.parametrize("importance", [True, False])
def test_ist_draws_layers_by_its_scores_and_rst_uniformly(tmp_path, importance):
    """Over 3,000 steps, each with its own generator."""
    model, edits = deep()
    sparse = SparseTuning(edits, importance=importance, every=10_000)
    made = trainer(model, edits, tmp_path, sparse, watch=False)
    sparse.scores = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    times, wanted = 3000, torch.sigmoid(-sparse.scores) if importance else torch.ones(4)
    for step in range(times):
        made.state.global_step = step
        sparse.on_step_begin(made.args, made.state, made.control, model=model)
        assert {layer for layer in range(4) if edits.module.site_edits[layer].vectors["scale"].requires_grad} == set(
            sparse.chosen
        )
        sparse.on_step_end(made.args, made.state, made.control)
    wanted = wanted / wanted.sum()
    error = (sparse.times_trained / times - wanted).abs() / (wanted * (1 - wanted) / times).sqrt()
    assert (error < 4).all()


def test_roll_outs_attenuate_unimportant_layers_the_most(tmp_path, monkeypatch):
    """300 updates of 3 roll-outs with one layer each, at fixed scores."""
    from headedit.training.sparse import sparse_tuning

    model, edits = deep()
    sparse, seen = SparseTuning(edits, rollout_share=0.25), []
    sparse.scores = torch.tensor([-9.0, -9.0, 0.0, 9.0], dtype=torch.float64)
    monkeypatch.setattr(sparse_tuning, "loss_of", lambda model, batch: 1.0)
    monkeypatch.setattr(sparse_tuning, "draw_distinct", lambda w, size, n, g: seen.append(draw(w, size, g)) or [[0]])
    loader = trainer(model, edits, tmp_path, sparse).get_train_dataloader()
    for seed in range(300):
        sparse._update_scores(model, loader, torch.device("cpu"), torch.Generator().manual_seed(seed))
    counts = [sum([layer] == drawn for drawn in seen) for layer in range(4)]
    assert counts[0] + counts[1] < 5
    assert counts[3] == pytest.approx(200, abs=4 * math.sqrt(300 * 2 / 9))


def test_a_sample_has_no_layer_twice_and_no_two_roll_outs_are_the_same():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        draws = draw_distinct(torch.rand(6, generator=generator), 3, 3, generator)
        assert len({tuple(sample) for sample in draws}) == 3
        assert all(len(set(sample)) == 3 for sample in draws)
    assert sorted(draw_distinct(torch.ones(2), 1, 3, generator)) == [[0], [1]]
    assert draw_distinct(torch.ones(1), 1, 3, generator) == [[0]]


@pytest.mark.parametrize(
    ("share", "layers", "wanted"),
    [(0.25, 32, 8), (0.25, 22, 5), (0.5, 23, 11), (0.25, 30, 7), (0.1, 30, 3), (0.7, 10, 7), (0.25, 2, 1), (1.0, 3, 3)],
)
def test_a_share_of_the_layers_is_rounded_down_to_at_least_one(share, layers, wanted):
    assert layer_count(share, layers) == wanted


def test_updated_scores_equal_those_computed_by_hand():
    losses, draws = [1.0, 2.0, 4.0], [[0, 1], [1, 2], [0, 2]]
    scores = torch.tensor([0.0, 1.5, -1.0], dtype=torch.float64)
    mean = (math.exp(-1) + math.exp(-2) + math.exp(-4)) / 3
    r = [math.exp(-1) - mean, math.exp(-2) - mean, math.exp(-4) - mean]
    p = [0.5, 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1))]
    wanted = [
        0.0 + 10 * (r[0] + r[2]) * p[0] * (1 - p[0]),
        1.5 + 10 * (r[0] + r[1]) * p[1] * (1 - p[1]),
        -1.0 + 10 * (r[1] + r[2]) * p[2] * (1 - p[2]),
    ]
    assert updated_scores(scores, draws, losses, 10.0).tolist() == pytest.approx(wanted, rel=1e-12)
    assert scores.tolist() == [0.0, 1.5, -1.0]
    assert updated_scores(scores, draws, [1.0, math.nan, 2.0], 10.0) is scores


def test_the_scores_of_a_run_equal_those_computed_by_hand(tmp_path, monkeypatch):
    """Two updates in 6 steps, at 2 and at 4, each from the losses with smaller vectors."""
    from headedit.training.sparse import sparse_tuning

    model, edits = deep()
    sparse, calls, batches = SparseTuning(edits, every=2), [], []
    made = trainer(model, edits, tmp_path, sparse, watch=False)

    def by_hand(scores, draws, losses, rate):
        calls.append((made.state.global_step, draws, rate))
        whole, hands = copy.deepcopy(edits.module.state_dict()), []
        for drawn in draws:
            smaller = [f"site_edits.{i}.vectors.{vector}" for i in drawn for vector in ("offset", "scale")]
            edits.module.load_state_dict({k: v * 0.25 if k in smaller else v for k, v in whole.items()})
            with rolling_out(model):
                hands.append(model(**batches[-1]).loss.item())
        edits.module.load_state_dict(whole)
        assert losses == pytest.approx(hands, rel=1e-5)
        assert len({round(loss, 6) for loss in losses}) == 3
        return updated_scores(scores, draws, losses, rate)

    def keep(loader, size, generator):
        batches.append(plain(loader, size, generator))
        return batches[-1]

    plain = sparse_tuning._batch
    monkeypatch.setattr(sparse_tuning, "_batch", keep)
    monkeypatch.setattr(sparse_tuning, "updated_scores", by_hand)
    made.train()
    assert [(step, rate) for step, _, rate in calls] == [(2, 10.0), (4, 10.0)]
    assert all(len(drawn) == 2 for _, draws, _ in calls for drawn in draws)
    assert all(batch["input_ids"].shape[0] == 16 for batch in batches)
    assert not torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert sparse.scores.abs().sum() > 0


def loss_of(model):
    with rolling_out(model):
        return model(**BATCH).loss.item()


def scaled_by_peft(model, layers, factor):
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and layer_of(name) in layers:
            module.scale_layer(factor)


def scaled_to_one(model, layers, factor):
    for name, parameter in model.named_parameters():
        if "ia3_l" in name and layer_of(name) in layers:
            parameter.data = 1 + (parameter.data - 1) * factor


def scaled_vectors(model, layers, factor):
    for layer in layers:
        edit = model.headedit.default.site_edits[layer]
        edit.vectors["offset"].data, edit.vectors["scale"].data = (
            edit.vectors["offset"].data * factor,
            edit.vectors["scale"].data * factor,
        )


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("method", "scaled"), [("edits", scaled_vectors), ("lora", scaled_by_peft), ("ia3", scaled_to_one)]
)
def test_attenuated_edits_compute_as_with_smaller_parameters(model_type, method, scaled):
    """Our vectors, PEFT's own scale_layer, and IA3's vector towards 1, which is its identity."""
    model, _ = deep(model_type, method)
    whole, layers = loss_of(model), find_layers(model)
    with attenuated([layers[0], layers[2]], 0.25):
        part = loss_of(model)
    assert loss_of(model) == whole
    scaled(model, [0, 2], 0.25)
    assert part == pytest.approx(loss_of(model), rel=1e-5)
    assert abs(part - whole) > 1e-4


@pytest.mark.parametrize("method", ["lora", "ia3", "vera", "dora", "modules_to_save"])
def test_edits_attenuated_to_zero_leave_the_base_model(method):
    options = {"dora": {"use_dora": True}, "modules_to_save": {"modules_to_save": ["post_attention_layernorm"]}}
    base = tiny_model("llama", num_hidden_layers=4)
    plain = loss_of(base)
    changes = options.get(method, {})
    if method == "vera":
        base, changes = tiny_model("llama", num_hidden_layers=4), {"r": 4}
    model = adapted(base, method if method in ("ia3", "vera") else "lora", **changes)
    layers = find_layers(model)
    assert len(layers) == 4
    assert not any(layer.bare for layer in layers)
    assert abs(loss_of(model) - plain) > 1e-4
    with attenuated(layers, 0.0):
        assert loss_of(model) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_roll_outs_change_no_weight_mode_hook_or_random_state(tmp_path, method):
    model, edits = deep(method=method)
    sparse = SparseTuning(edits or model)
    made = trainer(model, edits, tmp_path, sparse, watch=False)
    model.train()
    model.lm_head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]

    def noisy(rows):
        random.random(), np.random.rand(), torch.rand(1)
        return PadRight()(rows)

    loader = made.get_train_dataloader()
    loader.collate_fn = noisy
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    sparse._update_scores(model, loader, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert sparse.scores.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (random.getstate(), np.random.get_state()[1].tolist())


def test_the_same_seed_gives_the_same_layers_scores_and_parameters(tmp_path):
    first = run(tmp_path / "a", every=2, options={"seed": 3})
    torch.rand(100)
    second = run(tmp_path / "b", every=2, options={"seed": 3})
    third = run(tmp_path / "c", every=2, options={"seed": 4})
    chosen = [[c for c, _ in watched(made).steps] for made, _, _ in (first, second, third)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert torch.equal(first[1].scores, second[1].scores)
    assert all(torch.equal(value, second[2][name]) for name, value in first[2].items())


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("method", ["edits", "lora"])
def test_a_resumed_run_ends_with_the_scores_and_parameters_of_an_uninterrupted_one(tmp_path, method, restore):
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7}
    options["restore_callback_states_from_checkpoint"] = restore
    _, whole, wanted = run(tmp_path / "a", method=method, every=2, options=options)
    run(tmp_path / "b", method=method, every=2, options=options)
    model, edits = deep(method=method)
    made = trainer(model, edits, tmp_path / "b", SparseTuning(every=2), watch=False, **options)
    made.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    live = next(c for c in made.callback_handler.callbacks if isinstance(c, SparseTuning))
    assert torch.equal(live.scores, whole.scores)
    assert live.times_trained.tolist() == whole.times_trained.tolist()
    found = dict(model.named_parameters())
    assert wanted
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    model, edits = deep()
    trainer(model, edits, tmp_path, SparseTuning(), **options).train()
    model, edits = deep()
    for parameter in edits.module.site_edits[0].parameters():
        parameter.requires_grad_(False)
    resumed = trainer(model, edits, tmp_path, SparseTuning(), **options)
    with pytest.raises(HeadEditError, match="scores of 4 layers, but 3 layers of this model are trainable"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_layers_frozen_by_a_broken_off_step_are_unfrozen_by_the_next_training(tmp_path):
    model, edits = deep()
    sparse = SparseTuning(edits)
    made = trainer(model, edits, tmp_path, sparse, watch=False)
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.train()
    handle.remove()
    assert not all(p.requires_grad for p in edits.module.parameters())
    trainer(model, edits, tmp_path, sparse)
    assert all(p.requires_grad for p in edits.module.parameters())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"share": 0.0}, r"share: found 0\.0, expected a number above 0 and up to 1"),
        ({"share": math.nan}, "share: found nan"),
        ({"rollout_share": 1.5}, r"rollout_share: found 1\.5"),
        ({"rollouts": 1}, "rollouts: found 1, expected 2 or more"),
        ({"rollouts": 2.5}, r"rollouts: found 2\.5 \(float\), expected a whole number"),
        ({"every": 0}, "every: found 0, expected 1 or more"),
        ({"batch_size": 0}, "batch_size: found 0, expected 1 or more"),
        ({"attenuation": 1.0}, r"attenuation: found 1\.0, expected a number from 0 to below 1"),
        ({"rate": math.inf}, "rate: found inf, expected a number above 0"),
        ({"importance": "yes"}, r"importance: found 'yes' \(str\), expected true or false"),
    ],
)
def test_wrong_settings_are_refused(choices, message):
    with pytest.raises(HeadEditError, match=message):
        SparseTuning(**choices)


def test_models_without_edits_or_layers_are_refused():
    bare = tiny_model("llama")
    with pytest.raises(HeadEditError, match=r"IST attenuates edits, but model\.layers\.0.*importance=False"):
        SparseTuning(bare)
    assert SparseTuning(bare, importance=False).layers == [0, 1]
    bare.requires_grad_(False)
    with pytest.raises(HeadEditError, match="no trainable parameter inside a layer"):
        SparseTuning(bare)
    with pytest.raises(HeadEditError, match="Expected a transformers model"):
        SparseTuning(nn.Linear(2, 2))


def test_training_sets_without_length_or_labels_are_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(TRAIN)

    model, edits = deep()
    made = trainer(model, edits, tmp_path, SparseTuning(edits))
    made.train_dataset = Stream()
    with pytest.raises(HeadEditError, match="which a Stream does not allow"):
        made.train()
    made = trainer(model, edits, tmp_path, SparseTuning(edits, importance=False))
    made.train_dataset = Stream()
    made.train()
    sparse = SparseTuning(edits)
    loader = made.get_train_dataloader()
    loader = torch.utils.data.DataLoader(TRAIN, collate_fn=lambda rows: {"input_ids": PadRight()(rows)["input_ids"]})
    with pytest.raises(HeadEditError, match="LlamaForCausalLM returned no loss on a batch with input_ids"):
        sparse._update_scores(model, loader, torch.device("cpu"), torch.Generator())
