"""The ledger: an append-only record in one SQLite file that shows when it was changed.

The leaf of an entry is the canonical JSON of its index, time, kind and body, stored verbatim. The
file also keeps the root after every append and the hashes of complete subtrees; both can be made
again from the entries, and `verify` believes neither.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ingot.core.closing import Closing
from ingot.core.digest import Json, canonical_json
from ingot.core.errors import LedgerError
from ingot.core.files import home
from ingot.ledger import tree
from ingot.ledger.audit import Verification, audit
from ingot.ledger.checkpoint import ORIGIN, Head, write_checkpoint
from ingot.ledger.database import is_frozen, open_database, open_frozen, transaction

FILE = "ingot.sqlite"
_KIND = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS ledger_entries (idx INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS ledger_heads (size INTEGER PRIMARY KEY, root BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS ledger_nodes (level INTEGER, position INTEGER, hash BLOB NOT NULL,"
    " PRIMARY KEY (level, position)) WITHOUT ROWID",
)
# Whoever can write the file can drop a trigger: these stop accidents, the tree shows attacks.
_GUARD = (
    "CREATE TRIGGER IF NOT EXISTS {table}_no_{verb} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    Attributes:
        index: Position, from 0.
        time: UTC time, ISO 8601.
        kind: What happened, e.g. `release`.
        body: The facts.
        data: The bytes that are the leaf: canonical JSON of the four above.
    """

    index: int
    time: str
    kind: str
    body: Mapping[str, Json]
    data: bytes

    @property
    def leaf(self) -> bytes:
        """The leaf hash, 32 bytes."""
        return tree.leaf_hash(self.data)


