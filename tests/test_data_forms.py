"""Every form of example gives the same token ids and labels to training, evaluation, interpretation and the report."""

import importlib
import json

import datasets
import pytest
import tokenizers_tiny
import torch
from tiny import randomise, tiny_model
from tokenizers_tiny import CHATML, byte_level
from torch.nn.functional import cross_entropy

import headedit
from headedit import DataConfig, HeadEditError, Task, load_data
from headedit.cli.main import main
from headedit.data.batches import IGNORED, StoredRows
from headedit.data.encoding import encode, encode_for_generation, ids_to_last_token, last_response
from headedit.data.tokens import prompt_ids, response_ids
from headedit.interpret.evidence.attribution import attribute, integrate
from headedit.interpret.evidence.causal import leave_one_out, patch
from headedit.interpret.evidence.table import evidence
from headedit.interpret.evidence.tokens import tokens
from headedit.interpret.plots.effects import head_norms

pytest.importorskip("nnsight")
pytest.importorskip("pandas")

TOKENIZER = byte_level(CHATML)
QUESTIONS = ["What is the sum?", "What is two and three?", "Which task?", "Which request?"]
ANSWERS = ["five", "the answer is a", "an instruction", "b c"]
FIRST = [{"role": "system", "content": "the answer is five"}, {"role": "user", "content": "What is the sum?"}]


def pairs():
    return list(zip(QUESTIONS, [f" {answer}" for answer in ANSWERS], strict=True))


def records():
    return [{"prompt": question, "response": answer} for question, answer in pairs()]


