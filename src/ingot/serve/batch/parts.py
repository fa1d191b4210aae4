"""An input cut into parts, and those of them that wait for their answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ingot.serve.batch.rows import Row, Source, rows_of
from ingot.serve.batch.work import Part

PART_BYTES = 32 * 1024 * 1024  # of a part's rows, about: wide rows make shorter parts
_CELL_BYTES = 8  # of a number


@dataclass(frozen=True, slots=True)
class Waiting:
    """The parts of an input that are not finished; whoever iterates reads the input.

    Attributes:
        source: The input.
        columns: What is read of it.
        part_rows: Rows of a part.
        finished: Numbers of the parts to pass over.
    """

    source: Source
    columns: tuple[str, ...]
    part_rows: int
    finished: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[Part]:
        """Give these parts in order, one in memory at a time."""
        parts = parts_of(rows_of(self.source, self.columns), self.part_rows)
        return (part for part in parts if part.index not in self.finished)


def parts_of(rows: Iterator[Row], part_rows: int) -> Iterator[Part]:
    """Cut rows into parts of `part_rows`, or fewer where rows are wide: about 32 MiB at most."""
    index, held, size = 0, [], 0
    for row in rows:
        held.append(row)
        size += sum(map(_weigh, row.values.values())) if row.values else 0
        if len(held) == part_rows or size >= PART_BYTES:
            yield Part(index, held)
            index, held, size = index + 1, [], 0
    if held:
        yield Part(index, held)


def _weigh(value: Any) -> int:
    if isinstance(value, list):
        return len(value) * _weigh(value[0]) if value else 0
    return len(value) if isinstance(value, str | bytes) else _CELL_BYTES
