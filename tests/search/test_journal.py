import numpy as np

from ingot.core.digest import digest_json
from ingot.core.files import home
from ingot.search.journal import Journal


def test_facts_come_back_as_they_were_written():
    journal = Journal.of(digest_json("job"))
    journal.write("step", {"a": 1, "b": [0.5, None]})

    assert journal.read("step") == {"a": 1, "b": [0.5, None]}
    assert journal.folder.is_relative_to(home())


def test_a_step_that_was_not_finished_is_none(tmp_path):
    journal = Journal(tmp_path)

    assert journal.read("step") is None
    assert journal.read_array("step") is None


def test_arrays_come_back_bit_for_bit(tmp_path):
    journal = Journal(tmp_path)
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    journal.write_array("p", values)

    np.testing.assert_array_equal(journal.read_array("p"), values)
    assert journal.read_array("p").dtype == np.float32


def test_a_damaged_array_counts_as_not_finished(tmp_path):
    (tmp_path / "p.npy").write_bytes(b"\x93NUMPY\x01\x00half")

    assert Journal(tmp_path).read_array("p") is None


def test_forgetting_starts_over(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.write("step", {})
    journal.forget()

    assert journal.read("step") is None
