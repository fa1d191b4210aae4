"""One description of the tables, told in the words of each database."""

import re
import sqlite3
from contextlib import closing

import pytest

from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.postgres_store import POSTGRES
from ingot.serve.jobs.sqlite_schema import SQLITE
from ingot.serve.jobs.tables import carry_over


def columns(dialect):
    table = dialect.statements()[0]
    return [line.split()[0] for line in re.sub(r"^.*?\(", "", table, flags=re.DOTALL).split(",")]


def test_both_dialects_have_the_same_columns_in_the_same_order():
    assert columns(SQLITE) == columns(POSTGRES)
    assert columns(SQLITE)[:3] == ["seq", "id", "endpoint"]


def test_no_word_of_a_dialect_is_left_open():
    for dialect in (SQLITE, POSTGRES):
        assert not re.search(r"\{|\}", " ".join([*dialect.statements(), dialect.carry_over()]))


@pytest.mark.parametrize("back_s", [86_400.0, 5.0])
def test_a_clock_that_ran_backwards_makes_every_job_due_at_once(back_s):
    times = {"steady": 1_000_000.0, "wall": 500.0}
    clock = Clock(lambda: times["steady"], lambda: times["wall"], "one")
    with closing(sqlite3.connect(":memory:")) as db:
        for statement in SQLITE.statements():
            db.execute(statement)
        carry_over(db, SQLITE, clock)
        db.execute(
            "INSERT INTO jobs (id, endpoint, state, due, expires, request, output, input_uri,"
            " caller_id, ttl_s, timeout_s, created)"
            " VALUES ('j', 'm', 'queued', 1000003, 1000100, '', '', '', '', 100, 9, 500)"
        )
        times["steady"] -= back_s
        carry_over(db, SQLITE, clock)

        assert db.execute("SELECT due, expires FROM jobs").fetchone() == (
            times["steady"],
            times["steady"] + 100.0,
        )
