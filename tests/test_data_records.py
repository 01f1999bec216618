"""Data files: both forms are read, and a broken one is named by its file and line."""

import json

import pytest

from headedit import HeadEditError, read_records
from headedit.data.splits import draw

ROWS = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(5)]
PAIRS = [(f"p{i}", f"r{i}") for i in range(5)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        "\n  " + json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
        "\r\n\n".join(map(json.dumps, ROWS)) + "\r\n",
        "\ufeff" + "\n".join(map(json.dumps, ROWS)),
    ],
)
def test_json_lists_and_json_lines_are_read(tmp_path, text):
    file = tmp_path / "data.json"
    file.write_text(text, encoding="utf-8", newline="")
    assert read_records(file).pairs == PAIRS


def test_a_line_separator_inside_a_text_does_not_end_the_record(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": "a\u2028b", "response": "c"}, ensure_ascii=False), encoding="utf-8")
    assert read_records(file).pairs == [("a\u2028b", "c")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompt": "p", "response": "r"}\n{"prompt": \n',
            r"data, line 2: not valid JSON \(Expecting value, column 12\)",
        ),
        ('{"prompt": "p", "response": "r"}\n{"prompt": "p"}', r"data, line 2: found the fields prompt; expected"),
        ('{"prompt": "p", "response": ""}', r"data, line 1: the field 'response' is empty"),
        (
            '[{"prompt": "p", "response": "r"},\n {"prompt" 3}]',
            r"data, line 2: not valid JSON \(Expecting ':' delimiter\)",
        ),
        ('[{"prompt": "p", "response": "r"}, 7]', r"data, record 2: expected an object with named fields, found int"),
        ("[]", r"data: there is nothing to use: it holds no records"),
        (" \n", r"data: there is nothing to use: it holds no records"),
        ("[" * 100_000, r"not valid JSON|nested too deeply"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "data").write_text(text)
    with pytest.raises(HeadEditError, match=message):
        read_records(tmp_path / "data")


def test_broken_records_can_be_left_out_and_are_counted(tmp_path):
    lines = [*map(json.dumps, ROWS)]
    lines[1:1] = ["{oops", '{"other": 1}']
    (tmp_path / "data").write_text("\n".join(lines))
    records = read_records(tmp_path / "data", skip_broken=True)
    assert records.pairs == PAIRS
    assert [message.split(": ")[0][-6:] for message in records.broken] == ["line 2", "line 3"]
    (tmp_path / "data").write_text("{oops")
    with pytest.raises(HeadEditError, match="all 1 records are broken, the first"):
        read_records(tmp_path / "data", skip_broken=True)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path):
    with pytest.raises(HeadEditError, match=r"cannot be read \(No such file"):
        read_records(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"\x80abc")
    with pytest.raises(HeadEditError, match=r"is not UTF-8 text \(byte 0\)"):
        read_records(tmp_path / "bytes")


def test_samples_and_splits_are_drawn_by_the_seed_and_lose_nothing():
    assert draw(5, None, {}, 0) == draw(5, 9, {}, 0) == {"train": [0, 1, 2, 3, 4]}
    assert draw(5, 3, {}, 1) == draw(5, 3, {}, 1) != draw(5, 3, {}, 2)
    assert draw(5, 3, {}, 1)["train"] == sorted(draw(5, 3, {}, 1)["train"])
    drawn = draw(5, None, {"valid": 0.4}, 0)
    assert {name: len(part) for name, part in drawn.items()} == {"valid": 2, "train": 3}
    assert sorted(drawn["train"] + drawn["valid"]) == [0, 1, 2, 3, 4]
    assert draw(5, None, {"valid": 0.4}, 0) == drawn
    with pytest.raises(HeadEditError, match=r"5 records cannot be split .* share of 0\.05"):
        draw(5, None, {"valid": 0.05}, 0)


