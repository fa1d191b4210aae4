import sqlite3

import pytest

from ingot.core.errors import LedgerError
from ingot.ledger import database


class Locked:
    """A connection whose mode cannot be changed for a while."""

    def __init__(self, times):
        self.times = times

    def execute(self, statement):
        self.times -= 1
        if self.times >= 0:
            raise sqlite3.OperationalError("database is locked")


def test_changing_the_mode_waits_for_another_process(monkeypatch):
    monkeypatch.setattr(database, "_WAL_PAUSE_S", 0.0)
    connection = Locked(3)

    database._use_wal(connection)

    assert connection.times == -1


def test_changing_the_mode_gives_up_in_the_end(monkeypatch):
    monkeypatch.setattr(database, "_WAL_PAUSE_S", 0.0)

    with pytest.raises(sqlite3.OperationalError, match="locked"):
        database._use_wal(Locked(10_000))


def test_a_text_file_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "x.sqlite"
    path.write_text("words " * 1000)

    with pytest.raises(LedgerError, match="INGOT_HOME"):
        database.open_database(path)
