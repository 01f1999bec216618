"""Chat templates that write today's date: a run keeps its date, on resume and in evaluation."""

import copy
import datetime
import json
import pickle

import pytest
import torch
from run_inputs import save_model
from tiny import tiny_model
from tokenizers_tiny import CHATML, byte_level

import headedit
from headedit import DataConfig, HeadEditError, load_data
from headedit.data import cache, clock
from headedit.evaluation.answers import generation

DATED = "today {{ strftime_now('%d %b %Y') }}\n" + CHATML
TOKENIZER = byte_level(DATED)
ROWS = [
    {"messages": [{"role": "user", "content": f"what is {i}"}, {"role": "assistant", "content": "the sum"}]}
    for i in range(8)
]
SETTINGS = {"recipe": "jola", "epochs": 3, "batch_size": 4, "progress": False}
ARGUMENTS = {"save_strategy": "steps", "save_steps": 2}


class Stopped(Exception):
    pass


@pytest.fixture
def today(monkeypatch):
    """Sets the day of March that it is."""

    class Day(datetime.datetime):
        day = 1

        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 3, cls.day, 12, tzinfo=tz)

    monkeypatch.setattr(clock, "datetime", Day)

    def to(day):
        Day.day = day

    return to


def attached(stop=None):
    """Edits of a tiny model, which stops after so many passes."""
    model = tiny_model("llama", vocab_size=512, max_position_embeddings=128)
    edits = headedit.attach(model)
    passes, forward = [0], model.forward

    def counted(*args, **given):
        passes[0] += 1
        if stop is not None and passes[0] > stop:
            raise Stopped
        return forward(*args, **given)

    model.forward = counted
    return edits


def fitted(folder, rows=ROWS, stop=None, resume=False):
    edits = attached(stop)
    given = {"tokenizer": TOKENIZER, "arguments": ARGUMENTS, "resume": resume, **SETTINGS}
    if stop is not None:
        with pytest.raises(Stopped):
            headedit.fit(edits, rows, output_dir=folder, **given)
    else:
        headedit.fit(edits, rows, output_dir=folder, **given)
    return edits


def texts_asked(handle, monkeypatch, **options):
    """The texts that an evaluation asks the model to continue."""
    asked = []
    real = generation.prompt_ids

    def seen(tokenizer, prompt):
        asked.append(tokenizer.decode(real(tokenizer, prompt)))
        return real(tokenizer, prompt)

    monkeypatch.setattr(generation, "prompt_ids", seen)
    headedit.exact_match(handle.model, TOKENIZER, ROWS[:2], max_new_tokens=1, progress=False, **options)
    return asked


def test_a_run_that_is_resumed_on_the_next_day_ends_with_the_same_edits(tmp_path, today):
    whole = fitted(tmp_path / "whole")
    fitted(tmp_path / "run", stop=3)
    today(2)
    resumed = fitted(tmp_path / "run", resume=True)
    assert torch.equal(*(torch.cat([p.flatten() for p in edits.module.parameters()]) for edits in (whole, resumed)))
    files = [(tmp_path / name / "headedit.safetensors").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]
    other = fitted(tmp_path / "other")
    assert not torch.equal(other.module.site_edits[0].vectors["offset"], whole.module.site_edits[0].vectors["offset"])


def test_a_run_that_is_finished_is_found_finished_on_the_next_day(tmp_path, today):
    fitted(tmp_path)
    today(2)
    assert fitted(tmp_path, resume=True).module.date == "2026-03-01T12:00:00"


def test_saved_edits_are_evaluated_with_the_date_of_their_run(tmp_path, today, monkeypatch):
    edits = fitted(tmp_path / "run")
    today(2)
    fresh = tiny_model("llama", vocab_size=512, max_position_embeddings=128)
    for given in (edits, headedit.load(fresh, tmp_path / "run")):
        for options in ({"edits": given}, {}):
            asked = texts_asked(given, monkeypatch, **options)
            assert asked
            assert all("today 01 Mar 2026" in text for text in asked)
    asked = texts_asked(attached(), monkeypatch)
    assert asked
    assert all("today 02 Mar 2026" in text for text in asked)


