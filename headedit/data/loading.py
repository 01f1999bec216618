"""``load_data``: the encoded splits of a run, and a report of everything that was done to the data."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from headedit.data.batches import ListedRows, StoredRows
from headedit.data.cache import encode_examples
from headedit.data.clock import Clock
from headedit.data.config import DataConfig
from headedit.data.conversation import last_exchange
from headedit.data.encoder import Encoder, report_endless
from headedit.data.encoding import encode_for_generation
from headedit.data.records import Conversation, read_examples
from headedit.data.rows import Vocabulary
from headedit.data.splits import draw, overlap
from headedit.errors import HeadEditError
from headedit.hf.tokenizers import as_tokenizer

Split = Literal["train", "valid", "test"]
_SHOWN = 20
_NAMES = {"train": "training", "valid": "validation", "test": "test"}
_HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Fields:
        train: encoded examples, for ``headedit.fit``.
        valid: the same; None where there are none.
        test: the same.
        report: plain data for JSON: for each split the sources, the counts of records read, malformed, drawn, dropped
            and cut, indices, formats, templates, token lengths and what ends the responses; the overlaps; the seed; and
            the date that the chat template was told, if it asked.
    """

    train: ListedRows | StoredRows
    valid: ListedRows | StoredRows | None
    test: ListedRows | StoredRows | None
    report: dict[str, Any]
    _examples: dict[str, list[Conversation]] = field(repr=False)
    _encoder: Encoder = field(repr=False)

    def pairs(self, split: Split) -> list[tuple[str, str]]:
        """The examples as (all before the last response, that response), as texts for generation.

        Raises:
            HeadEditError: the data have no such split.
        """
        if split not in self._examples:
            raise HeadEditError(f"There is no {_NAMES[split]} set in this data; give one as '{split}'.")
        encoder = self._encoder
        with Clock(self.report["date"]):
            return [_pair(example, encoder) for example in self._examples[split]]

    def rows(self) -> list[tuple[str, str]]:
        """The report as (what, value) rows, for printing."""
        rows = [(f"{_NAMES[name]} set", _in_words(self.report[name])) for name in self._examples]
        for names, found in self.report["overlap"].items():
            if found["count"]:
                one, other = names.split("/")
                rows.append(
                    (
                        f"overlap of {_NAMES[one]} and {_NAMES[other]}",
                        f"{found['count']} {_NAMES[other]} examples have a prompt of the {_NAMES[one]} set, "
                        f"{found['same_response']} the same response too",
                    )
                )
        return rows


def _pair(example: Conversation, encoder: Encoder) -> tuple[str, str]:
    if example.format == "input_ids":
        return encode_for_generation(example.encoded, encoder.tokenizer, example.where)
    return last_exchange(example.messages, encoder.template_of(example.format), encoder.tokenizer, example.where)


def load_data(
    config: DataConfig,
    tokenizer: Any,
    *,
    context: int | None = None,
    vocabulary: int | None = None,
    progress: bool = True,
) -> Data:
    """Reads, samples, splits and encodes the data of a run.

    Args:
        config: the data section of a run.
        tokenizer: the model's tokenizer, its name or its folder.
        context: the most tokens that the model can read, which is the limit if the config has none.
        vocabulary: how many token ids the model has; an example with another one is malformed.
        progress: show bars.

    Raises:
        HeadEditError: a source cannot be read, a record is malformed and not skipped, a split is empty, or an example
            is too long and ``too_long`` says to fail.
    """
    encoder = Encoder(
        as_tokenizer(tokenizer),
        config.max_length or context,
        config.template,
        config.too_long,
        config.skip_malformed,
        Vocabulary(vocabulary),
    )
    chosen, report = _chosen(config, progress)
    encoded: dict[str, ListedRows | StoredRows] = {}
    with Clock(config.date) as clock:
        for name, examples in chosen.items():
            encoded[name], chosen[name] = _encode(examples, encoder, name, report[name], progress)
    for rows in encoded.values():
        rows.date = clock.date
    others = [name for name in ("valid", "test") if name in chosen]
    report["overlap"] = {f"train/{name}": overlap(chosen["train"], chosen[name]) for name in others}
    report |= {"seed": config.seed, "date": clock.date}
    return Data(encoded["train"], encoded.get("valid"), encoded.get("test"), report, chosen, encoder)


