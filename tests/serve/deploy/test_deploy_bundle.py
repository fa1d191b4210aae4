import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ingot.core.errors import LedgerError, RegistryError, ServeError
from ingot.ledger.ledger import Ledger
from ingot.registry.registry import Registry
from ingot.runtime.engines import open_session
from ingot.serve.deploy.bundle import open_bundle, write_bundle


@pytest.fixture
def packed(released, tmp_path):
    return write_bundle(released.registry, released.version, tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_resolves_the_version_it_was_made_of(packed, released):
    with Registry.open(packed.path) as registry:
        found = registry.resolve("digits:2")

        assert found == released.version
        assert found.digest == packed.version
        assert registry.model_of(found).digest == released.model.digest
        assert registry.evidence_of(found).digest == released.version.evidence


def test_a_model_from_a_bundle_gives_the_same_numbers(packed, released, images):
    with Registry.open(packed.path) as registry:
        model = registry.model_of(registry.resolve("digits:2"))
    feeds = {"image": images[0][:2]}
    answers = []
    for one in (model, released.model):
        session = open_session(one, released.version.config)
        answers.append(session.run(feeds)["logits"])
        session.close()

    np.testing.assert_array_equal(*answers)


def test_a_bundle_holds_no_other_model_and_no_stage(packed, released):
    with Registry.open(packed.path) as registry:
        assert [version.number for version in registry.versions()] == [2]
        with pytest.raises(RegistryError, match="stage"):
            registry.resolve("digits@prod")
    assert len(list((packed.path / "store").iterdir())) == 1


def test_the_ledger_of_a_bundle_verifies_under_the_same_root(packed, released):
    with Ledger.open(packed.path / "ingot.sqlite") as ledger:
        assert ledger.verify(released.registry.ledger.checkpoint()).ok
        assert ledger.head() == released.registry.ledger.head()


def test_packing_twice_gives_the_same_bytes(packed, released, tmp_path):
    again = write_bundle(released.registry, released.version, tmp_path / "again")

    assert contents(again.path) == contents(packed.path)
    assert again.digest == packed.digest


def test_packing_into_the_same_folder_again_changes_nothing(packed, released):
    before = contents(packed.path)

    assert write_bundle(released.registry, released.version, packed.path) == packed
    assert contents(packed.path) == before


def test_packing_into_the_folder_of_another_version_is_refused(packed, released):
    with pytest.raises(ServeError, match="folder of its own"):
        write_bundle(released.registry, released.other, packed.path)


def test_opening_a_bundle_writes_nothing_even_where_it_could(packed):
    before = contents(packed.path)
    with Registry.open(packed.path) as registry:
        registry.resolve("digits:2")

    assert contents(packed.path) == before


def test_a_bundle_opens_where_nothing_may_be_written(packed):
    folders = [packed.path, *(path for path in packed.path.rglob("*") if path.is_dir())]
    files = [path for path in packed.path.rglob("*") if path.is_file()]
    for path in (*files, *folders):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with Registry.open(packed.path) as registry:
            assert registry.resolve("digits:2").number == 2
    finally:
        for path in folders:
            path.chmod(0o755)


def test_a_bundle_takes_no_release_and_no_promotion(packed):
    with Registry.open(packed.path) as registry, pytest.raises(LedgerError, match="as it was"):
        registry.promote("digits", 2, "prod")


@pytest.mark.parametrize("name", ["model.onnx", "signature.json", "ingot.sqlite"])
def test_one_flipped_byte_is_named_by_file(packed, name):
    (path,) = packed.path.rglob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(ServeError, match=f"{name}' is changed"):
        open_bundle(packed.path)


def test_a_file_that_was_added_is_named(packed):
    (packed.path / "store" / "more").write_text("x")

    with pytest.raises(ServeError, match="store/more' is new"):
        open_bundle(packed.path)


def test_a_file_that_is_gone_is_named(packed):
    (path,) = (packed.path / "evidence").iterdir()
    path.unlink()

    with pytest.raises(ServeError, match=f"evidence/{path.name}' is missing"):
        open_bundle(packed.path)


def test_a_link_out_of_a_bundle_is_seen(packed, tmp_path):
    (path,) = packed.path.rglob("model.onnx")
    other = tmp_path / "other.onnx"
    other.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(other)

    with pytest.raises(ServeError, match="is changed"):
        open_bundle(packed.path)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(ServeError, match="ingot deploy bundle"):
        open_bundle(tmp_path)


def test_a_bundle_of_another_format_is_refused(packed):
    path = packed.path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))

    with pytest.raises(ServeError, match="format 1; got 9"):
        open_bundle(packed.path)


def test_a_version_whose_ledger_was_changed_is_not_packed(released, tmp_path):
    path = released.registry.folder / "ingot.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER ledger_entries_no_update")
        database.execute("UPDATE ledger_entries SET data = x'7b7d' WHERE idx = 0")

    with pytest.raises((ServeError, LedgerError)):
        write_bundle(released.registry, released.version, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_row_changed_in_a_bundle_is_not_resolved(packed):
    with sqlite3.connect(packed.path / "ingot.sqlite") as database:
        database.execute(
            "UPDATE versions SET config = replace(config, '\"threads\":1', '\"threads\":7')"
        )

    with Registry.open(packed.path) as registry, pytest.raises(LedgerError, match="must say what"):
        registry.resolve("digits:2")
