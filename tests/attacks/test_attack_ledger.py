import sqlite3

import pytest

from ingot.core.errors import LedgerError
from ingot.ledger.ledger import Ledger

NOW = "2026-01-02T03:04:05+00:00"


def make(path, n=6, word="true"):
    with Ledger.open(path) as ledger:
        for i in range(n):
            ledger.append("note", {"n": i, "word": word}, time=NOW)
        return ledger.checkpoint()


def tamper(path, *statements):
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
    db.close()


def verify(path, checkpoint=None):
    with Ledger.open(path) as ledger:
        return ledger.verify(checkpoint)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


REPLACE = "UPDATE ledger_entries SET data = CAST(replace(data, 'true', 'FALSE') AS BLOB)"


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_heads"])
@pytest.mark.parametrize("sql", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 10"])
def test_the_file_refuses_changes_while_its_triggers_stand(path, table, sql):
    make(path)
    with Ledger.open(path) as ledger, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        ledger.connection.execute(sql.format(table))


@pytest.mark.parametrize("index", range(6))
def test_a_changed_body_is_named(path, index):
    make(path)
    tamper(path, f"{REPLACE} WHERE idx = {index}")

    result = verify(path)

    assert not result.ok
    assert result.first_bad == index


def test_a_body_that_is_no_longer_json_is_named(path):
    make(path)
    tamper(path, "UPDATE ledger_entries SET data = x'7b' WHERE idx = 2")

    result = verify(path)

    assert result.first_bad == 2
    assert "Entry 2 is not JSON." in result.problems
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="must be JSON"):
        ledger.entry(2)


def test_a_body_with_another_shape_is_named(path):
    make(path)
    tamper(path, "UPDATE ledger_entries SET data = '{}' WHERE idx = 2")

    assert verify(path).first_bad == 2


def test_a_deleted_last_entry_is_caught_by_the_stored_root(path):
    make(path)
    tamper(path, "DELETE FROM ledger_entries WHERE idx = 5")

    result = verify(path)

    assert result.first_bad == 5
    assert "a root is stored for 6 entries, not 5" in result.problems[0]


def test_a_deleted_last_entry_with_its_root_is_caught_by_the_cached_nodes(path):
    make(path)
    tamper(
        path,
        "DELETE FROM ledger_entries WHERE idx = 5",
        "DELETE FROM ledger_heads WHERE size = 6",
    )

    assert verify(path).first_bad == 5


def test_a_clean_truncation_is_caught_only_by_a_checkpoint_kept_elsewhere(tmp_path, path):
    checkpoint = make(path)
    make(tmp_path / "short.sqlite", n=5)

    assert verify(tmp_path / "short.sqlite").ok
    result = verify(tmp_path / "short.sqlite", checkpoint)
    assert result.first_bad == 5
    assert "the last 1 were removed" in result.problems[0]


def test_a_deleted_middle_entry_is_named(path):
    make(path)
    tamper(path, "DELETE FROM ledger_entries WHERE idx = 3")

    result = verify(path)

    assert result.first_bad == 3
    assert "Entry 3 is missing; the next one stored is 4." in result.problems


def test_reordered_entries_are_named(path):
    make(path)
    tamper(
        path,
        "UPDATE ledger_entries SET idx = 99 WHERE idx = 1",
        "UPDATE ledger_entries SET idx = 1 WHERE idx = 2",
        "UPDATE ledger_entries SET idx = 2 WHERE idx = 99",
    )

    result = verify(path)

    assert result.first_bad == 1
    assert "Entry 1 says that it is entry 2." in result.problems


def test_a_changed_stored_root_is_named(path):
    make(path)
    tamper(path, "UPDATE ledger_heads SET root = zeroblob(32) WHERE size = 4")

    assert verify(path).first_bad == 3


def test_a_changed_cached_node_is_seen_though_every_entry_is_whole(path):
    make(path)
    tamper(path, "UPDATE ledger_nodes SET hash = zeroblob(32) WHERE level = 1 AND position = 0")

    result = verify(path)

    assert result.problems == ("Entry 1: cached node 1/0 is not its hash.",)
    assert result.first_bad is None


def test_a_whole_rewritten_ledger_is_caught_only_by_a_checkpoint_kept_elsewhere(tmp_path, path):
    checkpoint = make(path)
    forged = tmp_path / "forged.sqlite"
    make(forged, n=8, word="FALSE")

    assert verify(forged).ok
    result = verify(forged, checkpoint)
    assert not result.ok
    assert "history was rewritten" in result.problems[0]


def test_nothing_can_be_appended_over_a_removed_root(path):
    make(path)
    tamper(path, "DELETE FROM ledger_heads WHERE size = 6")

    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="must be the next one"):
        ledger.append("note", {})


def test_nothing_can_be_appended_over_a_removed_node(path):
    make(path)
    tamper(path, "DELETE FROM ledger_nodes WHERE level = 2")

    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="subtree 2/0"):
        ledger.append("note", {})


def test_a_forged_empty_checkpoint_is_caught(path):
    make(path)
    forged = "ingot.dev/ledger\n0\n" + "A" * 43 + "=\n"

    assert not verify(path, forged).ok


def test_a_damaged_file_is_a_problem_and_not_a_crash(path):
    make(path, n=200)
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    with Ledger.open(path) as ledger:
        path.write_bytes(data)
        result = ledger.verify()

    assert not result.ok
