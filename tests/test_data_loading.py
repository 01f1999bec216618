"""``load_data``: splits, limits, faults and overlaps, and a report of all of it; large sets are encoded once."""

import json
import logging
import random
import sys

import pytest
from tiny import tiny_model
from tokenizers_tiny import CHATML, byte_level

import headedit
from headedit import HeadEditError
from headedit.data import cache
from headedit.data.batches import IGNORED, ListedRows, StoredRows
from headedit.data.config import DataConfig
from headedit.data.loading import load_data
from headedit.evaluation.exact_match import EXACT_MATCH
from headedit.evaluation.tasks.records import load_rows

TOKENIZER = byte_level(CHATML, eos="<|im_end|>")


def adapters(start, count):
    return [
        {"instruction": f"What is {i}?", "input": "", "output": f"the answer is {i}", "answer": f"a{i}"}
        for i in range(start, start + count)
    ]


def shared(lengths):
    """Conversations with so many exchanges each."""
    return [
        {
            "conversations": [
                {"from": ("human", "gpt")[i % 2], "value": f"What is the sum of {i} and {n}?"} for i in range(2 * count)
            ]
        }
        for n, count in enumerate(lengths)
    ]


@pytest.fixture
def write(tmp_path):
    def written(name, rows):
        (tmp_path / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return str(tmp_path / name)

    return written


def loaded(tokenizer=TOKENIZER, context=None, **fields):
    return load_data(DataConfig(**fields), tokenizer, context=context, progress=False)


def learned(row):
    return TOKENIZER.decode([label for label in row["labels"] if label != IGNORED])


def test_every_split_is_read_from_its_file_and_reported(write):
    train, test = write("train.jsonl", adapters(0, 40)), write("test.jsonl", adapters(100, 9))
    data = loaded(train=train, valid=0.25, test=test, examples=20, test_examples=4, seed=42)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [15, 5, 4]
    indices = {name: data.report[name]["indices"] for name in ("train", "valid", "test")}
    assert not set(indices["train"]) & set(indices["valid"])
    assert [learned(row) for row in data.train] == [f"a{i}<|im_end|>" for i in indices["train"]]
    assert [learned(row) for row in data.test] == [f"a{100 + i}<|im_end|>" for i in indices["test"]]
    assert data.report["train"]["formats"] == {"llm-adapters": 15}
    assert data.report["train"]["templates"] == {"alpaca": 15}
    assert data.report["train"]["response_ends"] == {"<|im_end|>": 15}
    assert [data.report[name]["read"] for name in indices] == [40, 40, 9]
    assert data.report["seed"] == 42
    assert json.loads(json.dumps(data.report)) == data.report

    again = loaded(train=train, valid=0.25, test=test, examples=20, test_examples=4, seed=42)
    assert (again.train, again.report) == (data.train, data.report)
    assert loaded(train=train, valid=0.25, examples=20).report["train"]["indices"] != indices["train"]


def test_a_set_given_by_its_size_is_drawn_from_the_training_source(write):
    data = loaded(train=write("d.jsonl", shared([1] * 60)), valid=6, test=4, examples=30)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [30, 6, 4]
    assert len({i for name in ("train", "valid", "test") for i in data.report[name]["indices"]}) == 40
    with pytest.raises(HeadEditError, match=r"60 records cannot be split into a training set and a test set of 60"):
        loaded(train=write("d.jsonl", shared([1] * 60)), test=60)


def test_several_files_are_read_as_one_source(write):
    data = loaded(train=[write("a.jsonl", adapters(0, 3)), write("b.jsonl", ["", *adapters(10, 2)])])
    assert [learned(row) for row in data.train] == [f"a{i}<|im_end|>" for i in (0, 1, 2, 10, 11)]
    assert data.report["train"]["indices"] == [0, 1, 2, 3, 4]


def test_the_pairs_of_a_split_are_what_training_saw(write):
    data = loaded(train=write("d.jsonl", [*adapters(0, 2), *shared([3])]))
    for row, (prompt, response) in zip(data.train, data.pairs("train"), strict=True):
        head = headedit.data.prompt_ids(TOKENIZER, prompt)
        assert row["input_ids"][: len(head)] == head
        assert TOKENIZER.decode(row["input_ids"][len(head) :]) == response + "<|im_end|>"
    with pytest.raises(HeadEditError, match="There is no test set in this data"):
        data.pairs("test")


def test_every_response_of_a_conversation_is_learned(write):
    data = loaded(train=write("d.jsonl", shared([1, 3])))
    assert learned(data.train[1]) == "".join(f"What is the sum of {i} and 1?<|im_end|>" for i in (1, 3, 5))
    assert data.report["train"]["responses"] == 4
    assert data.report["train"]["templates"] == {"chat": 2}
    assert data.train[0]["input_ids"][0] != TOKENIZER.bos_token_id  # the template has none
    opened = loaded(train=write("d.jsonl", shared([1])), template="chatml").train[0]["input_ids"]
    assert opened == [TOKENIZER.bos_token_id, *data.train[0]["input_ids"]]


def test_an_example_that_is_too_long_is_dropped_cut_or_fatal_and_always_reported(write):
    train = write("d.jsonl", shared([1, 4, 2]))
    whole = loaded(train=train).report["train"]["tokens"]
    dropped = loaded(train=train, context=whole["max"] - 1)
    assert dropped.report["train"]["indices"] == [0, 2]
    assert (dropped.report["train"]["dropped"], dropped.report["train"]["dropped_indices"]) == (1, [1])

    cut = loaded(train=train, max_length=whole["min"], too_long="cut_prompt")
    assert [len(row["input_ids"]) <= whole["min"] for row in cut.train] == [True] * 3
    assert learned(cut.train[1]) == "What is the sum of 7 and 1?<|im_end|>"
    report = cut.report["train"]
    assert (report["cut"], report["cut_indices"], report["cut_responses"], report["dropped"]) == (2, [1, 2], 4, 0)
    assert report["cut_tokens"] == whole["total"] - report["tokens"]["total"]
    assert "2 cut to" in dict(cut.rows())["training set"]
    assert "4 earlier responses" in dict(cut.rows())["training set"]

    with pytest.raises(HeadEditError, match=r"line 2: has \d+ tokens, more than the limit of 80; so have 1 of 3 train"):
        loaded(train=train, max_length=80, too_long="fail")
    with pytest.raises(HeadEditError, match=r"training set has nothing to use: all 3 examples are longer than 5 tok"):
        loaded(train=train, max_length=5)


def test_malformed_records_are_fatal_or_counted(write):
    rows = [*shared([1]), "{oops", {"conversations": []}, {"messages": [{"role": "assistant", "content": "a"}]}]
    train = write("d.jsonl", rows)
    with pytest.raises(HeadEditError, match=r"line 2: not valid JSON .* skip_malformed: true"):
        loaded(train=train)
    with pytest.raises(HeadEditError, match=r"line 3: the conversation has no response"):
        loaded(train=write("e.jsonl", ["", rows[0], rows[2]]))
    data = loaded(train=train, skip_malformed=True, template="alpaca")
    report = data.report["train"]
    assert (report["read"], report["malformed"], report["used"], report["indices"]) == (4, 3, 1, [0])
    assert [message.split(": ")[0][-6:] for message in report["malformed_first"]] == ["line 2", "line 3", "line 4"]
    assert "3 malformed and left out" in dict(data.rows())["training set"]
    with pytest.raises(HeadEditError, match=r"line 4: the conversation has no response that follows"):
        loaded(train=write("f.jsonl", ["", "", "", rows[3]]), template="alpaca")


def test_a_config_can_name_the_format_of_its_records(write):
    train = write("d.jsonl", adapters(0, 1))
    assert learned(loaded(train=train, format="alpaca").train[0]) == "the answer is 0<|im_end|>"
    with pytest.raises(HeadEditError, match=r"line 1: found the fields instruction.*expected conversations"):
        loaded(train=train, format="sharegpt")


def test_an_overlap_is_counted_and_named(write):
    same, other = adapters(3, 1)[0], adapters(4, 1)[0]
    close = {**other, "instruction": " what  is 4?", "answer": "b"}
    data = loaded(
        train=write("d.jsonl", adapters(0, 6)), test=write("t.jsonl", [*adapters(50, 2), same, close, *adapters(60, 1)])
    )
    assert data.report["overlap"] == {"train/test": {"count": 2, "indices": [2, 3], "same_response": 1}}
    assert dict(data.rows())["overlap of training and test"].startswith("2 test examples have a prompt of the training")
    clean = loaded(train=write("d.jsonl", adapters(0, 6)), valid=2)
    assert clean.report["overlap"] == {"train/valid": {"count": 0, "indices": [], "same_response": 0}}
    assert [what for what, _ in clean.rows()] == ["training set", "validation set"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "a", "exmaples": 3}, r"run\.yaml: data: unknown key 'exmaples'\. Did you mean 'examples'\?"),
        ({}, r"run\.yaml: data: the key 'train' is missing"),
        ({"train": 3}, r"train: found 3 \(int\), expected a text or a list of a text"),
        ({"train": "a", "too_long": "cut"}, r"too_long: found 'cut' .*expected one of drop, cut_prompt, fail"),
        ({"train": "a", "valid": 1.5}, r"valid: found 1\.5, expected a whole number, or a share above 0 and below 1"),
        ({"train": "a", "test": 0}, r"test: found 0, expected a whole number"),
        ({"train": []}, r"train: the list is empty"),
        ({"train": ""}, r"train: found an empty name"),
        ({"train": "a", "examples": 0}, r"examples: found 0, expected 1 or more"),
        ({"train": "a", "max_length": 1}, r"max_length: found 1, expected 2 or more"),
        ({"train": "a", "valid": 5, "valid_examples": 3}, r"valid_examples: is for a source of its own"),
    ],
)
def test_a_data_config_refuses_unknown_and_impossible_values(fields, message):
    with pytest.raises(HeadEditError, match=message):
        DataConfig.from_dict(fields, "run.yaml: data")