class Ledger(Closing):
    """An append-only record over one SQLite connection.

    Registry and ledger share a file, so that a change and its entry are one transaction: `append`
    inside `transaction()` joins it, and outside it is a transaction of its own.
    """

    def __init__(
        self, connection: sqlite3.Connection, *, origin: str = ORIGIN, is_frozen: bool = False
    ) -> None:
        self.connection = connection
        self.origin = origin
        self.is_frozen = is_frozen

    @classmethod
    def open(cls, path: Path | None = None, *, origin: str = ORIGIN) -> Self:
        """Open or make a ledger file, `home()/ingot.sqlite` by default; a bundle's is only read.

        Raises:
            LedgerError: The file is not a SQLite database.
        """
        path = path or home() / FILE
        if is_frozen(path):
            return cls(open_frozen(path), origin=origin, is_frozen=True)
        connection = open_database(path)
        for statement in _TABLES:
            connection.execute(statement)
        guard(connection, "ledger_entries", "ledger_heads")
        return cls(connection, origin=origin)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Hold the write lock for a `with` block: all of it is committed, or none of it.

        Raises:
            LedgerError: The ledger is in a bundle.
        """
        if self.is_frozen:
            raise LedgerError(
                "The ledger of a bundle must stay as it was packed; got a change. Make it in the "
                "registry that the bundle came from, and pack a new one."
            )
        return transaction(self.connection)

    def append(self, kind: str, body: Mapping[str, Json], *, time: str | None = None) -> Entry:
        """Add an entry, in O(log n).

        Args:
            kind: Lower-case word with digits, dots and dashes.
            body: Facts that have a JSON form.
            time: UTC time, ISO 8601; now if not given.

        Raises:
            LedgerError: `kind` or `body` cannot be recorded; nothing was written.
        """
        if not _KIND.fullmatch(kind):
            raise LedgerError(
                f"A ledger kind must match {_KIND.pattern}; got {kind!r}. "
                "Use a word like 'release'."
            )
        time = time or datetime.now(UTC).isoformat()
        if self.connection.in_transaction:
            return self._append(kind, body, time)
        with self.transaction():
            return self._append(kind, body, time)

    def _append(self, kind: str, body: Mapping[str, Json], time: str) -> Entry:
        row = self.connection.execute("SELECT max(size) FROM ledger_heads").fetchone()
        index = int(row[0] or 0)
        data = _leaf_data(index, time, kind, body)
        frontier = tree.Frontier(index, [self._node(*a) for a in tree.peak_addresses(index)])
        nodes = frontier.append(tree.leaf_hash(data))
        head = (index + 1, frontier.root())
        try:
            self.connection.execute("INSERT INTO ledger_entries VALUES (?, ?)", (index, data))
            self.connection.executemany("INSERT INTO ledger_nodes VALUES (?, ?, ?)", nodes)
            self.connection.execute("INSERT INTO ledger_heads VALUES (?, ?)", head)
        except sqlite3.IntegrityError as error:
            raise LedgerError(
                f"Entry {index} must be the next one; the file already holds a part of it. The "
                "file was changed: verify the ledger and restore it from a copy."
            ) from error
        return _entry(data)

    def entry(self, index: int) -> Entry:
        """Return one entry.

        Raises:
            LedgerError: There is no such entry, or it is not readable.
        """
        query = "SELECT data FROM ledger_entries WHERE idx = ?"
        row = self.connection.execute(query, (index,)).fetchone()
        if row is None:
            raise LedgerError(
                f"An entry index must be from 0 and below {self.head().size}; got {index}. "
                "List the entries."
            )
        return _entry(row[0])

    def entries(self) -> Iterator[Entry]:
        """Return every entry in order."""
        for (data,) in self.connection.execute("SELECT data FROM ledger_entries ORDER BY idx"):
            yield _entry(data)

    def head(self) -> Head:
        """Return size and root after the last append, as stored."""
        query = "SELECT size, root FROM ledger_heads ORDER BY size DESC LIMIT 1"
        row = self.connection.execute(query).fetchone()
        return Head(int(row[0]), bytes(row[1]).hex()) if row else Head(0, tree.EMPTY_ROOT.hex())

    def inclusion_proof(self, index: int) -> list[bytes]:
        """Return the proof that an entry is under the present root.

        Raises:
            LedgerError: There is no such entry.
        """
        return tree.inclusion_proof(self._node, index, self.head().size)

    def consistency_proof(self, first: int, second: int) -> list[bytes]:
        """Return the proof that the ledger of size `second` extends that of size `first`.

        Raises:
            LedgerError: Not 0 < first <= second <= size.
        """
        size = self.head().size
        if second > size:
            raise LedgerError(
                f"A consistency proof must end at most at size {size}; got {second}. "
                "Ask for a size that this ledger has reached."
            )
        return tree.consistency_proof(self._node, first, second)

    def checkpoint(self) -> str:
        """Return size and root as text; keep it where nobody can write who can write here."""
        return write_checkpoint(self.head(), self.origin)

    def verify(self, checkpoint: str | None = None) -> Verification:
        """Recompute everything from the entries' bytes and name the first that is wrong.

        Args:
            checkpoint: An earlier checkpoint, kept elsewhere. Without one, an attacker who
                rewrites the whole file from the first changed entry on is not seen.

        Raises:
            LedgerError: `checkpoint` is not a checkpoint of this ledger.
        """
        return audit(self.connection, checkpoint=checkpoint, origin=self.origin)

    def _node(self, level: int, position: int) -> bytes:
        query = "SELECT hash FROM ledger_nodes WHERE level = ? AND position = ?"
        row = self.connection.execute(query, (level, position)).fetchone()
        if row is None:
            raise LedgerError(
                f"The ledger must keep subtree {level}/{position}; it is not there. The file was "
                "changed: verify the ledger and restore it from a copy."
            )
        return bytes(row[0])


def guard(connection: sqlite3.Connection, *tables: str) -> None:
    """Make tables refuse UPDATE and DELETE."""
    for table in tables:
        for verb in ("update", "delete"):
            connection.execute(_GUARD.format(table=table, verb=verb))


def _leaf_data(index: int, time: str, kind: str, body: Mapping[str, Json]) -> bytes:
    try:
        return canonical_json({"index": index, "time": time, "kind": kind, "body": dict(body)})
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"The body of a {kind!r} entry must have a JSON form; got {error}. "
            "Use text, finite numbers, booleans, None, lists and mappings."
        ) from error


def _entry(data: bytes) -> Entry:
    try:
        value = json.loads(data)
        return Entry(value["index"], value["time"], value["kind"], value["body"], bytes(data))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"An entry must be JSON with index, time, kind and body; got {bytes(data)[:40]!r}. "
            "The file was changed: verify the ledger and restore it from a copy."
        ) from error
