"""The tables of a job store: one description, which each database is told in its own dialect."""

from dataclasses import dataclass, field

from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.moves import Rows

FORMAT = 2  # of the tables; a store of another one is refused

# `due` is in steady seconds: when a queued job may start, when a running job's lease runs out,
# when an ended job ended. One index then serves claims, lapses and retention. Bodies have a table
# of their own because SQLite rewrites a whole row, its blob included, at each change of state.
_TABLES = (
    """CREATE TABLE jobs (
        seq {number}, id {text} NOT NULL UNIQUE, endpoint {text} NOT NULL,
        state {text} NOT NULL, due {real} NOT NULL, expires {real} NOT NULL,
        idempotency_key {text}, request {text} NOT NULL, output {text} NOT NULL,
        input_uri {text} NOT NULL, caller_id {text} NOT NULL, ttl_s {real} NOT NULL,
        timeout_s {real} NOT NULL, created {real} NOT NULL, started {real} NOT NULL DEFAULT 0,
        ended {real} NOT NULL DEFAULT 0, owner {text} NOT NULL DEFAULT '',
        attempt {int} NOT NULL DEFAULT 0, failures {int} NOT NULL DEFAULT 0,
        lapses {int} NOT NULL DEFAULT 0, error {text} NOT NULL DEFAULT '',
        result_bytes {long} NOT NULL DEFAULT 0, note {text} NOT NULL DEFAULT '',
        notify {text} NOT NULL DEFAULT '', notice {text} NOT NULL DEFAULT '',
        notice_due {real} NOT NULL DEFAULT 0, notice_tries {int} NOT NULL DEFAULT 0,
        origin {text} NOT NULL DEFAULT '')""",
    "CREATE TABLE bodies (seq {job}, body {bytes} NOT NULL)",
    """CREATE TABLE counts (endpoint {text} NOT NULL, state {text} NOT NULL, n {long} NOT NULL,
        bytes {long} NOT NULL, PRIMARY KEY (endpoint, state)){by_key}""",
    "CREATE TABLE machine (boot {text} NOT NULL, steady {real} NOT NULL)",
    "CREATE INDEX jobs_by_state ON jobs (endpoint, state, due, seq)",
    """CREATE UNIQUE INDEX jobs_by_key ON jobs (endpoint, idempotency_key)
        WHERE idempotency_key IS NOT NULL""",
    "CREATE INDEX jobs_by_ttl ON jobs (endpoint, expires) WHERE state = 'queued'",
    "CREATE INDEX jobs_by_owner ON jobs (owner) WHERE state = 'running'",
    "CREATE INDEX jobs_to_tell ON jobs (notice_due) WHERE notice = 'pending'",
)
# Counting in triggers keeps a count one look-up, however many ended jobs are retained.
_COUNTING = {
    "leave": """UPDATE counts SET n = n - 1, bytes = bytes - old.result_bytes
        WHERE endpoint = old.endpoint AND state = old.state;""",
    "enter": """INSERT INTO counts VALUES (new.endpoint, new.state, 1, new.result_bytes)
        ON CONFLICT (endpoint, state)
        DO UPDATE SET n = counts.n + 1, bytes = counts.bytes + excluded.bytes;""",
}
_CARRY_OVER = """UPDATE jobs SET
    due = CASE WHEN state IN ('queued', 'running') THEN ? ELSE ? - {most}(0, ? - ended) END,
    expires = ? + {most}(0, {least}(ttl_s, created + ttl_s - ?)),
    notice_due = ?"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a database says what the tables are made of.

    Attributes:
        number: Column type of a row's own number.
        job: Of the number of the job that a row belongs to, and is deleted with.
        text: Of text.
        real: Of 64-bit floats.
        int: Of small integers.
        long: Of 64-bit integers.
        bytes: Of bytes.
        most: Function that returns the larger of its arguments.
        least: Function that returns the smaller.
        by_key: What keeps a table in the order of its key, after its columns.
        triggers: Statements that keep `counts`; `{enter}` and `{leave}` stand for the counting.
    """

    number: str
    job: str
    text: str
    real: str
    int: str
    long: str
    bytes: str
    most: str
    least: str
    by_key: str = ""
    triggers: tuple[str, ...] = field(default=())

    def statements(self) -> list[str]:
        """Return what makes the tables."""
        return [statement.format(**self._words()) for statement in (*_TABLES, *self.triggers)]

    def carry_over(self) -> str:
        """Return what moves every deadline to another clock; see `carry_over`."""
        return _CARRY_OVER.format(**self._words())

    def _words(self) -> dict[str, str]:
        names = (name for name in self.__slots__ if name != "triggers")
        return {name: getattr(self, name) for name in names} | _COUNTING


def carry_over(db: Rows, dialect: Dialect, clock: Clock) -> None:
    """Turn deadlines of an earlier start of the machine, or of another clock, into this one's.

    Leases of an earlier start are over, for no process outlives it; waits are over too. What is
    left of a ttl is reckoned by the wall clock, but never more than the whole ttl, so that a
    clock set back while the machine was off cannot make a job wait forever.

    Args:
        db: A connection with the tables, in a transaction.
        dialect: Its words.
        clock: What deadlines are kept in from now on.
    """
    if is_of(db, clock):
        return
    steady, wall = clock.steady(), clock.wall()
    db.execute(dialect.carry_over(), (steady, steady, wall, steady, wall, steady))
    db.execute("DELETE FROM machine")
    db.execute("INSERT INTO machine VALUES (?, ?)", (clock.boot, steady))


def is_of(db: Rows, clock: Clock) -> bool:
    """Say whether deadlines are kept in a clock, which has not run backwards since."""
    row = db.execute("SELECT boot, steady FROM machine").fetchone()
    return row is not None and row[0] == clock.boot and row[1] <= clock.steady()