def alpaca():
    return [{"instruction": q, "input": "two", "output": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


def messages():
    return [
        {"messages": [*FIRST, *({"role": r, "content": c} for r, c in turns)]}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
        for turns in [[("assistant", "two"), ("user", q), ("assistant", a), ("user", "and three?")]]
    ]


def sharegpt():
    return [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]


def rows():
    return list(encode(messages(), TOKENIZER, max_length=None, name="training", progress=False))


def split(folder):
    file = folder / "split.jsonl"
    file.write_text("\n".join(map(json.dumps, messages())))
    return load_data(DataConfig(train=str(file)), TOKENIZER, progress=False).train


FORMS = {
    "pairs": lambda folder: pairs(),
    "records": lambda folder: records(),
    "alpaca": lambda folder: alpaca(),
    "messages": lambda folder: messages(),
    "sharegpt": lambda folder: sharegpt(),
    "token ids": lambda folder: rows(),
    "dataset": lambda folder: datasets.Dataset.from_list(messages()),
    "dataset of token ids": lambda folder: datasets.Dataset.from_list(rows()),
    "split": split,
    "rows on disk": lambda folder: StoredRows(datasets.Dataset.from_list(rows())),
}
examples_module = importlib.import_module("headedit.training.examples")
table_module = importlib.import_module("headedit.interpret.evidence.table")


@pytest.fixture(params=FORMS)
def examples(request, tmp_path):
    return FORMS[request.param](tmp_path)


@pytest.fixture
def edits():
    handle = headedit.attach(tiny_model("llama", vocab_size=360, max_position_embeddings=512))
    randomise(handle)
    return handle


@pytest.fixture
def trained(edits, examples, tmp_path, monkeypatch):
    """The rows that fit trains on."""
    found = []
    monkeypatch.setattr(
        examples_module, "encode", lambda *a, **options: found.append(encode(*a, **options)) or found[-1]
    )
    options = {"recipe": "ungated", "epochs": 1, "min_steps": 1, "batch_size": 4, "progress": False}
    headedit.fit(edits, examples, tokenizer=TOKENIZER, output_dir=tmp_path / "out", **options)
    assert len(found) == 1
    assert len(found[0]) == 4
    return [{key: list(row[key]) for key in ("input_ids", "labels")} for row in found[0]]


def expected_losses(model, rows):
    """The mean loss of each row, without padding."""
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            found.append(cross_entropy(logits, torch.tensor(row["labels"][1:])))
    return torch.stack(found)


def seen(model, call):
    """The rows of token ids, without padding, that a call runs the model on."""
    found = []

    def keep(module, args, kwargs):
        ids = kwargs["input_ids"]
        mask = kwargs.get("attention_mask", torch.ones_like(ids))
        found.extend(tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True))

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return set(found)


def test_interpretation_measures_on_the_rows_that_fit_trains_on(edits, examples, trained):
    options = {"tokenizer": TOKENIZER, "batch_size": 3, "progress": False}
    edits.model.eval()
    losses = expected_losses(edits.model, trained)
    with edits.disable_adapter():
        base_losses = expected_losses(edits.model, trained)
    ids = {tuple(row["input_ids"]) for row in trained}
    found = attribute(edits, examples, **options)
    assert (found.loss, found.base_loss) == pytest.approx((losses.mean().item(), base_losses.mean().item()), abs=1e-5)
    effects = leave_one_out(edits, examples, heads=[(0, 1)], **options)
    assert torch.allclose(effects.before, losses, atol=1e-5)
    assert torch.allclose(patch(edits, examples, into="base", heads=[(0, 1)], **options).before, base_losses, atol=1e-5)
    assert seen(edits.model, lambda: integrate(edits, examples, steps=1, **options)) == ids
    measured = {"heads": [(0, 1)], "progress": False}
    with_the_probe_of_the_path = seen(edits.model, lambda: tokens(edits, TOKENIZER, examples, **measured))
    assert len(with_the_probe_of_the_path - ids) == 1
    assert ids < with_the_probe_of_the_path


def test_evidence_with_its_probes_is_of_the_rows_that_fit_trains_on(edits, examples, trained):
    table = evidence(edits, examples, tokenizer=TOKENIZER, steps=1, progress=False)
    edits.model.eval()
    assert table.attrs["examples"] == 4
    assert table.attrs["loss"] == pytest.approx(expected_losses(edits.model, trained).mean().item(), abs=1e-5)
    assert table["probe_accuracy"].between(0, 1).all()


def test_heads_are_read_at_the_last_token_of_the_response_that_fit_trains_on(edits, examples, trained):
    runs = seen(edits.model, lambda: head_norms(edits, examples, tokenizer=TOKENIZER, progress=False))
    if isinstance(examples[0], dict) and "input_ids" in examples[0]:  # token ids are read at the last of them
        assert runs == {tuple(row["input_ids"]) for row in trained}
    else:
        assert runs == {tuple(row["input_ids"][:-1]) for row in trained}


def test_exact_match_continues_the_prompts_that_fit_trains_on(edits, examples, trained):
    def call():
        report = headedit.exact_match(
            edits.model, TOKENIZER, examples, edits=edits, max_new_tokens=1, batch_size=3, progress=False
        )
        assert report.n == 4

    prompts = {tuple(row["input_ids"][: last_response(row, "here")[0]]) for row in trained}
    assert len(prompts) == 4
    assert seen(edits.model, call) == prompts


def memoriser(rows):
    """A model whose generation says what each row teaches after its prompt, and goes on where it does not end."""
    model = tiny_model("llama", vocab_size=360, max_position_embeddings=512)
    learned = {}
    for row in rows:
        start, end = last_response(row, "here")
        learned[tuple(row["input_ids"][:start])] = row["labels"][start:end]

    def generate(input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, **options):
        found = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            said = learned[tuple(ids[mask.bool()].tolist())]
            more = [] if said[-1] in eos_token_id else TOKENIZER("and so on").input_ids * 9
            said = (said + more)[:max_new_tokens]
            found.append(ids.tolist() + said + [pad_token_id] * (max_new_tokens - len(said)))
        return torch.tensor(found)

    model.generate = generate
    return model


@pytest.mark.parametrize("name", FORMS)
def test_a_model_that_says_what_it_was_taught_matches_exactly(name, tmp_path):
    examples = FORMS[name](tmp_path)
    model = memoriser(encode(examples, TOKENIZER, max_length=None, name="training", progress=False))
    assert headedit.exact_match(model, TOKENIZER, examples, progress=False).accuracy == 1.0


@pytest.mark.parametrize(("end", "template"), [("<|im_end|>", CHATML), ("</s>", None)])
def test_a_conversation_ends_where_its_template_ends_it(monkeypatch, end, template):
    tokenizer = byte_level(template, eos=end)
    model = memoriser(encode(messages(), tokenizer, max_length=None, name="training", progress=False))
    assert headedit.exact_match(model, tokenizer, messages(), progress=False).accuracy == 1.0
    monkeypatch.setattr(tokenizers_tiny, "SPECIALS", tokenizers_tiny.SPECIALS[:3])
    plain = byte_level()  # in which the end of a turn is several tokens of text
    model = memoriser(encode(messages(), plain, max_length=None, name="training", progress=False))
    assert headedit.exact_match(model, plain, messages(), progress=False).accuracy == 1.0
    ids = ids_to_last_token(messages()[0], plain, "here")
    assert plain.decode(ids).endswith("<|im_start|>assistant\nfive")


def test_a_prompt_that_knows_its_tokens_is_not_tokenised_again():
    prompt, response = encode_for_generation(rows()[3], TOKENIZER, "here")
    start, _ = last_response(rows()[3], "here")
    assert prompt_ids(TOKENIZER, prompt) == prompt.ids == rows()[3]["input_ids"][:start]
    assert (response, TOKENIZER.decode(prompt.ending)) == ("b c", "<|im_end|>")
    assert TOKENIZER.decode(response_ids(TOKENIZER, prompt, response)) == "b c</s>"
    with pytest.raises(HeadEditError, match="here: has no labelled token, so it has no response"):
        encode_for_generation({"input_ids": [3], "labels": [IGNORED]}, TOKENIZER, "here")


def test_a_template_of_the_task_is_that_of_the_evaluation():
    task = Task(name="mine", prompt=None, answer=None, template="chatml", num_beams=1, max_new_tokens=1)
    model = tiny_model("llama", vocab_size=360, max_position_embeddings=512)
    runs = seen(model, lambda: headedit.evaluate(model, task, data=pairs(), tokenizer=TOKENIZER, progress=False))
    assert any(TOKENIZER.decode(ids).endswith(f"{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n") for ids in runs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None, "answer": "a", "template": None}, "prompt and answer: give both, or null for both"),
        ({"prompt": None, "answer": None, "options": ["a", "b"]}, "options: need a prompt"),
        ({"prompt": "p", "answer": "a", "template": None}, "template: null needs records that are training examples"),
    ],
)
def test_a_task_whose_prompt_does_not_fit_its_other_fields_is_refused(fields, message):
    with pytest.raises(HeadEditError, match=message):
        Task(name="mine", **fields)


