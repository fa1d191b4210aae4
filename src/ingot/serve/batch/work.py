"""The work of one process: open the engine once, then answer part after part."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.digest import digest_bytes
from ingot.core.errors import EngineError
from ingot.core.files import write_atomic
from ingot.core.units import show_number
from ingot.data.data import Array
from ingot.data.reading import Reading
from ingot.models.feeds import fixed_rows
from ingot.models.model import Model
from ingot.runtime.buckets import run_rows
from ingot.runtime.engine import EngineConfig, Session
from ingot.runtime.engines import open_session
from ingot.serve.batch.answers import ROW, Table
from ingot.serve.batch.feeding import MASK, Feeder, Group, Misfit, MisfitError, Roles
from ingot.serve.batch.rows import Row, Source

SHOWN = 3  # refused rows of a part that a message quotes
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Work:
    """All that a process needs to know before its first part.

    Attributes:
        model: What answers.
        config: How it is run, with the threads of one process.
        source: Where rows are from.
        reading: How they are read.
        roles: Which columns are what.
        truncate: Whether long texts are cut.
        table: What is written.
        numbered: Whether rows go by their numbers, because no key was named.
        folder: Where parts are written.
        errors: Where refused rows are written.
        batch_rows: Rows per call of the engine.
    """

    model: Model
    config: EngineConfig
    source: Source
    reading: Reading
    roles: Roles
    truncate: bool
    table: Table
    numbered: bool
    folder: Path
    errors: Path
    batch_rows: int

    def part_path(self, index: int) -> Path:
        """Return where a part is written."""
        return self.folder / f"part-{index:06d}.{self.table.form}"

    def errors_path(self, index: int) -> Path:
        """Return where the refused rows of a part are written, if it has any."""
        return self.errors / f"errors-{index:06d}.jsonl"


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows that follow one another.

    Attributes:
        index: Which part, 0 for the first.
        rows: At least one.
    """

    index: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a part.

    Attributes:
        index: Which part.
        rows: How many rows it has.
        errors: How many were refused.
        first: The first of these, for messages.
        digest: Of the part as written.
        size_bytes: Of the part as written.
        seconds: That it took.
    """

    index: int
    rows: int
    errors: int
    first: tuple[str, ...]
    digest: str
    size_bytes: int
    seconds: float


class Worker:
    """Answers parts with one open session."""

    def __init__(self, work: Work) -> None:
        """Open the session.

        Raises:
            EngineError: The engine cannot run the model.
        """
        self._work = work
        self._feeder = Feeder(
            work.model.signature,
            work.reading,
            work.roles,
            work.source.root,
            truncate=work.truncate,
        )
        self._session: Session = open_session(work.model, work.config)

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def answer(self, part: Part) -> Done:
        """Answer the rows of a part and write it, with the rows that were refused beside it.

        Raises:
            MisfitError: No row of the first part has columns that the model could take.
            IngotError: The disk is full, or the engine fails on rows that it takes one by one.
        """
        started = time.perf_counter()
        work, refused = self._work, _refuse(part.rows, self._work)
        answers: dict[int, dict[str, Array]] = {}
        for window in self._windows([i for i in range(len(part.rows)) if i not in refused]):
            groups, bad = self._feeder.prepare([_values(part.rows[i]) for i in window])
            refused |= {window[place]: why for place, why in bad.items()}
            for group in groups:
                found, bad = self._run(group)
                refused |= {window[place]: why for place, why in bad.items()}
                answers |= {window[place]: row for place, row in found.items()}
        if part.index == 0:
            _need_fit(part, refused)
        order = sorted(answers)
        numbers = {ROW: [part.rows[i].number for i in order]}
        keys = numbers if work.numbered else _keys([part.rows[i] for i in order], work.table)
        names = [spec.name for spec in work.table.outputs]
        data = work.table.encode(keys, {n: [answers[i][n] for i in order] for n in names})
        errors = [_error(work.source, part.rows[i], refused[i]) for i in sorted(refused)]
        if errors:
            write_atomic(work.errors_path(part.index), _lines(errors))
        write_atomic(work.part_path(part.index), data)
        shown = tuple(f"row {e['row']}: {e['reason']}" for e in errors[:SHOWN])
        seconds = time.perf_counter() - started
        digest, size = digest_bytes(data), len(data)
        return Done(part.index, len(part.rows), len(errors), shown, digest, size, seconds)

    def _windows(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        # Pixels take a thousand times the room of a file name, so few images are open at a time
        size = self._work.batch_rows if self._work.roles.kind == "images" else max(1, len(rows))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _run(self, group: Group) -> tuple[dict[int, dict[str, Array]], dict[int, str]]:
        """Return outputs by row; rows that the engine refuses are found by running each alone."""
        refused: dict[int, str] = {}
        try:
            return self._outputs(group), refused
        except EngineError:
            for place in range(len(group.rows)):
                try:
                    self._outputs(_some(group, [place]))
                except EngineError as error:
                    refused[group.rows[place]] = f"the engine refused it: {error}"
            if not refused:
                raise
        rest = [place for place, row in enumerate(group.rows) if row not in refused]
        return (self._outputs(_some(group, rest)) if rest else {}), refused

    def _outputs(self, group: Group) -> dict[int, dict[str, Array]]:
        rows, feeds = len(group.rows), group.feeds
        fixed = fixed_rows(self._work.model.signature)
        if fixed and rows % fixed:  # the last row is repeated, and its copies are not looked at
            index = np.minimum(np.arange(-(-rows // fixed) * fixed), rows - 1)
            feeds = {name: array[index] for name, array in feeds.items()}
        found = run_rows(self._session, feeds, batch_rows=self._work.batch_rows)
        lengths = feeds[MASK].sum(axis=1) if self._work.roles.kind == "texts" else None
        answers: dict[int, dict[str, Array]] = {row: {} for row in group.rows}
        for spec in self._work.table.outputs:
            value = found[spec.name]
            is_sequence = (
                lengths is not None
                and len(spec.shape) > 1
                and isinstance(spec.shape[1], str)
                and value.shape[1] == feeds[MASK].shape[1]
            )
            for place, row in enumerate(group.rows):
                # A row's own tokens: how far it was padded depends on its neighbours
                cut = value[place, : lengths[place]] if is_sequence else value[place]  # type: ignore[index] # not None where is_sequence
                answers[row][spec.name] = np.asarray(cut)
        return answers


def _need_fit(part: Part, refused: Mapping[int, str]) -> None:
    """Refuse columns that no row of a part fits with: more rows would say the same."""
    if len(refused) == len(part.rows) and all(isinstance(w, Misfit) for w in refused.values()):
        raise MisfitError(
            f"The columns must fit the model; none of the first {show_number(len(refused), 'row')} "
            f"does: {refused[0].rstrip('.')}. Name others (--column), or ask another model; "
            "nothing was kept."
        )


def _some(group: Group, places: Sequence[int]) -> Group:
    index = np.array(places, dtype=np.int64)
    feeds = {name: array[index] for name, array in group.feeds.items()}
    return Group([group.rows[place] for place in places], feeds)


def _values(row: Row) -> Any:  # a mapping: rows without one were refused before
    return row.values


def _keys(rows: Sequence[Row], table: Table) -> dict[str, list[Any]]:
    return {name: [_values(row)[name] for row in rows] for name in table.keys}


def _refuse(rows: Sequence[Row], work: Work) -> dict[int, str]:
    """Return why rows cannot be read, or their keys not be written."""
    refused = {}
    keys = {} if work.numbered else work.table.keys
    for index, row in enumerate(rows):
        if row.values is None:
            refused[index] = row.reason
            continue
        for name, value in row.values.items():
            if isinstance(value, str) and not _is_utf8(value):
                refused[index] = f"column {name!r} must be UTF-8"
        for name, kind in keys.items():
            value = row.values.get(name)
            if name not in row.values:
                refused[index] = f"key {name!r} must be there; it is not"
            elif value is not None and isinstance(kind, type) and not _is_of(value, kind):
                refused[index] = (
                    f"key {name!r} must be of the first row's type, {kind.__name__}; "
                    f"got {type(value).__name__}"
                )
    return refused


def _is_of(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int):
        return kind is float or (kind is int and -_INT64 <= value < _INT64)
    return isinstance(value, kind)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _error(source: Source, row: Row, reason: str) -> dict[str, Any]:
    return {
        "row": row.number,
        "file": source.files[row.file],
        "file_row": row.place,
        "reason": reason,
    }


def _lines(errors: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(error) + "\n" for error in errors).encode()
