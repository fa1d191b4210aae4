"""API keys: made once, kept as hashes, looked up in memory, revoked within a second."""

import hashlib
import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.errors import ServeError
from ingot.core.names import suggest
from ingot.ledger.database import open_database, transaction
from ingot.serve.access.scopes import Principal, check_scopes
from ingot.serve.endpoint import Rate

PREFIX = "ingot_"
KEYS_FILE = "keys.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL, scopes TEXT NOT NULL,
    created REAL NOT NULL, expires REAL, revoked REAL, rate REAL, burst REAL)"""
_ADDED = ("rate", "burst")  # columns that files of earlier versions lack
_NOBODY = hashlib.sha256(b"").digest()
_RELOAD_S = 1.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: nothing here lets anybody in.

    Attributes:
        id: Public part of the key.
        name: What it is for.
        scopes: What it allows.
        created: UTC seconds since 1970.
        expires: When it ends, UTC seconds since 1970; None means never.
        revoked: When it was revoked, if it was.
        rate: How often its holder may ask; None for what the server says.
    """

    id: str
    name: str
    scopes: frozenset[str]
    created: float
    expires: float | None = None
    revoked: float | None = None
    rate: Rate | None = None

    def is_valid(self, now: float) -> bool:
        """Say whether it lets its holder in at a time."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class KeyStore:
    """Keys in a SQLite file.

    A key is `ingot_ID_SECRET` with 256 random bits of secret. What is kept is the SHA-256 of the
    secret: a slow hash protects words that people choose, and nobody guesses 256 random bits.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file.

        Args:
            path: SQLite file; only its owner may read it.
            clock: UTC seconds since 1970.

        Raises:
            LedgerError: The file is not a SQLite database.
        """
        self._path, self._clock = path, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with closing(self._open()) as database:
            database.execute(_TABLE)
            with transaction(database):
                known = {row[1] for row in database.execute("PRAGMA table_info(keys)")}
                for column in _ADDED:
                    if column not in known:
                        database.execute(f"ALTER TABLE keys ADD COLUMN {column} REAL")

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        days: float | None = 90,
        rate: Rate | None = None,
    ) -> tuple[str, ApiKey]:
        """Make a key.

        Args:
            name: What it is for.
            scopes: What it allows.
            days: After which it ends; None means never.
            rate: How often its holder may ask, whatever the server says of others.

        Returns:
            The key, which can never be had again, and what is kept of it.

        Raises:
            ServeError: A scope is none, or `days` is not positive.
        """
        if days is not None and not days > 0:
            raise ServeError(f"A key must live for more than 0 days; got {days}. Try 90.")
        now = self._clock()
        expires = None if days is None else now + days * 86400
        key = ApiKey(secrets.token_hex(6), name, check_scopes(scopes), now, expires, rate=rate)
        secret = secrets.token_urlsafe(32)
        limits = (None, None) if rate is None else (rate.per_s, rate.burst)
        row = (key.id, name, _hash(secret), json.dumps(sorted(key.scopes)), now, expires, *limits)
        with closing(self._open()) as database, transaction(database):
            database.execute(
                "INSERT INTO keys (id, name, hash, scopes, created, expires, rate, burst)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return f"{PREFIX}{key.id}_{secret}", key

    def all(self) -> list[ApiKey]:
        """Return every key, the oldest first."""
        with closing(self._open()) as database:
            return [key for key, _ in read_keys(database).values()]

    def revoke(self, id: str) -> None:
        """End a key now; servers that run notice within a second. Ending it again does nothing.

        Raises:
            ServeError: There is no such key.
        """
        with closing(self._open()) as database, transaction(database):
            known = read_keys(database)
            if id not in known:
                raise ServeError(f"No key has the id {id!r}. {suggest(id, known)}")
            database.execute(
                "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (self._clock(), id)
            )

    def _open(self) -> sqlite3.Connection:
        return open_database(self._path)


class KeyRing:
    """The keys of a store, in memory, for a server.

    Args:
        path: Of the store.
        clock: UTC seconds since 1970.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        KeyStore(path)
        self._database = open_database(path, shared=True)
        self._version, self._keys = -1, dict[str, tuple[ApiKey, bytes]]()
        self._looked = 0.0
        self._look(clock())

    def find(self, text: str) -> Principal | None:
        """Return whose key this is; None if it is nobody's, expired or revoked."""
        now = self._clock()
        if now - self._looked >= _RELOAD_S or now < self._looked:
            self._look(now)
        id, _, secret = text.removeprefix(PREFIX).partition("_")
        key, kept = self._keys.get(id, (None, _NOBODY))
        # compared also for an unknown id, so that time does not tell which ids there are
        is_same = hmac.compare_digest(_hash(secret), kept)
        if key is None or not is_same or not key.is_valid(now):
            return None
        return Principal(key.name, key.scopes, key.id, key.rate)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _look(self, now: float) -> None:
        self._looked = now
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version, self._keys = version, read_keys(self._database)


def read_keys(database: sqlite3.Connection) -> dict[str, tuple[ApiKey, bytes]]:
    """Return every key with its hash by id, the oldest first."""
    rows = database.execute(
        "SELECT id, name, scopes, created, expires, revoked, rate, burst, hash FROM keys"
        " ORDER BY created"
    )
    return {row[0]: (_key(row), row[-1]) for row in rows}


def _key(row: tuple[Any, ...]) -> ApiKey:  # of the query above
    id, name, scopes, created, expires, revoked, per_s, burst, _hash_of_it = row
    rate = None if per_s is None else Rate(per_s, burst)
    return ApiKey(id, name, frozenset(json.loads(scopes)), created, expires, revoked, rate)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