def test_a_held_out_set_is_the_same_for_every_number_of_training_examples():
    few, all_left = (draw(100, count, {"test": 10, "valid": 5}, 3) for count in (20, None))
    assert {name: len(part) for name, part in few.items()} == {"test": 10, "valid": 5, "train": 20}
    assert {name: len(part) for name, part in all_left.items()} == {"test": 10, "valid": 5, "train": 85}
    assert (few["test"], few["valid"]) == (all_left["test"], all_left["valid"])
    assert set(few["train"]) < set(all_left["train"])
    assert sorted(i for part in all_left.values() for i in part) == list(range(100))
    assert few != draw(100, 20, {"test": 10, "valid": 5}, 4)


def test_a_share_is_taken_of_the_training_examples():
    drawn = draw(100, 40, {"test": 10, "valid": 0.25}, 0)
    assert {name: len(part) for name, part in drawn.items()} == {"test": 10, "valid": 10, "train": 30}
    with pytest.raises(HeadEditError, match=r"100 records cannot be split into a training set and a test set of 100"):
        draw(100, 40, {"test": 100}, 0)


LONG = '{"prompt": "p", "response": "r", "id": ' + "9" * 5000 + "}"
DEEP = '{"prompt": "p", "response": "r", "id": ' + "[" * 200 + "]" * 200 + "}"
HALF = '{"prompt": "p\\ud83d", "response": "r"}'


@pytest.mark.parametrize(
    ("fault", "message"),
    [(LONG, r"not valid JSON \(Exceeds the limit"), (DEEP, r"nested too deeply"), (HALF, r"holds half of a character")],
)
@pytest.mark.parametrize("kind", ["list", "lines"])
def test_a_record_that_cannot_be_held_is_named_in_a_list_as_in_lines_and_skipped(tmp_path, kind, fault, message):
    file = tmp_path / "data.json"
    records = [json.dumps(ROWS[0]), fault, json.dumps(ROWS[1])]
    file.write_text("[" + " ,\n".join(records) + "]\n" if kind == "list" else "\n".join(records))
    place = "record 2" if kind == "list" else "line 2"
    with pytest.raises(HeadEditError, match=rf"data\.json, {place}: .*{message}"):
        read_records(file)
    found = read_records(file, skip_broken=True)
    assert found.pairs == PAIRS[:2]
    assert len(found.broken) == 1
    assert place in found.broken[0]


def test_bytes_that_are_no_text_are_named_by_their_line_and_skipped(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"prompt": "p0", "response": "r0"}\n{"prompt": "\xe9", "response": "r"}\n')
    with pytest.raises(HeadEditError, match=r"data\.jsonl, line 2: is not UTF-8 text \(byte 12\)"):
        read_records(file)
    assert read_records(file, skip_broken=True).pairs == PAIRS[:1]
    for name, text in (("d.csv", b"prompt,response\np,r\n\xe9,r\n"), ("d.json", b'[{"prompt":\n"p"},\n\xe9]')):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(HeadEditError, match=rf"{name}, line 3: is not UTF-8 text"):
            read_records(tmp_path / name)


def test_half_of_a_character_written_as_bytes_is_named_with_its_record(tmp_path):
    half = "\ud83d".encode("utf-8", "surrogatepass")
    for name, text, place in (
        ("d.jsonl", b'{"prompt": "p0", "response": "r0"}\n{"prompt": "%b", "response": "r"}', "line 2"),
        ("d.csv", b"prompt,response\np0,r0\n%b,r\n", "line 3"),
        ("d.json", b'[{"prompt": "p0", "response": "r0"}, {"prompt": "%b", "response": "r"}]', "record 2"),
    ):
        (tmp_path / name).write_bytes(text % half)
        with pytest.raises(HeadEditError, match=rf"{name}, {place}: the field 'prompt' holds half of a character"):
            read_records(tmp_path / name)
        assert read_records(tmp_path / name, skip_broken=True).pairs == PAIRS[:1]


@pytest.mark.parametrize("text", ["[1, 2,]", "[1 2]", "[1", "[1] 2", "[1,,2]", "[" + "9" * 5000 + ",]"])
def test_a_list_that_is_no_json_is_refused_whole(tmp_path, text):
    (tmp_path / "data").write_text(text)
    with pytest.raises(HeadEditError, match="not valid JSON"):
        read_records(tmp_path / "data", skip_broken=True)
