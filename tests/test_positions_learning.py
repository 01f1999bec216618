"""Edits of some tokens alone, trained and evaluated: the same tokens by every loss, cache and reader."""

import pytest
import torch
from test_eval_shared_prompts import OPTIONS, Numbers, prompts
from test_prefix_cache import ONE
from test_response_loss import ROWS, gradients
from test_trainers import OPTIONS as TRAINING
from tiny import randomise, tiny_model
from transformers import Trainer, TrainingArguments

import headedit
from headedit import EditConfig, HeadEditError, HeadEditTrainer
from headedit.data import losses
from headedit.data.batches import PadRight
from headedit.data.equal_lengths import InEqualLengths
from headedit.data.losses import example_losses, total_loss
from headedit.data.prompts import labelled, prompts_of
from headedit.evaluation.answers.generation import continuations
from headedit.evaluation.answers.likelihood import option_scores
from headedit.interpret.evidence.attribution import attribute
from headedit.interpret.evidence.causal import leave_one_out
from headedit.training import fit

KINDS = ["prompt", "generated", "last_prompt"]


class Words(Numbers):
    """As ``Numbers``, and makes text of tokens."""

    def decode(self, tokens, **options):
        return " ".join(map(str, tokens))

    def batch_decode(self, rows, **options):
        return [self.decode(row) for row in rows]


def edited(positions, model_type="llama", **config):
    model = tiny_model(model_type)
    edits = headedit.attach(model, config=EditConfig(positions=positions, **config))
    randomise(edits)
    return model, edits