@pytest.mark.parametrize("form", ["records", "alpaca", "messages", "sharegpt", "dataset"])
def test_the_report_and_the_evaluation_of_a_file_take_what_fit_trains_on(form, tmp_path, monkeypatch, capsys):
    model = tiny_model("llama", vocab_size=360, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    if form == "dataset":
        FORMS[form](tmp_path).save_to_disk(tmp_path / "data")
    else:
        (tmp_path / "data").write_text("\n".join(map(json.dumps, FORMS[form](tmp_path))))
    edits = headedit.attach(model)
    options = {"recipe": "ungated", "epochs": 1, "min_steps": 1, "batch_size": 4, "progress": False}
    headedit.fit(edits, FORMS[form](tmp_path), tokenizer=TOKENIZER, output_dir=tmp_path / "out", **options)
    found = []
    monkeypatch.setattr(table_module, "evidence", lambda edits, data, **options: found.append(list(data)))
    common = ["--model", tmp_path / "model", "--data", tmp_path / "data", "--device", "cpu"]
    for arguments in (
        ["report", tmp_path / "out", *common],
        ["eval", *common, "--max-new-tokens", 1, "--edits", tmp_path / "out"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0, capsys.readouterr()
    wanted = encode(FORMS[form](tmp_path), TOKENIZER, max_length=None, name="training", progress=False)
    assert found == [wanted]
