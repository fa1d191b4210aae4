import errno
import hashlib
import os
from pathlib import Path

import pytest

from ingot.core.errors import IngotError
from ingot.core.files import digest_file, home, new_folder, write_atomic


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_home_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("INGOT_HOME", str(tmp_path / "elsewhere"))

    assert home() == tmp_path / "elsewhere"


def test_home_is_in_the_users_folder_by_default(monkeypatch):
    monkeypatch.delenv("INGOT_HOME")

    assert home() == Path.home() / ".ingot"


def test_file_digest_is_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")

    assert digest_file(path) == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_atomic(path, b"a long first version")
    write_atomic(path, b"second")

    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(IngotError, match="must fit on the disk.*INGOT_HOME"):
        write_atomic(path, b"new")

    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_interrupt_leaves_no_half_written_file(tmp_path, monkeypatch):
    def interrupted(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"new")

    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_new_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "final") as folder:
        (folder / "part").write_text("x")
        seen_early = (tmp_path / "final").exists()

    assert not seen_early
    assert (tmp_path / "final" / "part").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_failed_folder_vanishes(tmp_path):
    def fail(folder):
        (folder / "part").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "final") as folder:
        fail(folder)

    assert [p.name for p in tmp_path.iterdir()] == []


def test_an_existing_folder_wins(tmp_path):
    for text in ("first", "second"):
        with new_folder(tmp_path / "final") as folder:
            (folder / "part").write_text(text)

    assert (tmp_path / "final" / "part").read_text() == "first"


def test_a_full_disk_is_explained_for_folders_too(tmp_path):
    with pytest.raises(IngotError, match="Nothing was changed"), new_folder(tmp_path / "final"):
        full_disk()
