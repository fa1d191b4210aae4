"""Rows of files, one after another: CSV, TSV, JSON lines, Parquet, and folders of these or images.

Nothing is read whole: a line, a record batch or the name of an image at a time.
"""

import csv
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ingot.core.digest import Json, digest_json
from ingot.core.errors import DataError
from ingot.core.extras import need
from ingot.core.names import suggest
from ingot.data.images import SUFFIXES as IMAGES
from ingot.data.tables import delimited_rows

TABLES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
FILE = "file"  # the column of a folder of images: its names
LINE_LIMIT = 16 * 1024 * 1024  # characters of one line; what is longer is no row but a broken file
_RECORDS = 256  # of a Parquet file that are Python objects at a time
_BLOCK = 1024 * 1024


class Row(NamedTuple):
    """One row of the input.

    Attributes:
        number: Its number in the whole input, 0 for the first.
        file: Which file it is of.
        place: Its number in that file.
        values: Column -> value; None for a row that cannot be read.
        reason: Why it cannot be read.
    """

    number: int
    file: int
    place: int
    values: Mapping[str, Any] | None  # Any: whatever the file holds
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The files of an input, all of one kind.

    Attributes:
        root: The folder, or the folder of the file.
        files: Paths below it, with slashes, in the order they are read.
        kind: `csv`, `tsv`, `jsonl`, `parquet` or `images`.
    """

    root: Path
    files: tuple[str, ...]
    kind: str

    @property
    def paths(self) -> Iterator[Path]:
        """Every file, in order."""
        return (self.root / name for name in self.files)


@dataclass(frozen=True, slots=True)
class Scan:
    """What an input is, found by reading it once.

    Attributes:
        digest: Over names and contents of its files, in order.
        size_bytes: Of all its files.
        rows: How many; about, where quoted fields hold line breaks.
        files: Name and digest of each.
    """

    digest: str
    size_bytes: int
    rows: int
    files: tuple[tuple[str, str], ...]


def find_source(path: Path) -> Source:
    """Return the files of an input; files whose names start with `.` or `_` are passed over.

    Raises:
        DataError: It is not there, of no known kind, empty, or of more than one kind.
    """
    known = ", ".join([*TABLES, "or a folder of these or of images"])
    if path.is_file():
        kind = TABLES.get(path.suffix.lower())
        if kind is None:
            raise DataError(
                f"The input must be one of {known}; got {path.name!r}. Convert the file."
            )
        return Source(path.parent, (path.name,), kind)
    if not path.is_dir():
        raise DataError(f"The input must be there; {str(path)!r} is not. Check the path.")
    found: dict[str, list[str]] = {}
    for file in sorted(path.rglob("*")):
        place = file.relative_to(path)
        if not file.is_file() or any(part[0] in "._" for part in place.parts):
            continue
        suffix = file.suffix.lower()
        kind = "images" if suffix in IMAGES else TABLES.get(suffix)
        if kind is not None:
            found.setdefault(kind, []).append(place.as_posix())
    if len(found) != 1:
        got = " and ".join(f"{len(names)} of {kind}" for kind, names in sorted(found.items()))
        raise DataError(
            f"A folder must hold files of one kind; {path.name!r} has {got or 'none'}. "
            f"Name one file, or sort them into folders. Kinds: {known}."
        )
    kind, names = found.popitem()
    return Source(path, tuple(names), kind)


def columns_of(source: Source) -> dict[str, Any]:  # Any: a pyarrow type where the file has one
    """Return the columns of the first file: `str` in CSV, the first value's type in JSON lines.

    Raises:
        DataError: The first file is empty or broken.
        MissingExtraError: Parquet is read without the extra `data`.
    """
    first = next(source.paths)
    if source.kind == "images":
        return {FILE: str}
    if source.kind == "parquet":
        schema = _open_parquet(first).schema_arrow
        return {field.name: field.type for field in schema}
    if source.kind == "jsonl":
        values = next((v for v, _ in _json_lines(first) if v is not None), {})
        return {name: type(value) for name, value in values.items()}
    with first.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        return dict.fromkeys(_header(_lines(stream, first), source.kind, first)[0], str)


def rows_of(source: Source, columns: Collection[str]) -> Iterator[Row]:
    """Give every row with these columns, in order; rows that cannot be read say why.

    A column that a row does not have is not among its values.

    Raises:
        DataError: A file as a whole cannot be read: no table, or a column is missing.
    """
    number = 0
    for index, path in enumerate(source.paths):
        if source.kind == "images":
            yield Row(number, index, 0, {FILE: source.files[index]})
            number += 1
            continue
        for place, (values, reason) in enumerate(_records(path, source.kind, columns)):
            picked = None if values is None else {n: values[n] for n in columns if n in values}
            yield Row(number, index, place, picked, reason)
            number += 1


def scan(source: Source) -> Scan:
    """Read every file once for its digest, its size and about how many rows it has.

    Raises:
        DataError: A file cannot be read.
    """
    files, size, rows = [], 0, 0
    for name, path in zip(source.files, source.paths, strict=True):
        try:
            with path.open("rb") as stream:
                digest, length, breaks = _scan_stream(stream)
        except OSError as error:
            raise _unreadable(path, error) from error
        files.append((name, digest))
        size += length
        if source.kind == "parquet":
            rows += _open_parquet(path).metadata.num_rows
        else:
            rows += {"images": 1, "jsonl": breaks}.get(source.kind, max(0, breaks - 1))
    listing: Json = [list(file) for file in files]
    return Scan(digest_json(listing), size, rows, tuple(files))


def _scan_stream(stream: BinaryIO) -> tuple[str, int, int]:
    state, length, breaks, last = hashlib.sha256(), 0, 0, b"\n"
    while block := stream.read(_BLOCK):
        state.update(block)
        length += len(block)
        breaks += block.count(b"\n")
        last = block[-1:]
    return "sha256:" + state.hexdigest(), length, breaks + (last != b"\n")


Record = tuple[Mapping[str, Any] | None, str]  # values or the reason there are none


def _records(path: Path, kind: str, columns: Collection[str]) -> Iterator[Record]:
    if kind == "parquet":
        return _parquet(path, columns)
    return _json_lines(path) if kind == "jsonl" else _delimited(path, kind, columns)


def _parquet(path: Path, columns: Collection[str]) -> Iterator[Record]:
    arrow: Any = need("pyarrow", extra="data", what="Reading Parquet")
    file = _open_parquet(path)
    _need_columns(columns, file.schema_arrow.names, path)
    try:
        for batch in file.iter_batches(batch_size=_RECORDS, columns=list(columns)):
            yield from ((values, "") for values in batch.to_pylist())
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _open_parquet(path: Path) -> Any:  # a pyarrow.parquet.ParquetFile, untyped upstream
    parquet: Any = need("pyarrow.parquet", extra="data", what="Reading Parquet")
    arrow: Any = need("pyarrow", extra="data", what="Reading Parquet")
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as stream:
        for line in _lines(stream, path):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or too deep
                yield None, f"the line must be JSON in UTF-8; {error}"
                continue
            if isinstance(values, dict):
                yield values, ""
            else:
                yield None, f"the line must be a JSON object; got {type(values).__name__}"


def _delimited(path: Path, kind: str, columns: Collection[str]) -> Iterator[Record]:
    # Bytes that are not UTF-8 become surrogates here: such a row is refused, not the whole file.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        header, reader = _header(_lines(stream, path), kind, path)
        _need_columns(columns, header, path)
        try:
            for row in reader:
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True)), ""
                elif row:
                    yield None, f"the row must have {len(header)} fields; got {len(row)}"
        except csv.Error as error:
            raise _unreadable(path, f"line {reader.line_num}: {error}") from error


def _header(lines: Iterator[str], kind: str, path: Path) -> tuple[list[str], Any]:
    reader = delimited_rows(lines, f".{kind}")
    try:
        header: list[str] = next((row for row in reader if row), [])
    except csv.Error as error:
        raise _unreadable(path, f"line {reader.line_num}: {error}") from error
    if not header or len(set(header)) != len(header):
        raise DataError(
            f"{path.name!r} must start with a line of different column names; got {header}. "
            "Add or correct it."
        )
    return header, reader


def _lines(stream: Any, path: Path) -> Iterator[Any]:  # str or bytes, as the stream was opened
    number = 0
    while line := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise _unreadable(path, f"line {number} is longer than {LINE_LIMIT:,} characters")
        yield line


def _need_columns(columns: Collection[str], there: Collection[str], path: Path) -> None:
    for name in columns:
        if name not in there:
            raise DataError(f"Column {name!r} must be in {path.name!r}. {suggest(name, there)}")


def _unreadable(path: Path, why: object) -> DataError:
    return DataError(
        f"{path.name!r} must be a readable {path.suffix[1:]} file; got: {why}. Repair the file."
    )