def _chosen(config: DataConfig, progress: bool) -> tuple[dict[str, list[Conversation]], dict[str, Any]]:
    """The examples of each split, and the first entries of the report."""
    chosen: dict[str, list[Conversation]] = {}
    report: dict[str, Any] = {}
    given = {"test": config.test, "valid": config.valid}
    held_out = {name: value for name, value in given.items() if isinstance(value, int | float)}
    counts = {"train": config.examples, "valid": config.valid_examples, "test": config.test_examples}
    for name, value in {"train": config.train, **given}.items():
        if not isinstance(value, str | list):
            continue
        sources = [value] if isinstance(value, str) else value
        options = {
            "format": config.format,
            "fields": config.fields,
            "skip_malformed": config.skip_malformed,
            "progress": progress,
        }
        found, broken = read_examples(sources, split=_HUB_SPLITS[name], **options)  # type: ignore[arg-type]
        for part, indices in draw(len(found), counts[name], held_out if name == "train" else {}, config.seed).items():
            part = name if part == "train" else part
            chosen[part] = [found[i] for i in indices]
            report[part] = {
                "sources": sources,
                "read": len(found) + len(broken),
                "malformed": len(broken),
                "malformed_first": broken[:_SHOWN],
            }
    order = [name for name in _NAMES if name in chosen]
    return {name: chosen[name] for name in order}, {name: report[name] for name in order}


def _encode(
    examples: list[Conversation], encoder: Encoder, name: str, report: dict[str, Any], progress: bool
) -> tuple[ListedRows | StoredRows, list[Conversation]]:
    """Encodes examples, keeps those that are used, and completes the report."""
    rows = encode_examples(examples, encoder, name=_NAMES[name], progress=progress)
    lengths, cut, ends = rows.column("tokens"), rows.column("cut"), rows.column("ends")
    faults = [fault for fault in rows.column("fault") if fault]
    kept = [i for i, found in enumerate(ends) if found]
    long = [i for i, length in enumerate(lengths) if encoder.max_length is not None and length > encoder.max_length]
    dropped = sorted(set(long) - set(kept))
    if long and encoder.too_long == "fail":
        first = examples[long[0]]
        raise HeadEditError(
            f"{first.where}: has {lengths[long[0]]} tokens, more than the limit of {encoder.max_length}; so have "
            f"{len(long)} of {len(examples)} {_NAMES[name]} examples. Raise max_length, or set too_long to drop or "
            "cut_prompt."
        )
    if not kept:
        why = faults[0] if faults else f"all {len(dropped)} examples are longer than {encoder.max_length} tokens."
        raise HeadEditError(f"The {_NAMES[name]} set has nothing to use: {why}")
    selected, endless = rows.select(kept), rows.column("endless")
    report_endless(sum(endless[i] for i in kept), _NAMES[name])
    finals = Counter(end for found in ends for end in found)
    report["malformed"] += len(faults)
    report["malformed_first"] = [*report["malformed_first"], *faults][:_SHOWN]
    report |= {
        "drawn": len(examples),
        "used": len(kept),
        "indices": [examples[i].index for i in kept],
        "formats": dict(Counter(example.format for example in examples)),
        "templates": dict(Counter(rows.column("template"))),
        "max_length": encoder.max_length,
        "too_long": encoder.too_long,
        "dropped": len(dropped),
        "dropped_indices": [examples[i].index for i in dropped],
        "cut": sum(count > 0 for count in cut),
        "cut_indices": [example.index for example, count in zip(examples, cut, strict=True) if count],
        "cut_tokens": sum(cut),
        "cut_responses": sum(rows.column("lost")),
        "responses": sum(map(len, ends)),
        "reasoning_dropped": sum(rows.column("unrendered")),
        "not_learnt": sum(rows.column("headless")),
        "response_ends": {str(encoder.tokenizer.convert_ids_to_tokens(i)): n for i, n in finals.most_common(_SHOWN)},
        "tokens": _spread([lengths[i] - cut[i] for i in kept]),
    }
    return selected, [examples[i] for i in kept]


def _spread(lengths: list[int]) -> dict[str, float]:
    return {
        "min": min(lengths),
        "median": statistics.median(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "max": max(lengths),
        "total": sum(lengths),
    }


def _in_words(report: dict[str, Any]) -> str:
    tokens = report["tokens"]
    parts = [
        f"{report['used']} of {report['read']} records ({', '.join(report['formats'])}; template "
        f"{', '.join(report['templates'])}), {tokens['min']} to {tokens['max']} tokens"
    ]
    limit = report["max_length"]
    for count, what in (
        (report["reasoning_dropped"], "reasoning_content that the template leaves out"),
        (report["not_learnt"], "earlier responses not learnt, as the template renders them without their header"),
        (report["malformed"], "malformed and left out"),
        (report["dropped"], f"longer than {limit} tokens and left out"),
        (report["cut"], f"cut to {limit} tokens on the left, {report['cut_responses']} earlier responses with it"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return "; ".join(parts)
