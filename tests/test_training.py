"""Training edits: which parameters are trained, with which learning rates and loss, and which files are written."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import logits, randomise, tiny_model
from transformers import TrainerCallback, TrainingArguments

import headedit
from headedit import EditConfig, HeadEditError, HeadEditTrainer, Objective, Run
from headedit.data.batches import PadRight
from headedit.edits.gates import HardConcrete
from headedit.runs.history import History
from headedit.training.loop.schedules import Moment
from headedit.training.recipes import make_recipe
from headedit.training.recipes.jola import Jola

LABELLED = [
    {"input_ids": row, "labels": [-100, *row[1:]]}
    for row in torch.randint(3, 128, (24, 9), generator=torch.Generator().manual_seed(1)).tolist()
]
TRAIN, VALID = LABELLED[:16], LABELLED[16:]


def trainer(edits, folder, *, objective=None, gate_learning_rate=None, **options):
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        **{"logging_steps": 2, **options},
    )
    return HeadEditTrainer(
        edits,
        objective=objective,
        gate_learning_rate=gate_learning_rate,
        args=arguments,
        train_dataset=TRAIN,
        eval_dataset=VALID,
        data_collator=PadRight(),
    )


def values(edits):
    return {name: p.detach().clone() for name, p in edits.module.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def fit(model, folder, **options):
    edits = headedit.attach(model)
    options = {"recipe": "jola", "epochs": 2, "progress": False, **options}
    return edits, headedit.fit(edits, TRAIN, VALID, output_dir=folder, **options)


def test_fit_trains_the_edits_and_leaves_the_base_model_unchanged(llama, ids, tmp_path):
    base = logits(llama, ids)
    weights = {name: p.clone() for name, p in llama.named_parameters()}
    edits, run = fit(llama, tmp_path)
    assert not llama.training
    assert all(p.abs().sum() > 0 for p in edits.vector_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in llama.named_parameters() if name in weights)
    with edits.disable_adapter():
        assert torch.equal(logits(llama, ids), base)
    fresh = tiny_model("llama")
    headedit.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))
    again = Run.read(tmp_path)
    assert again.record == run.record
    assert again.history.rows == run.history.rows
    assert {p.name for p in tmp_path.iterdir()} == {
        "headedit_config.json",
        "headedit.safetensors",
        "README.md",
        "history.jsonl",
        "run.json",
    }


def test_the_same_seed_gives_the_same_edits_and_another_seed_others(tmp_path):
    first, _ = fit(tiny_model("llama"), tmp_path / "a", seed=3)
    torch.rand(100)
    second, _ = fit(tiny_model("llama"), tmp_path / "b", seed=3)
    third, _ = fit(tiny_model("llama"), tmp_path / "c", seed=4)
    assert same(values(first), values(second))
    assert not same(values(first), values(third))


def test_the_validation_loss_is_the_plain_loss_of_the_deterministic_edits(llama, tmp_path):
    edits = headedit.attach(llama)
    randomise(edits)
    priced = trainer(edits, tmp_path, objective=Objective(lambda_offset=5.0, lambda_scale=5.0, schedule="constant"))
    measured = priced.evaluate()["eval_loss"]
    with torch.no_grad():
        batch = PadRight()(VALID)
        plain = llama.eval()(**batch).loss.item()
    assert measured == pytest.approx(plain, rel=1e-5)
    assert priced.evaluate()["eval_loss"] == measured


def test_the_loss_is_on_the_response_only(llama, tmp_path):
    prompt_only = [{"input_ids": row["input_ids"], "labels": [-100] * 9} for row in TRAIN[1:4]]
    edits = headedit.attach(llama)
    loss = trainer(edits, tmp_path).compute_loss(llama.eval(), PadRight()([TRAIN[0], *prompt_only]))
    alone = trainer(edits, tmp_path).compute_loss(llama, PadRight()([TRAIN[0]]))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)


def test_vectors_and_gates_have_their_own_learning_rates(llama, tmp_path):
    edits = headedit.attach(llama, config=EditConfig(init_std=1e-2))
    before = values(edits)
    frozen_gates = trainer(edits, tmp_path / "a", gate_learning_rate=0.0)
    frozen_gates.train()
    after = values(edits)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.endswith("_gate")}
    rates = {group["weight_decay"]: group["initial_lr"] for group in frozen_gates.optimizer.param_groups}
    assert rates == {0.0: 0.0} or len(frozen_gates.optimizer.param_groups) == 2
    trainer(edits, tmp_path / "b", learning_rate=0.0, gate_learning_rate=1e-2).train()
    last = values(edits)
    changed = {name for name in after if not torch.equal(after[name], last[name])}
    assert changed == {name for name in before if name.endswith("_gate")}


def test_other_trainable_parameters_are_trained_too(llama, tmp_path):
    edits = headedit.attach(llama)
    llama.lm_head.weight.requires_grad_(True)
    before = llama.lm_head.weight.clone()
    trainer(edits, tmp_path).train()
    assert not torch.equal(llama.lm_head.weight, before)


def test_accumulated_small_batches_train_as_one_large_batch(tmp_path):
    """With zero vectors the loss has no gradient at the gates, so one step of SGD shows that of the penalty alone."""
    objective = Objective(lambda_offset=0.5, lambda_scale=0.25, schedule="constant")
    moved, losses = [], []
    for size, steps in ((8, 1), (2, 4)):
        edits = headedit.attach(tiny_model("llama"))
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        options |= {"optim": "sgd", "max_grad_norm": 1e9, "lr_scheduler_type": "constant", "save_strategy": "no"}
        options |= {"logging_strategy": "epoch", "learning_rate": 0.0}
        made = trainer(edits, tmp_path / str(size), objective=objective, gate_learning_rate=1.0, **options)
        made.train()
        moved.append(edits.module.site_edits[0].gates["offset_gate"][0].item())
        losses.append(made.history.column("loss")[1][0])
    logit = torch.zeros(1, requires_grad=True)
    HardConcrete().open_probability(logit).backward()
    assert moved == pytest.approx([-0.5 * logit.grad.item()] * 2, rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_gates_close_at_a_high_price_and_stay_open_without_one(llama, tmp_path):
    long = {"patience": None, "epochs": 10, "gate_lr": 0.5, "lambda_scale": 0.0, "lambda_schedule": "constant"}
    free, _ = fit(tiny_model("llama"), tmp_path / "free", lambda_offset=0.0, **long)
    _, run = fit(llama, tmp_path / "dear", lambda_offset=3.0, **long)
    assert free.count_open() == {"offset": (8, 8), "scale": (8, 8), "any": (8, 8)}
    steps, opened = run.history.column("open_offset")
    assert (opened[0], opened[-1]) == (8, 0)
    assert run.history.column("open_scale")[1][-1] == 8
    assert steps == sorted(steps)


def test_a_lambda_means_the_same_for_a_model_of_twice_the_layers():
    pulls = []
    for layers in (2, 4):
        edits = headedit.attach(tiny_model("llama", num_hidden_layers=layers))
        penalty = Objective(lambda_offset=0.3, lambda_scale=0.1, schedule="constant").penalty(edits, Moment(0, 1))
        penalty.backward()
        pulls.append(
            (edits.module.site_edits[0].gates["offset_gate"].grad, edits.module.site_edits[0].gates["scale_gate"].grad)
        )
    assert torch.equal(pulls[0][0], pulls[1][0])
    assert torch.equal(pulls[0][1], pulls[1][1])
    assert torch.allclose(pulls[0][0], 3 * pulls[0][1])


def test_the_penalty_counts_the_gates_that_are_expected_to_be_open(llama):
    edits = headedit.attach(llama)
    assert edits.penalty().item() == pytest.approx(16 * torch.sigmoid(torch.tensor(0.33 * 2.3979)).item(), rel=1e-4)
    assert edits.penalty(share=True).item() == pytest.approx(edits.penalty().item() / 16)
    assert edits.penalty("offset").item() == pytest.approx(edits.penalty().item() / 2)
    ungated = headedit.attach(tiny_model("llama"), config=EditConfig(gates="none"))
    assert ungated.penalty().item() == 0
    shared = headedit.attach(tiny_model("llama"), config=EditConfig(gates="shared"))
    assert shared.penalty().item() == pytest.approx(edits.penalty().item() / 2)


def test_checkpoints_hold_edits_and_optimiser_state_and_never_the_base_model(llama, tmp_path):
    edits = headedit.attach(llama)
    trainer(edits, tmp_path, save_strategy="epoch").train()
    names = {p.name for p in (tmp_path / "checkpoint-8").iterdir()}
    assert names == {"headedit_config.json", "headedit.safetensors", "optimizer.pt", "scheduler.pt"} | {
        "rng_state.pth",
        "trainer_state.json",
        "headedit_checkpoint.json",
        "headedit_checkpoint.safetensors",
    }


def test_a_resumed_run_ends_with_the_same_edits_and_history(tmp_path):
    whole = headedit.attach(tiny_model("llama"))
    objective = Objective(lambda_offset=0.1)
    through = trainer(whole, tmp_path / "a", save_strategy="epoch", objective=objective)
    through.train()
    broken = headedit.attach(tiny_model("llama"))
    first = trainer(broken, tmp_path / "b", save_strategy="epoch", objective=objective)
    first.train()
    fresh = headedit.attach(tiny_model("llama"))
    second = trainer(fresh, tmp_path / "b", save_strategy="epoch", objective=objective)
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert same(values(fresh), values(whole))
    timeless = [{k: v for k, v in row.items() if "runtime" not in k} for row in second.history.rows]
    assert [r["step"] for r in timeless] == [r["step"] for r in through.history.rows]
    assert [r["gates"] for r in timeless if "gates" in r] == [r["gates"] for r in through.history.rows if "gates" in r]


def test_the_best_edits_are_kept_and_the_run_stops_early(llama, tmp_path):
    edits, run = fit(llama, tmp_path, epochs=30, vector_lr=0.3, patience=2)
    steps, losses = run.history.column("eval_loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 30
    assert run.record["kept_step"] == steps[best]
    assert run.record["best_eval_loss"] == pytest.approx(min(losses))
    assert trainer(edits, tmp_path / "x").evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_without_validation_the_last_edits_are_kept(llama, tmp_path):
    edits = headedit.attach(llama)
    run = headedit.fit(edits, TRAIN, output_dir=tmp_path, recipe="jola", epochs=2, progress=False)
    assert run.record["best_eval_loss"] is None
    assert run.record["kept_step"] == run.record["steps"] == 4


def test_the_history_has_the_columns_that_plots_need(llama, tmp_path):
    _, run = fit(llama, tmp_path, lambda_offset=0.1, lambda_scale=0.2)
    row = run.history.rows[0]
    assert {"step", "epoch", "loss", "objective", "penalty", "lambda_offset", "lambda_scale"} <= set(row)
    assert {"learning_rate", "gate_learning_rate", "open_offset", "open_scale", "gates"} <= set(row)
    last = [r for r in run.history.rows if "gates" in r][-1]
    assert [sorted(site) for site in last["gates"]] == [["offset", "scale"]] * 2
    assert all(len(gates) == 4 for site in last["gates"] for gates in site.values())
    assert last["lambda_scale"] == pytest.approx(2 * last["lambda_offset"])
    assert last["objective"] > last["loss"]


def test_steps_that_are_not_logged_do_not_wait_for_the_device(llama, tmp_path, monkeypatch):
    """Reading a tensor's value makes the host wait, so only a logged step may do it."""
    edits = headedit.attach(llama)
    made = trainer(
        edits, tmp_path, objective=Objective(lambda_offset=0.1), save_strategy="no", logging_strategy="no", max_steps=6
    )
    package = str(Path(headedit.__file__).parent)
    where: list[str] = []
    for name in ("item", "tolist", "cpu", "__bool__", "__float__"):
        plain = getattr(torch.Tensor, name)

        def reading(self, *args, plain=plain, name=name, **kwargs):
            if sys._getframe(1).f_code.co_filename.startswith(package):
                where.append(name)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, reading)
    seen: list[list[str]] = []

    class Last(TrainerCallback):
        def on_train_end(self, *args, **kwargs):
            seen.append(list(where))

    made.add_callback(Last)
    made.train()
    assert seen == [[]]
    assert made.state.global_step == 6
    made.log({"loss": 1.0})
    assert "item" in where


