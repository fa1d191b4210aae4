import subprocess
import sys

import pytest

from ingot.core.errors import LedgerError
from ingot.ledger import tree
from ingot.ledger.checkpoint import Head, parse_checkpoint
from ingot.ledger.ledger import Ledger

NOW = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def fill(ledger, n):
    return [ledger.append("note", {"n": i}, time=NOW) for i in range(n)]


def test_an_empty_ledger_has_the_published_empty_root(ledger):
    assert ledger.head() == Head(
        0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert ledger.verify().ok


def test_an_entry_is_stored_as_the_canonical_json_that_is_its_leaf(ledger):
    entry = ledger.append("note", {"b": 1, "a": "é"}, time=NOW)

    expected = '{"body":{"a":"é","b":1},"index":0,"kind":"note","time":"' + NOW + '"}'
    assert ledger.entry(0) == entry
    assert entry.data == expected.encode()
    assert ledger.head().root == tree.leaf_hash(expected.encode()).hex()


def test_head_is_the_root_over_all_leaves_after_every_append(ledger):
    leaves = []
    for i in range(20):
        leaves.append(ledger.append("note", {"n": i}).leaf)

        assert ledger.head() == Head(i + 1, tree.root_of(leaves).hex())


def test_proofs_from_the_file_verify(ledger):
    entries = fill(ledger, 11)
    root = bytes.fromhex(ledger.head().root)

    inclusion = ledger.inclusion_proof(6)
    consistency = ledger.consistency_proof(5, 11)

    assert tree.verify_inclusion(entries[6].leaf, 6, 11, proof=inclusion, root=root)
    first_root = tree.root_of([e.leaf for e in entries[:5]])
    assert tree.verify_consistency(
        5, 11, first_root=first_root, second_root=root, proof=consistency
    )


def test_a_filled_ledger_verifies_with_every_earlier_checkpoint(ledger):
    checkpoints = [ledger.checkpoint()]
    for _ in range(9):
        fill(ledger, 1)
        checkpoints.append(ledger.checkpoint())

    results = [ledger.verify(text) for text in checkpoints]

    assert all(result.ok for result in results)
    assert results[0].size == 9
    assert results[0].root == ledger.head().root


def test_entries_come_back_in_order_after_reopening(tmp_path):
    with Ledger.open(tmp_path / "l.sqlite") as first:
        written = fill(first, 3)

    with Ledger.open(tmp_path / "l.sqlite") as again:
        assert list(again.entries()) == written


def test_an_append_in_a_failed_transaction_leaves_nothing(ledger):
    fill(ledger, 2)
    before = ledger.head()

    def append_and_fail():
        with ledger.transaction():
            ledger.append("note", {})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        append_and_fail()

    assert ledger.head() == before
    assert ledger.verify().ok


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": object()}])
def test_a_body_without_json_form_is_refused_and_leaves_nothing(ledger, body):
    with pytest.raises(LedgerError, match="must have a JSON form"):
        ledger.append("note", body)

    assert ledger.head().size == 0


@pytest.mark.parametrize("kind", ["", "Note", "a b"])
def test_a_kind_that_is_not_a_word_is_refused(ledger, kind):
    with pytest.raises(LedgerError, match="kind must match"):
        ledger.append(kind, {})


def test_an_entry_that_is_not_there_is_refused(ledger):
    with pytest.raises(LedgerError, match="got 0"):
        ledger.entry(0)


def test_a_consistency_proof_beyond_the_end_is_refused(ledger):
    fill(ledger, 2)

    with pytest.raises(LedgerError, match="at most at size 2; got 3"):
        ledger.consistency_proof(1, 3)


def test_a_file_that_is_not_a_database_is_refused(tmp_path):
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"not a database, and long enough to be looked at" * 50)

    with pytest.raises(LedgerError, match="must be a SQLite file"):
        Ledger.open(path)


def test_appends_of_two_processes_all_land(tmp_path):
    path = tmp_path / "shared.sqlite"
    code = (
        "import sys; from pathlib import Path; from ingot.ledger.ledger import Ledger\n"
        "with Ledger.open(Path(sys.argv[1])) as ledger:\n"
        "    for i in range(25): ledger.append('note', {'who': sys.argv[2], 'n': i})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path, who]) for who in "ab"]
    codes = [writer.wait(timeout=60) for writer in writers]

    with Ledger.open(path) as ledger:
        seen = sorted((e.body["who"], e.body["n"]) for e in ledger.entries())
        assert codes == [0, 0]
        assert seen == [(who, n) for who in "ab" for n in range(25)]
        assert ledger.verify().ok


def test_a_checkpoint_is_origin_size_and_base64_root(ledger):
    text = ledger.checkpoint()

    assert text == "ingot.dev/ledger\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    assert parse_checkpoint(text) == ledger.head()


def test_a_checkpoint_with_extensions_and_signatures_is_read(ledger):
    text = ledger.checkpoint() + "extension\n\n— somebody AAAA\n"

    assert parse_checkpoint(text) == ledger.head()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ingot.dev/ledger\n1\n",
        "ingot.dev/ledger\n01\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "ingot.dev/ledger\n-1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "ingot.dev/ledger\n1\nAAAA\n",
        "ingot.dev/ledger\n1\n***\n",
        "ingot.dev/ledger\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=\n",
    ],
)
def test_a_broken_checkpoint_is_refused(text):
    with pytest.raises(LedgerError, match="A checkpoint must hold"):
        parse_checkpoint(text)


def test_a_checkpoint_of_another_ledger_is_refused(ledger):
    with pytest.raises(LedgerError, match="of ledger 'ingot.dev/ledger'; got one of 'other'"):
        ledger.verify(ledger.checkpoint().replace("ingot.dev/ledger", "other"))