def uneven():
    """Rows of several lengths."""
    return [{key: values[: 9 - i % 4] for key, values in row.items()} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("positions", KINDS)
def test_every_loss_sees_the_tokens_that_the_models_own_does(positions, monkeypatch):
    model, edits = edited(positions)
    batch = PadRight()(uneven()[:6])
    wanted = gradients(edits, model(**batch, use_cache=False).loss)
    assert any(bool(gradient.any()) for gradient in wanted)
    alone = [model(**PadRight()([row]), use_cache=False).loss.item() for row in uneven()[:6]]
    for chunks in (False, True):
        if chunks:
            monkeypatch.setattr(losses, "LARGEST", 1)
            monkeypatch.setattr(losses, "chunk_size", lambda vocabulary: 4)
        total, count = total_loss(model, batch)
        for a, b in zip(gradients(edits, total / count), wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert example_losses(model, uneven()[:6], PadRight(), 6).tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("positions", KINDS)
def test_a_batch_in_parts_of_equal_length_edits_the_same_tokens(positions):
    model, _ = edited(positions)
    batch = PadRight()(uneven()[:6])
    labels = batch.pop("labels")
    with torch.no_grad(), labelled(labels):
        whole = model(**batch, use_cache=False).logits
        parts = InEqualLengths(model)(**batch, use_cache=False)["logits"]
    real = batch["attention_mask"].bool()
    assert torch.allclose(parts[real], whole[real], atol=1e-5)


@pytest.mark.parametrize("large", [False, True], ids=["logits", "chunks"])
def test_our_trainer_and_a_plain_one_learn_the_same_edits_of_some_tokens(large, tmp_path, monkeypatch):
    if large:
        monkeypatch.setattr(losses, "LARGEST", 1)
    kept = []
    for make in (lambda e, **o: HeadEditTrainer(e, **o), lambda e, **o: Trainer(model=e.model, **o)):
        torch.manual_seed(0)
        edits = headedit.attach(tiny_model("llama"), config=EditConfig(gates="none", positions="last_prompt"))
        settings = {**TRAINING, "num_train_epochs": 2}
        arguments = TrainingArguments(output_dir=str(tmp_path / str(len(kept))), **settings)
        make(edits, args=arguments, train_dataset=ROWS[:12], eval_dataset=ROWS[12:], data_collator=PadRight()).train()
        kept.append(edits.snapshot())
    assert all(torch.allclose(a, b, atol=1e-4 if large else 0) for a, b in zip(*kept, strict=True))
    assert any(t.any() for t in kept[0])


@pytest.mark.parametrize("positions", KINDS)
def test_the_cache_of_lower_layers_changes_no_bit_of_what_is_learnt(positions, tmp_path):
    kept = []
    for cached in (False, True):
        edits = headedit.attach(
            tiny_model("llama", num_hidden_layers=3), config=EditConfig(layers="1:", positions=positions)
        )
        folder = tmp_path / str(cached)
        fit.fit(edits, ROWS[:8], ROWS[8:12], output_dir=folder, progress=False, cache_prefix=cached, **ONE)
        kept.append([p.detach().clone() for p in edits.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_training_in_which_no_token_is_edited_is_refused(tmp_path):
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS]
    for positions in ("prompt", "last_prompt"):
        model, edits = edited(positions)
        batch = PadRight()(rows[:4])
        model.train()
        with pytest.raises(HeadEditError, match="has no such token, so nothing would be learnt"):
            model(**batch, use_cache=False)
        model(**PadRight()(ROWS[:4]), use_cache=False).loss.backward()
        model(**batch, use_cache=False)  # a batch without prompts among others
        assert any(bool(p.grad.any()) for p in edits.vector_parameters())


@pytest.mark.parametrize("shared", [0, 18], ids=["prompts that differ", "prompts that begin alike"])
@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_options_have_the_likelihood_of_the_full_pass(model_type, positions, shared):
    model, edits = edited(positions, model_type)
    begin = torch.randint(3, 60, (shared,), generator=torch.Generator().manual_seed(8)).tolist()
    heads = [begin + head for head in prompts()]
    for options in (OPTIONS, OPTIONS[:2]):  # one pass over each prompt, and whole rows
        questions = [(" ".join(map(str, head)), [" ".join(map(str, tail)) for tail in options]) for head in heads]
        batches = option_scores(model, Numbers(), questions, batch_size=3, progress=False)
        for i, scores in (pair for batch in batches for pair in batch):
            for tail, value in zip(options, scores.values, strict=True):
                ids = torch.tensor([heads[i] + tail])
                labels = ids.clone()
                labels[:, : len(heads[i])] = -100
                with torch.no_grad():
                    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
                assert value == pytest.approx(-loss.item() * len(tail), abs=1e-3)
    assert edits.attached


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("positions", KINDS)
def test_generation_for_an_evaluation_gives_the_tokens_of_one_call(positions, beams):
    model, _ = edited(positions)
    texts = [" ".join(map(str, head)) for head in prompts()]
    options = {"max_new_tokens": 11, "num_beams": beams, "progress": False}
    for i, found in (pair for batch in continuations(model, Words(), texts, **options) for pair in batch):
        ids = torch.tensor([prompts()[i]])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=11, num_beams=beams, do_sample=False,
            length_penalty=1.0, early_stopping=False, pad_token_id=0,
        )  # fmt: skip
        assert found.text.split() == [str(token) for token in alone[0, ids.shape[1] :].tolist()]


@pytest.mark.parametrize("positions", KINDS)
def test_the_evidence_on_heads_is_of_the_edited_tokens(positions):
    model, edits = edited(positions)
    wanted = example_losses(model, ROWS, PadRight(), 8)
    found = attribute(edits, ROWS, progress=False)
    assert found.loss == pytest.approx(wanted.mean().item(), rel=1e-4)
    pytest.importorskip("nnsight")
    effects = leave_one_out(edits, ROWS[:4], heads=[(0, 1)], progress=False)
    assert effects.before.tolist() == pytest.approx(wanted[:4].tolist(), rel=1e-4)
    assert edits.attached


def test_what_a_reader_says_of_prompts_ends_with_it():
    model, _ = edited("prompt")
    ids = torch.tensor([ROWS[0]["input_ids"]])
    with prompts_of([4]):
        model(input_ids=ids)
    with pytest.raises(HeadEditError, match="It cannot be told"):
        model(input_ids=ids)