def test_gradient_checkpointing_changes_no_edit(tmp_path):
    plain, checkpointed = (headedit.attach(tiny_model("llama")) for _ in range(2))
    trainer(plain, tmp_path / "a").train()
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    trainer(checkpointed, tmp_path / "b", **options).train()
    assert same(values(plain), values(checkpointed))


def test_edits_on_a_quantized_base_are_trained(ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
    )
    edits, run = fit(model, tmp_path / "out")
    assert run.record["steps"] == 8 // 2
    assert all(p.abs().sum() > 0 for p in edits.vector_parameters())
    assert not vars(model).get("_hf_peft_config_loaded", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "jolla"}, r"There is no recipe 'jolla'\. Did you mean 'jola'\?"),
        ({"epoch": 3}, r"recipe jola: unknown key 'epoch'\. Did you mean 'epochs'\?"),
        ({"epochs": "many"}, r"recipe jola: epochs: found 'many' \(str\), expected a whole number"),
        ({"vector_lr": 0}, r"recipe jola: vector_lr: found 0\.0, expected a number above 0"),
        ({"lambda_offset": -1.0}, r"recipe jola: lambda_offset: found -1\.0, expected 0 or more"),
        ({"lr_schedule": "cosin"}, r"recipe jola: lr_schedule: .*Did you mean 'cosine'\?"),
        ({"arguments": {"save_step": 3}}, r"arguments: unknown key 'save_step'\. Did you mean 'save_steps'\?"),
        ({"arguments": {"seed": 3}}, r"'seed' is given to headedit\.fit as seed=\.\.\., not here"),
    ],
)
def test_a_wrong_recipe_or_field_is_refused_before_anything_is_written(llama, tmp_path, options, message):
    with pytest.raises(HeadEditError, match=message):
        fit(llama, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_fit_refuses_unusable_arguments_before_anything_is_written(llama, tmp_path):
    edits = headedit.attach(llama)
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadEditError, match=r"file/out: cannot be written \(Not a directory\)"):
        headedit.fit(edits, TRAIN, output_dir=tmp_path / "file" / "out")
    with pytest.raises(HeadEditError, match="No tokenizer could be loaded from ''"):
        headedit.fit(edits, [("a", "b")], output_dir=tmp_path / "out")
    with pytest.raises(HeadEditError, match="The training set has nothing to use: it is empty"):
        headedit.fit(edits, [], output_dir=tmp_path / "out")
    edits.detach()
    with pytest.raises(HeadEditError, match="detached from their model"):
        headedit.fit(edits, TRAIN, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_can_be_changed_field_by_field():
    assert make_recipe("jola", {"epochs": 3, "patience": None}) == Jola(epochs=3, patience=None)


def test_a_history_cut_off_by_a_kill_is_read_up_to_its_last_complete_row(tmp_path):
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert History.read(tmp_path).rows == [{"step": 1, "loss": 2.0}]
    file.write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(HeadEditError, match=r"history\.jsonl, line 2: not valid JSON"):
        History.read(tmp_path)
    with pytest.raises(HeadEditError, match="there is no history of a run here"):
        History.read(tmp_path / "nothing")


def test_a_run_without_its_record_cannot_be_read(tmp_path):
    (tmp_path / "history.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(HeadEditError, match=r"run\.json: cannot be read"):
        Run.read(tmp_path)
