"""A bundle: one version with all that serving it needs, frozen into a folder.

The folder has the shape of an Ingot home, so `INGOT_HOME=BUNDLE ingot serve NAME:NUMBER` serves it
with no registry in reach. It is opened for reading alone: an image, a read-only disk and a user
who owns none of its files are all the same to it. The same version always gives the same bytes.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ingot.core.digest import Json, canonical_json, digest_bytes, hex_of, short
from ingot.core.errors import ServeError
from ingot.core.files import digest_file, new_folder
from ingot.ledger.database import FROZEN_FILE
from ingot.ledger.ledger import FILE
from ingot.models.store import copy_folder
from ingot.registry.registry import Registry
from ingot.registry.version import Version

FORMAT = 1
_LEDGER = ("ledger_entries", "ledger_heads", "ledger_nodes")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder that holds one version and nothing that can change.

    Attributes:
        path: The folder.
        name: Registry name of the version.
        number: Its number.
        version: Its digest, which answers carry in `ingot-version`.
        model: Digest of the model.
        evidence: Digest of the evidence it was released with.
        engine: Which engine runs it.
        size_bytes: Bytes of all files.
        digest: Of the list of files, each with its own digest.
    """

    path: Path
    name: str
    number: int
    version: str
    model: str
    evidence: str
    engine: str
    size_bytes: int
    digest: str

    @property
    def label(self) -> str:
        """`name:number`."""
        return f"{self.name}:{self.number}"


def write_bundle(registry: Registry, version: Version, target: Path) -> Bundle:
    """Pack a version: its model, its evidence, its row, and the ledger that shows its release.

    The whole ledger goes along, because an entry can only be checked under the root of all of
    them; it holds names, digests and times of every release, and no model but this one.
    Packing again into the same folder changes nothing.

    Args:
        registry: Where the version was released.
        version: What is packed.
        target: A folder that is not there yet, or holds the same bundle.

    Raises:
        ServeError: The folder holds something else.
        ModelError: The files of the model were changed.
        EvidenceError: Its evidence is missing or was changed.
        LedgerError: The ledger does not verify.
        IngotError: The disk is full.
    """
    model, evidence = registry.model_of(version), registry.evidence_of(version)
    found = registry.ledger.verify()
    if not found.ok:
        raise ServeError(
            f"The ledger must verify before it is packed; {found.problems[0]} "
            "Restore it from a copy."
        )
    with new_folder(target) as folder:
        copy_folder(model, folder / "store" / hex_of(model.digest))
        name = f"{hex_of(evidence.digest)}.json"
        (folder / "evidence").mkdir()
        shutil.copyfile(registry.folder / "evidence" / name, folder / "evidence" / name)
        _copy_rows(registry, version, folder / FILE)
        facts = _facts(version, {"size": found.size, "root": found.root}, _list_files(folder))
        (folder / FROZEN_FILE).write_bytes(canonical_json(facts))
        packed = digest_bytes(canonical_json(facts))
    bundle = open_bundle(target)
    if bundle.digest != packed:
        raise ServeError(
            f"A bundle must go into a folder of its own; {target} holds {bundle.label} "
            f"({short(bundle.version)}). Name another folder, or remove that one."
        )
    return bundle


def open_bundle(folder: Path) -> Bundle:
    """Return a bundle after every one of its files was read and found to be what was packed.

    Raises:
        ServeError: It is no bundle, or a file is missing, changed or was added.
    """
    try:
        data = (folder / FROZEN_FILE).read_bytes()
        facts = json.loads(data)
        files, known = facts["files"], facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServeError(
            f"A bundle must hold {FROZEN_FILE}; {folder} does not ({error}). "
            "Make one with: ingot deploy bundle NAME@STAGE FOLDER"
        ) from error
    if known != FORMAT:
        raise ServeError(
            f"A bundle must have format {FORMAT}; got {known!r}. Open it with the Ingot that made "
            "it, or make it again."
        )
    found = _list_files(folder)
    for name in sorted({*files, *found}):
        if files.get(name) != found.get(name):
            kind = "missing" if name not in found else "changed" if name in files else "new"
            raise ServeError(
                f"Every file of a bundle must be as it was packed; {name!r} is {kind}. "
                "Make the bundle again."
            )
    sizes = sum((folder / name).stat().st_size for name in files)
    return Bundle(
        folder, facts["name"], facts["number"], facts["version"], facts["model"],
        facts["evidence"], facts["config"]["engine"], sizes + len(data), digest_bytes(data),
    )  # fmt: skip


def _facts(version: Version, head: dict[str, Json], files: dict[str, str]) -> dict[str, Json]:
    return {
        "format": FORMAT,
        "name": version.name,
        "number": version.number,
        "version": version.digest,
        "model": version.model,
        "evidence": version.evidence,
        "config": version.config.to_json(),
        "ledger": head,
        "files": files,
    }


def _list_files(folder: Path) -> dict[str, str]:
    """Return the digest of every file by its path, without the list itself."""
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            files[name] = "link"  # what it leads to is not in the bundle
        elif path.is_file() and name != FROZEN_FILE:
            files[name] = digest_file(path)
    return files


def _copy_rows(registry: Registry, version: Version, path: Path) -> None:
    """Write ledger and version row to a new file, in an order and a mode that fix its bytes."""
    source = registry.ledger.connection
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode=DELETE")  # a log beside the file could not be read later
        copy.execute("BEGIN")
        for table in (*_LEDGER, "versions", "moves"):
            query = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
            copy.execute(source.execute(query, (table,)).fetchone()[0])
            for row in _rows(source, table, version):
                marks = ", ".join("?" * len(row))
                copy.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608 # our names
        copy.execute("COMMIT")
        copy.execute("VACUUM")


def _rows(source: sqlite3.Connection, table: str, version: Version) -> Iterator[tuple[object, ...]]:
    if table == "moves":
        return  # where stages point is the registry's to say, not a copy's
    if table == "versions":
        query = "SELECT * FROM versions WHERE name = ? AND number = ?"
        yield from source.execute(query, (version.name, version.number))
        return
    order = "level, position" if table == "ledger_nodes" else "1"
    yield from source.execute(f"SELECT * FROM {table} ORDER BY {order}")  # noqa: S608 # our names
