"""What is too old, or too much, leaves an observation log in small pieces."""

import sqlite3
from dataclasses import dataclass

from ingot.ledger.database import transaction
from ingot.observe.rules import LogRules
from ingot.observe.table import ENDPOINTS

_PIECE_ROWS = 1000  # about ten milliseconds of work: whoever writes meanwhile waits no longer
_PIECES = 8  # at a time, which is more than an endpoint can write between two times
_FREED_PAGES = 2048  # at a time, 8 MiB
_OLD = """DELETE FROM observations WHERE id IN (SELECT id FROM observations
    WHERE endpoint = ? AND time < ? ORDER BY time LIMIT ?)"""
_OLDEST = "DELETE FROM observations WHERE id IN (SELECT id FROM observations ORDER BY id LIMIT ?)"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a log keeps its rows.

    Attributes:
        max_age_s: Seconds after which rows are deleted; None keeps them.
        max_bytes: Size of the file beyond which the oldest rows go; None lets it grow.
    """

    max_age_s: float | None
    max_bytes: int | None

    @classmethod
    def of(cls, rules: LogRules) -> "Retention | None":
        """Return what rules ask for; None if they keep everything."""
        if rules.max_age_s is None and rules.max_bytes is None:
            return None
        return cls(rules.max_age_s, rules.max_bytes)

    def prune(self, db: sqlite3.Connection, now: float) -> int:
        """Delete some of what has to go, in several short transactions.

        Args:
            db: The log, for writing.
            now: UTC seconds since 1970.

        Returns:
            How many rows were deleted; 0 once nothing has to go.
        """
        deleted = 0
        for _ in range(_PIECES):
            piece = self._piece(db, now)
            deleted += piece
            if not piece:
                break
        if deleted:
            # as a script: `execute` would stop after the first page that is given back
            db.executescript(f"PRAGMA incremental_vacuum({_FREED_PAGES})")
        return deleted

    def _piece(self, db: sqlite3.Connection, now: float) -> int:
        if self.max_age_s is not None:
            before = now - self.max_age_s
            for (endpoint,) in db.execute(ENDPOINTS).fetchall():
                with transaction(db):
                    gone = db.execute(_OLD, (endpoint, before, _PIECE_ROWS)).rowcount
                if gone:
                    return gone
        if self.max_bytes is not None and used_bytes(db) > self.max_bytes:
            with transaction(db):
                return db.execute(_OLDEST, (_PIECE_ROWS,)).rowcount
        return 0


def used_bytes(db: sqlite3.Connection) -> int:
    """Return the bytes of a file that hold something; the rest of it is used again."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
