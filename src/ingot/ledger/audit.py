"""Recompute a ledger from the bytes of its entries and say where it first departs."""

import json
import sqlite3
from dataclasses import dataclass, field

from ingot.core.digest import canonical_json
from ingot.ledger import tree
from ingot.ledger.checkpoint import ORIGIN, Head, parse_checkpoint

_FIELDS = {"index", "time", "kind", "body"}


@dataclass(frozen=True, slots=True)
class Verification:
    """What an audit found.

    Attributes:
        size: Number of entries found.
        root: Root recomputed over them, 64 hex digits.
        problems: One sentence each; empty when the record verifies.
        first_bad: Index of the first entry that is changed, missing or out of place.
    """

    size: int
    root: str
    problems: tuple[str, ...] = ()
    first_bad: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def audit(
    connection: sqlite3.Connection, *, checkpoint: str | None = None, origin: str = ORIGIN
) -> Verification:
    """Recompute every leaf, every stored root and every cached node.

    Args:
        connection: The ledger's file.
        checkpoint: An earlier checkpoint that the ledger must extend.
        origin: Name of the ledger in its checkpoints.

    Raises:
        LedgerError: `checkpoint` is not a checkpoint of this ledger.
    """
    earlier = parse_checkpoint(checkpoint, origin) if checkpoint is not None else None
    run = _Audit(earlier)
    connection.execute("BEGIN")  # one snapshot: an append meanwhile must not look like tampering
    try:
        run.read(connection)
    except sqlite3.DatabaseError as error:
        run.report(f"The file must be readable to its end; SQLite says {error}.", run.frontier.size)
    finally:
        connection.execute("ROLLBACK")
    frontier = run.frontier
    return Verification(frontier.size, frontier.root().hex(), tuple(run.problems), run.first_bad)


@dataclass(slots=True)
class _Audit:
    earlier: Head | None
    frontier: tree.Frontier = field(default_factory=tree.Frontier)
    problems: list[str] = field(default_factory=list)
    first_bad: int | None = None

    def report(self, text: str, index: int | None = None) -> None:
        self.problems.append(text)
        if index is not None and (self.first_bad is None or index < self.first_bad):
            self.first_bad = index

    def read(self, connection: sqlite3.Connection) -> None:
        heads = dict(connection.execute("SELECT size, root FROM ledger_heads"))
        nodes = {
            (level, position): value
            for level, position, value in connection.execute("SELECT * FROM ledger_nodes")
        }
        if self.earlier is not None and self.earlier.size == 0:
            self._compare_checkpoint()
        rows = connection.execute("SELECT idx, data FROM ledger_entries ORDER BY idx")
        bad_content = bad_root = bad_node = False
        for number, data in rows:
            index = self.frontier.size
            reason = _content_problem(index, number, data)
            if reason and not bad_content:
                bad_content = True
                self.report(f"Entry {index} {reason}", index)
            raw = data if isinstance(data, bytes) else str(data).encode()
            for level, position, value in self.frontier.append(tree.leaf_hash(raw)):
                kept = nodes.pop((level, position), None)
                if kept != value and not bad_node:
                    bad_node = True
                    self.report(f"Entry {index}: cached node {level}/{position} is not its hash.")
            if heads.pop(index + 1, None) != self.frontier.root() and not bad_root:
                bad_root = True
                self.report(
                    f"Entry {index}: the root stored when it was written is not the root of the "
                    "entries up to it.",
                    index,
                )
            if self.earlier is not None and self.earlier.size == self.frontier.size:
                self._compare_checkpoint()
        self._finish(heads, nodes)

    def _compare_checkpoint(self) -> None:
        assert self.earlier is not None
        if self.frontier.root().hex() != self.earlier.root:
            self.report(
                f"The first {self.earlier.size} entries are not those of the checkpoint: history "
                "was rewritten after it was made."
            )

    def _finish(self, heads: dict[int, bytes], nodes: dict[tuple[int, int], bytes]) -> None:
        size = self.frontier.size
        if heads:
            text = (
                f"Entry {size} is missing: a root is stored for {max(heads)} entries, not {size}."
            )
            self.report(text, size)
        elif nodes:
            text = f"Entry {size} is missing: {len(nodes)} cached nodes belong to no entry."
            self.report(text, size)
        if self.earlier is not None and self.earlier.size > size:
            self.report(
                f"The checkpoint has {self.earlier.size} entries, the ledger {size}: the last "
                f"{self.earlier.size - size} were removed.",
                size,
            )


def _content_problem(index: int, number: int, data: object) -> str:
    if number != index:
        return f"is missing; the next one stored is {number}."
    try:
        value = json.loads(data) if isinstance(data, bytes) else None
        is_canonical = isinstance(value, dict) and canonical_json(value) == data
    except ValueError:
        return "is not JSON."
    if not is_canonical or value is None or set(value) != _FIELDS:
        return "is not the canonical JSON of index, time, kind and body."
    if value["index"] != index:
        return f"says that it is entry {value['index']}."
    return ""
