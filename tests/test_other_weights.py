"""Weights that are trained together with the edits: LoRA, a norm and a head, saved and restored as the edits are."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny import tiny_model
from tokenizers_tiny import byte_level
from transformers import TrainingArguments

import headedit
from headedit import HeadEditError, HeadEditTrainer
from headedit.data.batches import PadRight
from headedit.runs.files import OTHER_WEIGHTS_FILE as WEIGHTS_FILE

ROWS = [{"input_ids": [i, i + 1, 3 + i % 7], "labels": [-100, i + 1, 3 + i % 7]} for i in range(3, 27)]


def with_lora():
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    torch.manual_seed(0)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"))
    return attached(model, "lora_")


def with_norm():
    return attached(tiny_model("llama"), "model.norm.weight")


def with_head():
    return attached(tiny_model("llama"), "lm_head.weight")


KINDS = pytest.mark.parametrize("make", [with_lora, with_norm, with_head])


def attached(model, name):
    """The handle, and the parameters with this part in their names, trainable."""
    edits = headedit.attach(model)
    others = {full: p.requires_grad_(True) for full, p in model.named_parameters() if name in full}
    assert others
    return edits, others


def trainer(edits, folder, **options):
    options = {"max_steps": 8, "save_steps": 4, "learning_rate": 2e-2, "logging_steps": 2, **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        **options,
    )
    return HeadEditTrainer(
        edits, args=arguments, train_dataset=ROWS[:16], eval_dataset=ROWS[16:], data_collator=PadRight()
    )


def values(edits, others):
    return [*edits.snapshot(), *(p.detach().clone() for p in others.values())]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@KINDS
def test_a_resumed_training_ends_with_the_same_edits_and_other_weights(make, tmp_path):
    edits, others = make()
    start = [p.detach().clone() for p in others.values()]
    trainer(edits, tmp_path).train()
    whole = values(edits, others)
    assert not any(torch.equal(a, b) for a, b in zip(start, others.values(), strict=True))
    saved = load_file(tmp_path / "checkpoint-8" / WEIGHTS_FILE)
    assert saved.keys() == others.keys()
    assert all(torch.equal(saved[name], others[name]) for name in saved)
    edits, others = make()
    trainer(edits, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(values(edits, others), whole)


@KINDS
def test_the_best_checkpoint_is_loaded_with_its_other_weights(make, tmp_path):
    edits, others = make()
    best = {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # so that the first is the best
    ours = trainer(
        edits, tmp_path, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True, learning_rate=0.1, **best
    )
    ours.train()
    saved = load_file(tmp_path / "checkpoint-4" / WEIGHTS_FILE)
    assert ours.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert all(torch.equal(saved[name], others[name]) for name in others)
    assert ours.evaluate()["eval_loss"] == ours.state.best_metric


def test_a_model_saved_at_the_end_has_the_other_weights_in_a_file_of_their_own(tmp_path):
    edits, others = with_norm()
    ours = trainer(edits, tmp_path)
    ours.train()
    ours.save_model()
    assert torch.equal(load_file(tmp_path / WEIGHTS_FILE)["model.norm.weight"], others["model.norm.weight"])
    others["model.norm.weight"].requires_grad_(False)
    ours.save_model()
    assert not (tmp_path / WEIGHTS_FILE).exists()


def test_a_checkpoint_of_other_trainable_weights_is_not_resumed_from(tmp_path):
    edits, _ = with_norm()
    trainer(edits, tmp_path / "norm").train()
    before = edits.snapshot()
    alone = headedit.attach(tiny_model("llama"))
    with pytest.raises(HeadEditError, match=r"holds model\.norm\.weight, which were trained besides the edits"):
        trainer(alone, tmp_path / "norm").train(resume_from_checkpoint=True)
    head, _ = with_head()
    with pytest.raises(HeadEditError, match=r"no values of lm_head\.weight, which are trainable besides the edits"):
        trainer(head, tmp_path / "norm").train(resume_from_checkpoint=True)
    assert same(edits.snapshot(), before)
    (tmp_path / "norm" / "checkpoint-8" / WEIGHTS_FILE).write_bytes(b"half")
    with pytest.raises(HeadEditError, match=rf"checkpoint-8.{WEIGHTS_FILE}: cannot be read"):
        trainer(edits, tmp_path / "norm").train(resume_from_checkpoint=True)


def test_a_loss_that_becomes_nan_restores_the_other_weights_too(tmp_path, monkeypatch):
    edits, others = with_norm()
    ours = trainer(edits, tmp_path, save_steps=100)
    step = ours.training_step

    def broken(*args, **kwargs):
        if ours.state.global_step == 5:
            others["model.norm.weight"].data.fill_(torch.nan)
        return step(*args, **kwargs)

    monkeypatch.setattr(ours, "training_step", broken)
    with pytest.raises(HeadEditError, match="NaN or infinite at step 6"):
        ours.train()
    assert torch.isfinite(others["model.norm.weight"]).all()
    assert torch.equal(load_file(tmp_path / WEIGHTS_FILE)["model.norm.weight"], others["model.norm.weight"])


def test_fit_refuses_to_train_other_weights_that_it_would_not_save(tmp_path):
    for make, name in ((with_head, r"lm_head\.weight"), (with_lora, r"lora_A\.default\.weight, .* and 5 more")):
        edits, _ = make()
        with pytest.raises(HeadEditError, match=rf"headedit\.fit .*{name} of the model are trainable too.*Trainer"):
            headedit.fit(edits, ROWS[:16], output_dir=tmp_path / "out", recipe="ungated", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_mixin_trains_and_saves_edits_and_lora_of_a_peft_config(tmp_path):
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")

    class EditSFTTrainer(headedit.HeadEditMixin, trl.SFTTrainer):
        pass

    edits = headedit.attach(tiny_model("llama", vocab_size=512))
    before = edits.snapshot()
    ours = EditSFTTrainer(
        edits,
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            bf16=False,
            use_cpu=True,
            max_steps=2,
            save_steps=2,
            report_to=[],
            learning_rate=0.1,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a b", "completion": " c d"}] * 8),
        processing_class=byte_level(),
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    ours.train()
    assert not same(edits.snapshot(), before)
    saved = load_file(tmp_path / "checkpoint-2" / WEIGHTS_FILE)
    trained = {name: p for name, p in ours.model.named_parameters() if "lora_" in name}
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], p) and p.any() for name, p in trained.items())


def test_an_optimiser_without_the_edits_is_refused(tmp_path):
    edits, others = with_norm()
    ours = trainer(edits, tmp_path)
    ours.optimizer = torch.optim.SGD(others.values(), lr=0.1)
    with pytest.raises(HeadEditError, match="holds no parameter of the edits"):
        ours.train()
