"""The edits under TRL's trainers that compare passes: their gates, their reference, and what they refuse."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from tokenizers_tiny import byte_level

import headedit
from headedit import HeadEditError, HeadEditMixin
from headedit.training.loop.policy import Reference

trl = pytest.importorskip("trl")

PROMPTS = ["instruction :", "a b", "one two", "x"]


class EditDPO(HeadEditMixin, trl.DPOTrainer):
    pass


class EditKTO(HeadEditMixin, trl.KTOTrainer):
    pass


class EditGRPO(HeadEditMixin, trl.GRPOTrainer):
    pass


class EditRLOO(HeadEditMixin, trl.RLOOTrainer):
    pass


PREFERENCE = {
    EditDPO: (trl.DPOConfig, [{"prompt": p, "chosen": " c d", "rejected": " e"} for p in PROMPTS]),
    EditKTO: (trl.KTOConfig, [{"prompt": p, "completion": " c d", "label": i % 2 == 0} for i, p in enumerate(PROMPTS)]),
}
ONLINE = {EditGRPO: trl.GRPOConfig, EditRLOO: trl.RLOOConfig}


@pytest.fixture(autouse=True)
def no_base_is_loaded_again(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the base model is loaded a second time")

    for name in ("dpo", "kto", "grpo", "rloo"):
        monkeypatch.setattr(f"trl.trainer.{name}_trainer.create_model_from_path", refuse)


def trained(gates="separate", std=0.3):
    """Edits that change the model, in training mode as a user may have left it, some gates half open."""
    edits = headedit.attach(tiny_model("llama", vocab_size=512), config=headedit.EditConfig(gates=gates))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in edits.module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    edits.model.train()
    return edits


def arguments(kind, folder, **changes):
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05, "logging_steps": 1}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "save_strategy": "no"}
    return kind(output_dir=str(folder), **{**options, **quiet, **changes})


def preference(trainer, edits, folder, ref_model=None, **changes):
    kind, rows = PREFERENCE[trainer]
    more = {} if ref_model is None else {"ref_model": ref_model}
    return trainer(
        edits,
        args=arguments(kind, folder, lr_scheduler_type="constant", **changes),
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_level(),
        **more,
    )


def online(trainer, edits, folder, **changes):
    options = {"num_generations": 4, "max_completion_length": 4, **changes}
    return trainer(
        edits,
        args=arguments(ONLINE[trainer], folder, **options),
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
        processing_class=byte_level(),
        reward_funcs=lambda completions, **_: [float(len(set(c))) for c in completions],
    )


def rewards(trainer):
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return [{key: row[key] for key in row if key.startswith("rewards/") and "acc" not in key} for row in logged]


def scored(trainer):
    """The log-probabilities of each row of ids, in every pass that the trainer scores."""
    real, seen = trainer._get_per_token_logps_and_entropies, {}

    def record(model, input_ids, *args, **kwargs):
        found = real(model, input_ids, *args, **kwargs)
        for row, value in zip(input_ids.tolist(), found[0].detach(), strict=True):
            seen.setdefault(tuple(row), []).append(value)
        return found

    trainer._get_per_token_logps_and_entropies = record
    return seen


@pytest.mark.parametrize("precomputed", [False, True], ids=["live", "precomputed"])
@pytest.mark.parametrize("trainer", PREFERENCE)
def test_the_first_rewards_from_trained_edits_are_zero_and_the_next_are_not(trainer, precomputed, tmp_path):
    edits = trained()
    before = edits.snapshot()
    made = preference(trainer, edits, tmp_path, precompute_ref_log_probs=precomputed)
    made.train()
    first, second = rewards(made)
    assert set(first.values()) == {0.0}
    assert set(second.values()) != {0.0}
    assert any(not torch.equal(a, b) for a, b in zip(before, edits.snapshot(), strict=True))


@pytest.mark.parametrize("trainer", PREFERENCE)
def test_the_reference_is_what_a_copy_of_the_edited_model_would_be(trainer, tmp_path):
    ours = preference(trainer, trained(), tmp_path / "ours")
    edits = trained()
    copied = preference(trainer, edits, tmp_path / "copy", ref_model=copy.deepcopy(edits.model).eval())
    for made in (ours, copied):
        made.train()
    assert rewards(ours) == rewards(copied)
    pairs = zip(ours.edits.snapshot(), copied.edits.snapshot(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("trainer", ONLINE)
def test_all_passes_at_learning_rate_zero_give_the_same_log_probabilities(trainer, beta, tmp_path):
    made = online(trainer, trained(), tmp_path, beta=beta, learning_rate=0.0, num_iterations=2)
    assert made.args.beta == made.beta == beta
    seen = scored(made)
    made.train()
    assert min(len(values) for values in seen.values()) >= 3 - (beta == 0.0)  # old, new and those of the reference
    assert all(torch.equal(value, values[0]) for values in seen.values() for value in values)


@pytest.mark.parametrize("trainer", ONLINE)
def test_policies_are_trained_away_from_their_reference(trainer, tmp_path):
    edits = trained()
    parameters = [*edits.gate_parameters(), *edits.vector_parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    made = online(trainer, edits, tmp_path, beta=0.1, num_iterations=2)
    made.train()
    assert isinstance(made.ref_model, Reference)
    divergence = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert divergence[0] == 0.0
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_gates_are_drawn_again_after_training_has_ended(tmp_path):
    edits = trained()
    preference(EditDPO, edits, tmp_path, max_steps=1).train()
    assert all(edit.draws for edit in edits.module)


def test_deterministic_gates_are_those_of_eval_mode_with_gradients():
    edits = trained()
    ids = torch.tensor([[3, 4, 5, 6]])
    drawn = edits.model(input_ids=ids).logits
    with edits.deterministic_gates():
        found = edits.model(input_ids=ids).logits
    found.sum().backward()
    edits.model.eval()
    assert torch.equal(found, edits.model(input_ids=ids).logits)
    assert not torch.equal(found, drawn)
    assert all(p.grad is not None and p.grad.any() for p in edits.gate_parameters())


def test_the_reference_leaves_modes_and_edits_as_they_were():
    edits = trained()
    ids = torch.tensor([[3, 4, 5, 6]])
    with edits.deterministic_gates():
        start = edits.model(input_ids=ids).logits.detach()
    reference = Reference(edits)
    with torch.no_grad():
        for parameter in edits.module.parameters():
            parameter.mul_(2)
    assert torch.equal(reference(input_ids=ids).logits.detach(), start)
    assert all(module.training for module in edits.model.modules())
    assert reference.config is edits.model.config
    assert not list(reference.parameters())
    frozen = reference.__dict__["_adapter"]
    assert all(a.module is b.module for a, b in zip(frozen.sites, edits.sites, strict=True))  # no copy of the base's


@pytest.mark.parametrize("option", ["sync_ref_model", "fsdp", "peft_config"])
def test_a_reference_that_frozen_edits_cannot_be_is_refused_by_name(option, tmp_path):
    edits = trained()
    kind, rows = PREFERENCE[EditDPO]
    args = arguments(kind, tmp_path)
    more = {"peft_config": object()} if option == "peft_config" else {}
    if not more:
        setattr(args, option, True)
    with pytest.raises(HeadEditError, match=option):
        EditDPO(edits, args=args, train_dataset=Dataset.from_list(rows), processing_class=byte_level(), **more)


def test_supervised_training_draws_its_gates(tmp_path):
    class EditSFT(HeadEditMixin, trl.SFTTrainer):
        drew = False

        def training_step(self, *args, **kwargs):
            self.drew = all(edit.draws for edit in self.edits.module)
            return super().training_step(*args, **kwargs)

    rows = [{"prompt": p, "completion": " c d"} for p in PROMPTS]
    made = EditSFT(
        trained(),
        args=arguments(trl.SFTConfig, tmp_path, max_steps=1),
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_level(),
    )
    made.train()
    assert made.drew


def checkpointed(trainer, folder, edits, **changes):
    return preference(
        trainer, edits, folder, per_device_train_batch_size=2, save_strategy="steps", save_steps=1, **changes
    )


@pytest.mark.parametrize("trainer", PREFERENCE)
def test_a_training_resumed_from_other_edits_has_the_reference_that_it_began_with(trainer, tmp_path):
    whole = checkpointed(trainer, tmp_path, trained())
    whole.train()
    fresh = headedit.attach(tiny_model("llama", vocab_size=512))
    fresh.strength = 0.5
    resumed = checkpointed(trainer, tmp_path, fresh)
    fresh.strength = 1.0
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert rewards(resumed) == rewards(whole)
    assert set(rewards(resumed)[1].values()) != {0.0}
    found, expected = (made.ref_model.frozen_state() for made in (resumed, whole))
    assert found.plain == expected.plain
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    pairs = zip(resumed.edits.snapshot(), whole.edits.snapshot(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_log_probabilities_of_another_reference_are_not_resumed_with(tmp_path):
    whole = checkpointed(EditDPO, tmp_path, trained(), precompute_ref_log_probs=True)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-1")
    again = checkpointed(EditDPO, tmp_path, trained(), precompute_ref_log_probs=True)
    again.train(resume_from_checkpoint=checkpoint)
    assert rewards(again) == rewards(whole)
    fresh = headedit.attach(tiny_model("llama", vocab_size=512))
    other = checkpointed(EditDPO, tmp_path, fresh, precompute_ref_log_probs=True)
    with pytest.raises(HeadEditError, match=r"precompute_ref_log_probs: .*checkpoint-1 was trained against those of"):
        other.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_a_reference_is_resumed_with_a_warning(tmp_path, caplog):
    whole = checkpointed(EditDPO, tmp_path, trained())
    whole.train()
    for file in (tmp_path / "checkpoint-1").glob("headedit_reference*"):
        file.unlink()
    resumed = checkpointed(EditDPO, tmp_path, trained())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "checkpoint-1: holds no reference" in caplog.text
    assert rewards(resumed) == rewards(whole)
