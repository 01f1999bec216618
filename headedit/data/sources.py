"""Reads the rows of JSON, JSON lines, CSV and Parquet files and of datasets, each with its place in the source."""

import codecs
import csv
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headedit.data.alternating import data_from_list, is_alternating
from headedit.errors import HeadEditError
from headedit.io.bars import bars_of_libraries
from headedit.io.json import items_as_text, parse_json
from headedit.io.optional import import_optional

_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]%:+-]+))?")


_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
_SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder
_VALIDATION = ("validation", "valid", "val", "dev")


class SourceRow(NamedTuple):
    """A row of a source with its place, or why it cannot be read."""

    where: str
    value: Any = None
    fault: str | None = None


def read_rows(source: str, split: str = "train") -> Iterator[SourceRow]:
    """Reads the rows of a file, of a folder that ``datasets`` saved or that has a file per split, or of a dataset.

    Args:
        source: a path; a file is read by its ending, as JSON if that is unknown. A JSON list of nothing but texts is
            one of instructions and answers in turn. A path that does not exist and has no ending of these
            formats is read as a dataset's id: ``owner/name``, ``owner/name/config``, perhaps with ``:split``.
        split: the split of a dataset, if the source names none.

    Raises:
        HeadEditError: the source cannot be read at all.
    """
    path, colon, named = source.rpartition(":")
    folder, chosen = (Path(path), named) if colon and os.path.isdir(path) else (Path(source), split)
    if os.path.isdir(folder):
        file = _split_file(folder, chosen)
        if file is not None:
            return read_rows(str(file))
        return _saved_rows(folder, chosen)
    found = dataset_id(source)
    if found is not None:
        return _hub_rows(found["name"], found["config"], found["split"] or split)
    return _READERS.get(folder.suffix.lower(), _json_rows)(folder)


def dataset_id(source: str) -> re.Match[str] | None:
    """The parts of a dataset's id, ``name``, ``config`` and ``split``; None for what is read as a path."""
    path = Path(source)
    if (
        os.path.exists(path)
        or source.startswith(("/", ".", "~"))
        or path.suffix.lower() in {".json", ".jsonl", *_READERS}
    ):
        return None
    return _ID.fullmatch(source)


def _split_file(folder: Path, split: str) -> Path | None:
    """The file of a split in a folder such as those of JoLA, ``train.json``; None in one that ``datasets`` saved."""
    if any((folder / name).exists() for name in _SAVED):
        return None
    names = (split, *_VALIDATION) if split in _VALIDATION else (split,)
    files = (folder / f"{name}{ending}" for name in names for ending in _ENDINGS)
    return next((file for file in files if file.is_file()), None)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError as error:  # of a path that no system has
        raise HeadEditError(f"{str(file)!r}: cannot be read ({error}).") from None


def _text(payload: bytes, where: str) -> str:
    """UTF-8 text; half of a character that was written as one is read, and named with its record later."""
    try:
        return payload.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        place = f"{where}, line {line}" if b"\n" in payload else where
        raise HeadEditError(f"{place}: is not UTF-8 text (byte {error.start}).") from None


def _json_rows(file: Path) -> Iterator[SourceRow]:
    payload = _bytes(file)
    if not payload.lstrip().startswith(b"["):
        for number, line in enumerate(payload.split(b"\n"), start=1):
            if line.strip():
                yield _record(line, f"{file}, line {number}")
        return
    text = _text(payload, str(file))
    try:
        values = parse_json(text, str(file))
        rows = [SourceRow("", v) for v in (data_from_list(values, str(file)) if is_alternating(values) else values)]
    except HeadEditError as error:
        items = items_as_text(text)
        if items is None:
            raise error from None
        rows = [_record(item, f"{file}, record {number}") for number, item in enumerate(items, start=1)]
        if all(row.fault is None for row in rows):
            raise error from None
    for number, row in enumerate(rows, start=1):
        yield row._replace(where=f"{file}, record {number}")


def _record(payload: bytes | str, where: str) -> SourceRow:
    try:
        return SourceRow(where, parse_json(payload if isinstance(payload, str) else _text(payload, where), where))
    except HeadEditError as error:
        return SourceRow(where, fault=str(error))


def _csv_rows(file: Path) -> Iterator[SourceRow]:
    lines = io.StringIO(_text(_bytes(file), str(file)), newline="")
    limit = csv.field_size_limit(sys.maxsize)  # a conversation may be longer than the module's default
    try:
        rows = list(_records(csv.reader(lines, strict=True), file))
    finally:
        csv.field_size_limit(limit)
    yield from rows


def _records(reader: Any, file: Path) -> Iterator[SourceRow]:
    header: list[str] | None = None
    while True:
        where = f"{file}, line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield SourceRow(where, fault=f"{where}: not valid CSV ({error}).")
            continue
        if header is None:
            header = fields
        elif len(fields) == len(header):
            yield SourceRow(where, dict(zip(header, fields, strict=True)))
        elif fields:
            yield SourceRow(where, fault=f"{where}: has {len(fields)} fields, and the header has {len(header)}.")


def _parquet_rows(file: Path) -> Iterator[SourceRow]:
    parquet = import_optional("pyarrow.parquet", "A Parquet file")
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield SourceRow(f"{file}, record {number}", value)
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror or error}).") from None
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise HeadEditError(f"{file}: is not a Parquet file that can be read ({error}).") from None


def _saved_rows(folder: Path, split: str) -> Iterator[SourceRow]:
    datasets = import_optional("datasets", "A folder of a saved dataset")
    try:
        with bars_of_libraries():
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises its own, and pyarrow's
        raise HeadEditError(
            f"{folder}: is not a dataset that save_to_disk wrote ({_first_line(error)}), and holds no {split}.json."
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise HeadEditError(
                f"{folder}: has no split '{split}', but {', '.join(saved)}; name one, such as "
                f"{folder}:{next(iter(saved))}."
            )
        saved = saved[split]
    return _dataset_rows(saved, str(folder))


def _hub_rows(name: str, config: str | None, split: str) -> Iterator[SourceRow]:
    datasets = import_optional("datasets", f"The dataset '{name}'")
    try:
        with bars_of_libraries():
            loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets, the hub client and pyarrow each raise their own
        raise HeadEditError(
            f"{name}: there is no such file, and no dataset of this name could be loaded with the split '{split}' "
            f"({type(error).__name__}: {_first_line(error)})."
        ) from None
    return _dataset_rows(loaded, f"{name}:{split}")


def _dataset_rows(dataset: Any, name: str) -> Iterator[SourceRow]:
    return (SourceRow(f"{name}, record {number}", row) for number, row in enumerate(dataset, start=1))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {".csv": _csv_rows, ".parquet": _parquet_rows}
