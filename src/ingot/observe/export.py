"""An observation log as a table for other tools: Parquet, CSV or JSON lines, written in pieces."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ingot.core.digest import Json
from ingot.core.errors import DataError
from ingot.core.extras import need
from ingot.core.files import written_whole
from ingot.core.names import suggest
from ingot.observe.observation import Observation
from ingot.observe.reading import Selection, need_log, read_log
from ingot.observe.table import NAMES, has_table, reading, row_of

ROW_GROUP = 50_000  # rows: about 10 MB in memory
_UNITS = {"time": "s since 1970, UTC", "latency_ms": "ms", "hour": "h, UTC"}
_UNITS |= dict.fromkeys(("propensity", "inclusion"), "probability")
_ARROW = {str: "string", float: "float64", int: "int64"} | {
    bool: "bool_",
    str | None: "string",
    float | None: "float64",
}
_EXACT = {"status": "int32", "hour": "int8"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        name: Of the field of `Observation`.
        type: As Arrow calls it.
        unit: What a number is counted in; empty for texts and plain numbers.
        is_optional: Whether cells may be empty.
    """

    name: str
    type: str
    unit: str
    is_optional: bool


COLUMNS = tuple(
    Column(
        f.name,
        _EXACT.get(f.name, _ARROW[f.type]),  # type: ignore[index] # the map holds every type that Observation uses
        _UNITS.get(f.name, ""),
        f.type in {str | None, float | None},
    )
    for f in fields(Observation)
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The table.
        rows: Its rows.
        first: Time of the earliest observation, UTC seconds since 1970; None without rows.
        last: Time of the latest one.
    """

    path: Path
    rows: int
    first: float | None
    last: float | None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "path": str(self.path), "rows": self.rows, "first": self.first, "last": self.last
        }  # fmt: skip


def export_log(
    log: Path, target: Path, selection: Selection | None = None, *, row_group: int = ROW_GROUP
) -> Exported:
    """Write observations to a table, in order of time; a table of that name is replaced whole.

    Parquet tables say in their metadata which product wrote them, what was selected, from when to
    when the rows are, and by which rules the log was kept.

    Args:
        log: The log, which others may be writing.
        target: A `.parquet`, `.csv` or `.jsonl` file.
        selection: Which observations; all if not given.
        row_group: Rows that are held in memory at a time, and those of a row group of Parquet.

    Raises:
        DataError: There is no such log, or the target has another suffix or lies in no folder.
        MissingExtraError: Parquet is written without the extra `data`.
        IngotError: The disk is full; nothing was changed.
    """
    write = _WRITERS.get(target.suffix.lower())
    if write is None:
        raise DataError(
            f"A table must end in {', '.join(_WRITERS)}; got {target.name!r}. "
            f"{suggest(target.suffix, _WRITERS)}"
        )
    if row_group < 1 or not target.absolute().parent.is_dir():
        raise DataError(
            "A table must have row groups of at least 1 row and a folder that is there; got "
            f"{row_group} and {str(target.parent)!r}. Make the folder."
        )
    selection = selection or Selection()
    rows = _Pieces(read_log(need_log(log), selection), row_group)
    with written_whole(target) as stream:
        write(rows, stream, lambda: _facts(log, selection, rows))
    return Exported(target, rows.count, rows.first, rows.last)


class _Pieces:
    """Rows in pieces; knows how many there were, and of which times."""

    def __init__(self, rows: Iterator[Observation], size: int) -> None:
        self._rows, self._size = rows, size
        self.count = 0
        self.first: float | None = None
        self.last: float | None = None

    def __iter__(self) -> Iterator[Sequence[Observation]]:
        while piece := list(islice(self._rows, self._size)):
            self.count += len(piece)
            self.first = piece[0].time if self.first is None else self.first
            self.last = piece[-1].time
            yield piece


Facts = Callable[[], dict[str, Json]]


def _write_parquet(rows: _Pieces, stream: BinaryIO, facts: Facts) -> None:
    arrow: Any = need("pyarrow", extra="data", what="Writing Parquet")
    parquet: Any = need("pyarrow.parquet", extra="data", what="Writing Parquet")
    schema = arrow.schema(
        [
            arrow.field(
                column.name,
                getattr(arrow, column.type)(),
                nullable=column.is_optional,
                metadata={"unit": column.unit} if column.unit else None,
            )
            for column in COLUMNS
        ]
    )
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for piece in rows:
            cells = zip(*map(row_of, piece), strict=True)
            arrays = [
                arrow.array(cell, field.type) for cell, field in zip(cells, schema, strict=True)
            ]
            writer.write_table(
                arrow.Table.from_arrays(arrays, schema=schema), row_group_size=len(piece)
            )
        # known only now: the time range is that of the rows
        writer.add_key_value_metadata({"ingot": json.dumps(facts(), sort_keys=True)})


def _write_csv(rows: _Pieces, stream: BinaryIO, _facts: Facts) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(NAMES)
    for piece in rows:
        lines.writerows(map(_plain, piece))
    text.detach()


def _write_jsonl(rows: _Pieces, stream: BinaryIO, _facts: Facts) -> None:
    for piece in rows:
        lines = (json.dumps(row.to_json(), ensure_ascii=False) for row in piece)
        stream.write("".join(f"{line}\n" for line in lines).encode())


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}


def _plain(row: Observation) -> list[object]:
    """Return cells of CSV: a truth as 0 or 1, nothing where nothing is known."""
    return [int(cell) if isinstance(cell, bool) else cell for cell in row_of(row)]


def _facts(log: Path, selection: Selection, rows: _Pieces) -> dict[str, Json]:
    from importlib.metadata import version

    with reading(log) as db:
        kept_by = (
            db.execute("SELECT digest, since, text FROM rules ORDER BY since").fetchall()
            if has_table(db, "rules")
            else []
        )
    return {
        "product": f"ingot {version('ingot')}",
        "endpoint": selection.endpoint,
        "version": selection.version or None,
        "arm": selection.arm,
        "since": selection.since,
        "until": selection.until,
        "rows": rows.count,
        "first": rows.first,
        "last": rows.last,
        "rules": [
            {"digest": digest, "since": since, "rules": json.loads(text)}
            for digest, since, text in kept_by
        ],
    }
