"""The scale-out job store: the same leased table in PostgreSQL, for servers on several machines."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ingot.core.extras import need
from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.job import Job, RetryPolicy, StoreError
from ingot.serve.jobs.moves import Moves
from ingot.serve.jobs.table_store import TableJobStore
from ingot.serve.jobs.tables import FORMAT, Dialect, carry_over

SCHEMA = "ingot_jobs"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}")
_CONNECT_S = 10

POSTGRES = Dialect(
    number="bigserial PRIMARY KEY",
    job="bigint PRIMARY KEY REFERENCES jobs ON DELETE CASCADE",
    text="text",
    real="float8",
    int="int",
    long="bigint",
    bytes="bytea",
    most="greatest",
    least="least",
    triggers=(
        """CREATE FUNCTION count_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP <> 'INSERT' THEN {leave} END IF;
        IF TG_OP <> 'DELETE' THEN {enter} END IF;
        RETURN NULL; END $$""",
        """CREATE TRIGGER jobs_io AFTER INSERT OR DELETE ON jobs FOR EACH ROW
        EXECUTE FUNCTION count_job()""",
        """CREATE TRIGGER jobs_on AFTER UPDATE OF state ON jobs FOR EACH ROW
        WHEN (old.state <> new.state) EXECUTE FUNCTION count_job()""",
        "CREATE TABLE format (version int NOT NULL)",
    ),
)


class PostgresJobStore(TableJobStore):
    """Jobs of any number of endpoints in a schema of a PostgreSQL database.

    Written for the driver psycopg, on the tables of the default store: a queue library would bring
    retries and locks of its own, and none of those known has leases that fence by attempt.
    Changes take turns under one advisory lock of the schema, which goes with its connection when a
    process is killed. Every commit is synchronous: an accepted job survives what the server does.
    Deadlines are kept by the server's clock, the only one that all machines share, so that clock
    must be disciplined; a jump runs jobs again, and the fences hold.

    Args:
        url: What libpq takes, e.g. `postgresql://host/database`.
        schema: Where the tables are; made if it is not there.
        retry: When jobs are tried again.
        max_queued: More jobs than this may not wait.
        clock: What deadlines are kept in; the server's unless a test says otherwise.
        on_end: Told of jobs whose end no attempt put into words.

    Raises:
        MissingExtraError: The extra `postgres` is not installed.
        StoreError: The server cannot be reached, or the tables are of another format.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = SCHEMA,
        retry: RetryPolicy | None = None,
        max_queued: int = 1_000_000,
        clock: Clock | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        if not _NAME.fullmatch(schema):
            raise StoreError(
                f"A schema must be a lower-case name of at most 51 characters; got {schema!r}. "
                "Choose another."
            )
        self._link = _Link(url, schema)
        self._lock = threading.RLock()
        try:
            super().__init__(
                retry or RetryPolicy(), max_queued, clock or self._link.clock(), on_end=on_end
            )
            with self._write():
                _make_tables(self._link)
                carry_over(self._link, POSTGRES, self._clock)
        except BaseException:
            self._link.close()
            raise
        self._db = self._link
        self._moves = Moves(self._db, self._clock, self._retry)

    def close(self) -> None:
        """Close; a second call does nothing."""
        with self._lock:
            self._link.close()

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        with self._lock, self._link.explained():
            yield

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        with self._lock, self._link.explained(), self._link.transaction():
            yield


def check_server(url: str) -> None:
    """Refuse a server that cannot be reached; nothing is made there.

    Raises:
        MissingExtraError: The extra `postgres` is not installed.
        StoreError: It cannot be reached.
    """
    with contextlib.closing(_Link(url, SCHEMA)) as link:
        link.clock()


class _Link:
    """A connection that is made anew when the server was away."""

    def __init__(self, url: str, schema: str) -> None:
        self._psycopg = need("psycopg", extra="postgres", what="A job store in PostgreSQL")
        self._url, self.schema = url, schema
        self._connection: Any = None  # psycopg is imported late
        self._is_closed = False

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Any:
        """Run a statement that has `?` for its values."""
        return self._connection.execute(sql.replace("?", "%s"), values)

    def run(self, sql: str, values: dict[str, Any] | None = None) -> Any:
        """Run a statement in the driver's own words."""
        return self._connection.execute(sql, values)

    def clock(self) -> Clock:
        """Return the server's clock, as it runs on from what it says now."""
        with self.explained():
            asked = time.monotonic()
            (now,) = self.run("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        # Steady between the calls of one process, and the server's at its start: what two machines
        # disagree by is the time that the question took.
        return Clock(lambda: now + time.monotonic() - asked, time.time, "postgres")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock of the schema for a block that is committed whole or not at all."""
        with self._connection.transaction():
            self.execute("SELECT pg_advisory_xact_lock(hashtext(?))", (f"ingot/{self.schema}",))
            yield

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Connect if need be, and say in words what goes wrong."""
        try:
            if self._connection is None or self._connection.broken:
                self._connect()
            yield
        except self._psycopg.Error as error:
            raise StoreError(
                f"A job store must reach its PostgreSQL server; got: {error}. What was accepted "
                "before is safe. Check the address and the server."
            ) from error

    def close(self) -> None:
        """Close for good."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> None:
        if self._is_closed:
            raise StoreError("A job store must be open; this one was closed. Open another.")
        connection = self._psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_S)
        self._connection = connection
        connection.execute(f"SET search_path TO {self.schema}")
        connection.execute("SET synchronous_commit TO on")


def _make_tables(link: _Link) -> None:
    link.run(f"CREATE SCHEMA IF NOT EXISTS {link.schema}")
    if link.run("SELECT to_regclass('format')").fetchone()[0] is None:
        for statement in POSTGRES.statements():
            link.run(statement)
        link.execute("INSERT INTO format VALUES (?)", (FORMAT,))
    (found,) = link.run("SELECT version FROM format").fetchone()
    if found == 1 < FORMAT:
        link.run("ALTER TABLE jobs ADD COLUMN origin text NOT NULL DEFAULT ''")
        link.run("UPDATE format SET version = 2")
        found = 2
    if found != FORMAT:
        raise StoreError(
            f"A job store must have format {FORMAT}; this one has {found}. "
            "Use the version of Ingot that wrote it, or another schema."
        )