@pytest.fixture
def stored(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(cache, "_WORTH_STORING", 1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headedit"


def test_a_large_set_is_encoded_once_and_stays_on_disk(write, stored, monkeypatch):
    rows = [*shared([1, 4, 2]), {"messages": [{"role": "user", "content": "no response"}]}]
    fields = {"train": write("d.jsonl", rows), "max_length": 60, "too_long": "cut_prompt", "skip_malformed": True}
    first = loaded(**fields)
    assert isinstance(first.train, StoredRows)
    assert len(list(stored.iterdir())) == 1
    calls = []
    monkeypatch.setattr(cache.Encoder, "__call__", lambda *a: calls.append(a))
    TOKENIZER(["a", "a b"], padding=True)  # which leaves its mark in the tokenizer
    again = loaded(**fields)
    assert not calls
    assert (list(again.train), again.report) == (list(first.train), first.report)
    monkeypatch.undo()
    in_memory = loaded(**fields)
    assert isinstance(in_memory.train, list)
    assert (in_memory.train, in_memory.report) == (list(first.train), first.report)


def test_a_large_set_is_encoded_again_for_other_choices(write, stored):
    train = write("d.jsonl", shared([2, 3]))
    made = [loaded(train=train), loaded(train=train, template="chatml"), loaded(train=train, max_length=500)]
    made += [loaded(byte_level(CHATML), train=train), loaded(byte_level(CHATML.replace("\n", " ")), train=train)]
    write("d.jsonl", shared([2, 4]))
    made.append(loaded(train=train))
    assert len(list(stored.iterdir())) == len(made)


def test_without_a_cache_the_set_stays_in_memory(write, stored, monkeypatch, caplog):
    stored.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert isinstance(loaded(train=write("d.jsonl", shared([1]))).train, list)
    assert "the cache cannot be written" in caplog.text
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert isinstance(loaded(train=write("d.jsonl", shared([1]))).train, list)


def test_edits_are_the_same_from_records_rows_in_memory_and_rows_on_disk(write, stored, monkeypatch, tmp_path):
    rows = shared([1, 2] * 6)
    train = write("d.jsonl", rows)
    on_disk = loaded(train=train)
    monkeypatch.setattr(cache, "_WORTH_STORING", 10**9)
    in_memory = loaded(train=train)
    assert (type(on_disk.train), type(in_memory.train)) == (StoredRows, ListedRows)
    fitted = []
    for i, examples in enumerate((on_disk.train, in_memory.train, rows)):
        edits = headedit.attach(tiny_model("llama", vocab_size=512, max_position_embeddings=128))
        options = {"recipe": "jola", "epochs": 1, "batch_size": 4, "progress": False}
        run = headedit.fit(edits, examples, examples, output_dir=tmp_path / str(i), tokenizer=TOKENIZER, **options)
        assert run.record["train_examples"] == 12
        fitted.append((tmp_path / str(i) / "headedit.safetensors").read_bytes())
    assert fitted[0] == fitted[1] == fitted[2]


@pytest.mark.parametrize("template", ["chat", "chatml"])
def test_a_long_conversation_takes_tokenizer_calls_of_its_own_length(write, template, monkeypatch):
    """The text that is tokenised grows with the conversation, not with its square."""
    words = random.Random(0).choices(["What", "is", "the", "sum", "of", "a", "task?"], k=60_000)
    turns = [" ".join(words[i : i + 300]) for i in range(0, len(words), 300)]
    rows = [{"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]}]
    seen = []
    whole = type(TOKENIZER).__call__

    def counted(self, text, **options):
        seen.append(sum(map(len, [text] if isinstance(text, str) else text)))
        return whole(self, text, **options)

    monkeypatch.setattr(type(TOKENIZER), "__call__", counted)
    data = loaded(train=write("d.jsonl", rows), template=template)
    assert data.report["train"]["responses"] == 100
    assert data.report["train"]["tokens"]["max"] > 60_000
    assert sum(seen) < 3 * sum(map(len, turns))


def test_fields_of_other_names_are_read_by_the_names_that_the_user_gives(write):
    record = {"question": "a b", "answer": " c", "output": "long", "prompt": "another"}
    file = write("other.jsonl", [record])
    fields = {"prompt": "question", "response": "answer"}
    data = load_data(DataConfig(train=file, fields=fields), TOKENIZER, progress=False)
    assert data.pairs("train") == [("a b", " c")]
    with pytest.raises(HeadEditError, match=r"line 1: has no field 'reply', which 'fields' takes as 'response'; found"):
        load_data(DataConfig(train=file, fields={**fields, "response": "reply"}), TOKENIZER, progress=False)
    with pytest.raises(HeadEditError, match=r"fields: no format has a field 'promt'.*Did you mean 'prompt'"):
        DataConfig(train=file, fields={"promt": "question"})


def test_an_evaluation_reads_the_fields_that_the_user_names():
    fields, rows = {"prompt": "question", "response": "answer"}, [{"question": "a", "answer": "b"}, {"question": "a"}]
    found = list(load_rows(EXACT_MATCH, rows, fields))
    assert found[0].value == {"prompt": "a", "response": "b"}
    assert found[1].fault.startswith("record 2: has no field 'answer'")


def test_thoughts_that_no_template_renders_are_counted(write):
    answer = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    file = write("thoughts.jsonl", [{"messages": [{"role": "user", "content": "a"}, answer]}] * 2)
    data = load_data(DataConfig(train=file, template="chatml"), TOKENIZER, progress=False)
    assert data.report["train"]["reasoning_dropped"] == 2
    assert "2 reasoning_content that the template leaves out" in dict(data.rows())["training set"]
