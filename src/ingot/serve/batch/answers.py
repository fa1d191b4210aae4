"""Answers as bytes: one part of a Parquet, CSV or JSON-lines table, and parts put together."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ingot.core.errors import DataError
from ingot.core.extras import need
from ingot.data.data import Array
from ingot.models.model import TensorSpec

Format = Literal["parquet", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("parquet", "csv", "jsonl")
ROW = "row"  # the column of row numbers, where no key is named
_ROW_GROUP_BYTES = 16 * 1024 * 1024
_BLOCK = 1024 * 1024
_ARROW = {str: "string", int: "int64", float: "float64", bool: "bool_"}


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of an output.

    Attributes:
        form: How it is written.
        keys: Column -> `str`, `int`, `float`, `bool`, or the Arrow type of a Parquet input.
        outputs: The model's outputs, rows first.
    """

    form: Format
    keys: Mapping[str, Any]  # Any: pyarrow's types are untyped upstream
    outputs: tuple[TensorSpec, ...]

    def check(self) -> None:
        """Refuse what cannot be written before anything runs.

        Raises:
            DataError: Two columns have one name, or a type has no form in a table.
            MissingExtraError: Parquet is written without the extra `data`.
        """
        names = [*self.keys, *(spec.name for spec in self.outputs)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(
                f"Keys and outputs must have different names; got {', '.join(twice)} twice. "
                "Rename the column of the input, or leave that key out."
            )
        for spec in self.outputs:
            if spec.dtype in {"bfloat16", "object"} or not spec.shape:
                raise DataError(
                    f"Output {spec.name!r} must be numbers, rows first, to be written to a table; "
                    f"it is {spec.dtype} {spec.shape}. Export the model with another output."
                )
        for name, kind in self.keys.items():
            if isinstance(kind, type) and kind not in _ARROW:
                raise DataError(
                    f"Key {name!r} must hold texts or numbers; got {kind.__name__}. Use another."
                )
        if self.form == "parquet":
            self._schema()

    def encode(
        self, keys: Mapping[str, Sequence[Any]], outputs: Mapping[str, list[Array]]
    ) -> bytes:
        """Return a part: one row per key, outputs as arrays without the row axis."""
        if self.form == "parquet":
            return self._encode_parquet(keys, outputs)
        rows = zip(*(keys[name] for name in self.keys), strict=True)
        cells = [self._cells(spec, outputs[spec.name]) for spec in self.outputs]
        if self.form == "csv":
            return self._encode_csv(rows, cells)
        names = [*(json.dumps(spec.name, ensure_ascii=False) for spec in self.outputs)]
        lines = []
        for row, *found in zip(rows, *cells, strict=True):
            known = dict(zip(self.keys, row, strict=True))
            head = json.dumps(known, ensure_ascii=False, default=str)[1:-1]
            tail = ", ".join(f"{n}: {v}" for n, v in zip(names, found, strict=True))
            lines.append(f"{{{head}, {tail}}}\n")
        return "".join(lines).encode()

    def header(self) -> bytes:
        """Return the first line of a CSV, which stands in every part; empty for other forms."""
        if self.form != "csv":
            return b""
        names = list(self.keys)
        for spec in self.outputs:
            count = _width(spec)
            names += [spec.name] if count is None else [f"{spec.name}_{i}" for i in range(count)]
        return _csv_lines([names])

    def join(self, parts: Sequence[Path], stream: BinaryIO) -> None:
        """Write one table of all parts, in order, holding little in memory."""
        if self.form == "parquet":
            self._join_parquet(parts, stream)
            return
        header = self.header()
        stream.write(header)
        for path in parts:
            with path.open("rb") as part:
                part.seek(len(header))
                while block := part.read(_BLOCK):
                    stream.write(block)

    def _cells(self, spec: TensorSpec, values: Sequence[Array]) -> Iterator[Any]:
        """Give a list of texts per row for wide CSV columns, else one JSON text."""
        if self.form == "csv" and _width(spec) is not None:
            return (_texts(value.reshape(-1)) for value in values)
        missing = "nan" if self.form == "csv" and len(spec.shape) == 1 else "null"
        return (_json_text(value, missing) for value in values)

    def _encode_csv(self, rows: Iterator[Any], cells: Sequence[Iterator[Any]]) -> bytes:
        lines: list[list[Any]] = []
        for row, *found in zip(rows, *cells, strict=True):
            line = list(row)
            for cell in found:
                line += cell if isinstance(cell, list) else [cell]
            lines.append(line)
        return self.header() + _csv_lines(lines)

    def _schema(self) -> Any:  # a pyarrow.Schema
        arrow: Any = need("pyarrow", extra="data", what="Writing Parquet")
        fields = [
            (name, getattr(arrow, _ARROW[kind])() if isinstance(kind, type) else kind)
            for name, kind in self.keys.items()
        ]
        return arrow.schema([*fields, *((spec.name, _type(arrow, spec)) for spec in self.outputs)])

    def _encode_parquet(
        self, keys: Mapping[str, Sequence[Any]], outputs: Mapping[str, list[Array]]
    ) -> bytes:
        arrow: Any = need("pyarrow", extra="data", what="Writing Parquet")
        parquet: Any = need("pyarrow.parquet", extra="data", what="Writing Parquet")
        schema = self._schema()
        columns = [arrow.array(keys[name], schema.field(name).type) for name in self.keys]
        columns += [_column(arrow, spec, outputs[spec.name]) for spec in self.outputs]
        sink = io.BytesIO()
        parquet.write_table(arrow.Table.from_arrays(columns, schema=schema), sink)
        return sink.getvalue()

    def _join_parquet(self, parts: Sequence[Path], stream: BinaryIO) -> None:
        arrow: Any = need("pyarrow", extra="data", what="Writing Parquet")
        parquet: Any = need("pyarrow.parquet", extra="data", what="Writing Parquet")
        waiting: list[Any] = []
        size = 0
        with parquet.ParquetWriter(stream, self._schema()) as writer:
            for path in parts:
                with parquet.ParquetFile(path) as part:
                    waiting.append(part.read(use_threads=False))
                size += waiting[-1].nbytes
                if size >= _ROW_GROUP_BYTES or path == parts[-1]:
                    writer.write_table(arrow.concat_tables(waiting).combine_chunks())
                    waiting, size = [], 0


def _width(spec: TensorSpec) -> int | None:
    """Return how many CSV columns an output takes, or None where it is one column."""
    is_list = len(spec.shape) == 2 and isinstance(spec.shape[1], int)
    return int(spec.shape[1]) if is_list else None


def _texts(value: Array) -> list[str]:
    # numpy writes the shortest digits that read back to the same number in its own precision
    texts: list[str] = value.astype(str).tolist()
    return texts


def _json_text(value: Array, missing: str) -> str:
    if value.dtype.kind == "f":
        texts = np.asarray(value.astype(str))
        if not np.isfinite(value).all():
            texts = np.where(np.isfinite(value), texts, missing)
        return _brackets(texts.tolist())
    return json.dumps(value.tolist())


def _brackets(value: Any) -> str:  # nested lists of number texts
    return value if isinstance(value, str) else f"[{', '.join(map(_brackets, value))}]"


def _csv_lines(lines: Sequence[Sequence[Any]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue().encode()


def _type(arrow: Any, spec: TensorSpec) -> Any:
    found = arrow.from_numpy_dtype(np.dtype(spec.dtype))
    for size in reversed(spec.shape[1:]):
        found = arrow.list_(found, size) if isinstance(size, int) else arrow.list_(found)
    return found


def _column(arrow: Any, spec: TensorSpec, values: list[Array]) -> Any:
    sizes = spec.shape[1:]
    if not values or not all(isinstance(size, int) for size in sizes):
        return arrow.array([value.tolist() for value in values], _type(arrow, spec))
    column = arrow.array(np.stack(values).reshape(-1))
    for size in reversed(sizes):
        column = arrow.FixedSizeListArray.from_arrays(column, size)
    return column
