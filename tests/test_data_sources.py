"""Every kind of source gives the same rows, and says where a row stands that cannot be read."""

import csv
import json
import sys

import pytest

from headedit import HeadEditError
from headedit.data import SourceRow, read_rows

VALUES = [{"prompt": f"p{i}", "response": f'r "{i}",\nand é'} for i in range(3)]


def write(kind, file):
    if kind == "json":
        file.write_text(json.dumps(VALUES))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, VALUES)))
    elif kind == "csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["prompt", "response"])
            writer.writeheader()
            writer.writerows(VALUES)
    elif kind == "parquet":
        pytest.importorskip("datasets").Dataset.from_list(VALUES).to_parquet(file)
    else:
        pytest.importorskip("datasets").Dataset.from_list(VALUES).save_to_disk(file)


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("json", ["record 1", "record 2", "record 3"]),
        ("jsonl", ["line 1", "line 2", "line 3"]),
        ("csv", ["line 2", "line 4", "line 6"]),
        ("parquet", ["record 1", "record 2", "record 3"]),
        ("saved", ["record 1", "record 2", "record 3"]),
    ],
)
def test_every_kind_of_file_gives_the_same_rows_with_their_places(tmp_path, kind, places):
    file = tmp_path / f"data.{kind}"
    write(kind, file)
    found = list(read_rows(str(file)))
    assert [row.value for row in found] == VALUES
    assert [row.where for row in found] == [f"{file}, {place}" for place in places]


def test_a_split_of_a_saved_dataset_is_chosen_by_its_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "held")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert [row.value for row in read_rows(str(tmp_path / "d"))] == [{"prompt": "train"}]
    assert [row.value for row in read_rows(f"{tmp_path}/d:held")] == [{"prompt": "held"}]
    with pytest.raises(HeadEditError, match=r"has no split 'test', but train, held; name one, such as .*/d:train"):
        read_rows(str(tmp_path / "d"), "test")
    with pytest.raises(HeadEditError, match=r"is not a dataset that save_to_disk wrote"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("owner/name", ("owner/name", None, "validation")),
        ("owner/name/config:test[:5]", ("owner/name", "config", "test[:5]")),
        ("name:train", ("name", None, "train")),
    ],
)
def test_the_id_of_a_dataset_names_its_config_and_split(monkeypatch, source, asked):
    class Stub:
        @staticmethod
        def load_dataset(name, config, split):
            if name == "owner/name":
                return [(name, config, split)]
            raise FileNotFoundError("it is nowhere\n")

    monkeypatch.setitem(sys.modules, "datasets", Stub)
    if asked[0] == "owner/name":
        (row,) = read_rows(source, "validation")
        assert row.value == asked
    else:
        with pytest.raises(HeadEditError, match=r"name: there is no such file, and no dataset .* 'train' .*nowhere"):
            read_rows(source)


@pytest.mark.parametrize(("module", "source"), [("datasets", "owner/name"), ("pyarrow.parquet", "d.parquet")])
def test_a_missing_package_is_named(monkeypatch, tmp_path, module, source):
    (tmp_path / "d.parquet").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HeadEditError, match=rf"needs the package {module.partition('.')[0]}: pip install"):
        list(read_rows(source))


def test_a_broken_row_is_given_with_its_line_and_the_others_are_read(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text('prompt,response\na,b\nc\n\nd,"e"x\nf,g\n')
    assert list(read_rows(str(file))) == [
        SourceRow(f"{file}, line 2", {"prompt": "a", "response": "b"}),
        SourceRow(f"{file}, line 3", fault=f"{file}, line 3: has 1 fields, and the header has 2."),
        SourceRow(f"{file}, line 5", fault=f"{file}, line 5: not valid CSV (',' expected after '\"')."),
        SourceRow(f"{file}, line 6", {"prompt": "f", "response": "g"}),
    ]


def test_a_long_csv_field_is_read_and_the_limit_of_the_module_is_restored(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "d.csv").write_text(f"prompt,response\n{'a' * 200_000},b\n")
    (row,) = read_rows(str(tmp_path / "d.csv"))
    assert len(row.value["prompt"]) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["none.json", "none.csv", "none.parquet", "./none", "/none"])
def test_a_missing_file_is_named(name):
    with pytest.raises(HeadEditError, match=r"none\S*: cannot be read \("):
        list(read_rows(name))


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"no")
    pytest.importorskip("pyarrow")
    with pytest.raises(HeadEditError, match=r"d\.parquet: is not a Parquet file that can be read"):
        list(read_rows(str(tmp_path / "d.parquet")))