def test_the_date_of_edits_is_in_copies_pickles_state_dicts_and_hardened_files(tmp_path, today):
    edits = fitted(tmp_path / "run")
    date = "2026-03-01T12:00:00"
    assert copy.deepcopy(edits.module).date == pickle.loads(pickle.dumps(edits.module)).date == date
    other = attached()
    other.model.load_state_dict(edits.model.state_dict())
    assert other.module.date == (other["default"] * 0.5).date == date
    edits.save_pretrained(tmp_path / "short", hardened=True)
    assert json.loads((tmp_path / "short" / "headedit_config.json").read_text())["date"] == date
    attached().save_pretrained(tmp_path / "none")
    assert "date" not in json.loads((tmp_path / "none" / "headedit_config.json").read_text())


def test_load_data_tells_templates_one_date_and_reports_it(tmp_path, today):
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first = load_data(DataConfig(train=str(file)), TOKENIZER, progress=False)
    today(2)
    again = load_data(DataConfig(train=str(file), date=first.report["date"]), TOKENIZER, progress=False)
    other = load_data(DataConfig(train=str(file)), TOKENIZER, progress=False)
    assert list(first.train) == list(again.train) != list(other.train)
    assert "01 Mar" in first.pairs("train")[0][0]
    assert fitted(tmp_path / "run", rows=again.train).module.date == first.report["date"]
    plain = load_data(DataConfig(train=str(file), template="chatml"), TOKENIZER, progress=False)
    assert plain.report["date"] is None
    assert DataConfig.from_dict({"train": "d", "date": datetime.date(2026, 3, 1)}, "run").date == "2026-03-01"
    with pytest.raises(HeadEditError, match="date: found 'today', expected a date such as"):
        DataConfig(train=str(file), date="today")


def test_the_cache_of_tokens_has_another_entry_on_another_day(tmp_path, today, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_WORTH_STORING", 0)
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def read():
        return load_data(DataConfig(train=str(file)), TOKENIZER, progress=False)

    first, again = read(), read()
    today(2)
    other = read()
    assert list(first.train) == list(again.train) != list(other.train)
    assert first.report["date"] == again.report["date"] == "2026-03-01T12:00:00"
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2


def test_train_keeps_the_date_in_its_file_and_resumes_with_it(tmp_path, today):
    model = save_model(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = {"name": "jola", "epochs": 3, "batch_size": 4}
    config = {"model": {"name": model}, "data": {"train": str(file)}, "recipe": given, "output": str(tmp_path / "run")}
    run = headedit.train(config, progress=False)
    assert "date: '2026-03-01T12:00:00'" in (tmp_path / "run" / "run.yaml").read_text()
    today(2)
    again = headedit.train(config, resume=True, progress=False)
    assert again.edits.module.date == run.edits.module.date == "2026-03-01T12:00:00"
    headedit.train(tmp_path / "run", output=str(tmp_path / "repeated"), progress=False)
    files = [(tmp_path / name / "headedit.safetensors").read_bytes() for name in ("run", "repeated")]
    assert files[0] == files[1]


def test_rows_that_the_user_rendered_on_another_day_are_refused_with_a_word_on_dates(tmp_path, today):
    def pairs(day):
        return [(f"today {day} March: what is {i}", " the sum") for i in range(8)]

    fitted(tmp_path, rows=pairs(1), stop=3)
    with pytest.raises(HeadEditError, match=r"differs in training examples.*wrote the date"):
        fitted(tmp_path, rows=pairs(2), resume=True)


def test_edits_are_measured_on_examples_with_the_date_of_their_run(tmp_path, today):
    edits = fitted(tmp_path)
    first = headedit.attribute(edits, ROWS[:2], tokenizer=TOKENIZER, progress=False).loss
    today(2)
    assert headedit.attribute(edits, ROWS[:2], tokenizer=TOKENIZER, progress=False).loss == first
    edits.module.date = None
    assert headedit.attribute(edits, ROWS[:2], tokenizer=TOKENIZER, progress=False).loss != first
