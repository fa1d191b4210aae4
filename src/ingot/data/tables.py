"""Read tables: CSV, TSV, JSON lines and Parquet, with a column mapping."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.errors import DataError
from ingot.core.extras import need
from ingot.core.names import suggest
from ingot.data._raw import WHOLE, RawSplit, as_targets
from ingot.data.data import Array
from ingot.data.reading import Reading
from ingot.data.texts import encode_texts

TARGETS = ("target", "label", "labels", "y")
Table = Mapping[str, Sequence[object]]


def read_table(path: Path, reading: Reading) -> dict[str, RawSplit]:
    """Return the one split of a table.

    Roles are `text`, `text_b`, `target`, or an input name whose columns, joined by commas, become
    the features of that input, `(rows, columns)` float32. Without a mapping, columns named after a
    role are used, and otherwise every column but the target is a feature of the only input.

    Raises:
        DataError: The file is broken or empty, or a column is unknown or not numeric.
    """
    table = _columns(path)
    rows = len(next(iter(table.values()), ()))
    if rows == 0:
        raise DataError(f"{path.name!r} must have at least one row; got 0. Add examples.")
    roles = _roles(table, reading.columns)
    for role, column in roles.items():
        for part in _parts(role, column):
            if part not in table:
                raise DataError(
                    f"Column {part!r} for {role!r} must be in {path.name!r}. {suggest(part, table)}"
                )
    targets = as_targets(table[roles["target"]]) if "target" in roles else None
    if "text" in roles:
        return {WHOLE: _texts(table, roles, targets, reading)}
    inputs = {
        role: _features(table, _parts(role, column), path)
        for role, column in roles.items()
        if role not in {"target", "text_b"}
    }
    return {WHOLE: RawSplit(inputs, targets)}


def _roles(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    if columns:
        return dict(columns)
    target = next((name for name in TARGETS if name in table), None)
    found = {} if target is None else {"target": target}
    texts = {name: name for name in ("text", "text_b") if name in table}
    if texts:
        return found | texts
    return found | {"*": ",".join(name for name in table if name != target)}


def _parts(role: str, column: str) -> list[str]:
    is_text = role in {"text", "text_b", "target"}
    return [column] if is_text else [part.strip() for part in column.split(",")]


def _texts(
    table: Table, roles: Mapping[str, str], targets: Array | None, reading: Reading
) -> RawSplit:
    first = [_text(value) for value in table[roles["text"]]]
    if "text_b" not in roles:
        return RawSplit(encode_texts(first, reading), targets, labels=tuple(first))
    second = [_text(value) for value in table[roles["text_b"]]]
    labels = tuple(f"{a} | {b}" for a, b in zip(first, second, strict=True))
    numeric = targets is not None and targets.dtype.kind in "if"
    if reading.task == "similarity" or (reading.task is None and numeric):
        rows = [text for pair in zip(first, second, strict=True) for text in pair]
        return RawSplit(encode_texts(rows, reading), targets, 2, labels)
    pairs = list(zip(first, second, strict=True))
    return RawSplit(encode_texts(pairs, reading), targets, 1, labels)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _features(table: Table, names: Sequence[str], path: Path) -> Array:
    columns = []
    for name in names:
        try:
            columns.append(np.array([float(str(v)) for v in table[name]], dtype=np.float32))
        except ValueError as error:
            raise DataError(
                f"Column {name!r} of {path.name!r} must be numbers: {error}. Choose the columns: "
                "text=sentence and target=label, or x=age,income (--column)."
            ) from error
    return np.stack(columns, axis=1)


def _columns(path: Path) -> Table:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet(path)
        with path.open(newline="", encoding="utf-8-sig") as stream:
            if suffix in {".jsonl", ".ndjson"}:
                return _transpose([json.loads(line) for line in stream if line.strip()], path)
            return _delimited(list(delimited_rows(stream, suffix)), path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(
            f"{path.name!r} must be a readable {suffix} table; got: {error}. "
            "Write it again in UTF-8."
        ) from error


def delimited_rows(stream: Iterable[str], suffix: str) -> Any:  # Any: csv's type is private
    """Return the reader of a `.csv` or `.tsv`, whose lines are lists of fields."""
    if suffix == ".tsv":
        # Quotes in tab-separated text are part of the text.
        return csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(stream, strict=True)


def _delimited(rows: list[list[str]], path: Path) -> Table:
    header, *body = [row for row in rows if row] or [[]]
    if len(set(header)) != len(header):
        raise DataError(f"Columns of {path.name!r} must have different names; got {header}.")
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise DataError(
                f"Every row of {path.name!r} must have {len(header)} fields; row {number} has "
                f"{len(row)}. Quote fields that hold the separator."
            )
    return {name: [row[i] for row in body] for i, name in enumerate(header)}


def _transpose(records: Sequence[object], path: Path) -> Table:
    names: list[str] = []
    rows: list[Mapping[str, object]] = []
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise DataError(
                f"Every line of {path.name!r} must be a JSON object; line {number} is "
                f"{type(record).__name__}. Write {{...}} per line."
            )
        rows.append(record)
        names.extend(name for name in record if name not in names)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path) -> Table:
    parquet: Any = need("pyarrow.parquet", extra="data", what="Reading Parquet")
    arrow: Any = need("pyarrow", extra="data", what="Reading Parquet")
    try:
        table: Mapping[str, list[object]] = parquet.read_table(path).to_pydict()
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path.name!r} must be a Parquet file; it cannot be read: {error}. Write it again."
        ) from error
    return table
