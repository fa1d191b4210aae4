"""The registry: released versions, and the stages that point at them.

Registry and ledger share one SQLite file, so a release, a promotion or a rollback and its ledger
entry are one transaction. Rows are never changed or deleted: a stage points where its last move
says, and every row that is read is compared with the ledger entry it was written with.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from ingot.core.closing import Closing
from ingot.core.digest import Json, canonical_json, short
from ingot.core.errors import LedgerError, ModelError, RegistryError
from ingot.core.files import home
from ingot.core.names import suggest
from ingot.evaluate.evidence import Evidence
from ingot.ledger.ledger import FILE, Ledger, guard
from ingot.models.model import Model
from ingot.models.store import find_model, open_model
from ingot.registry._checks import check_evidence, check_name
from ingot.registry._evidence import keep_evidence, read_kept
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig

Action = Literal["promote", "rollback"]

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS versions (name TEXT NOT NULL, number INTEGER NOT NULL,"
    " model TEXT NOT NULL, evidence TEXT NOT NULL, config TEXT NOT NULL, released TEXT NOT NULL,"
    " entry INTEGER NOT NULL, PRIMARY KEY (name, number), UNIQUE (name, model, evidence))",
    "CREATE TABLE IF NOT EXISTS moves (id INTEGER PRIMARY KEY, name TEXT NOT NULL,"
    " stage TEXT NOT NULL, number INTEGER NOT NULL, action TEXT NOT NULL, time TEXT NOT NULL,"
    " entry INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS moves_by_stage ON moves (name, stage, id)",
)
_VERSION = "SELECT name, number, model, evidence, config, released, entry FROM versions"
_MOVE = "SELECT name, stage, number, action, time, entry FROM moves"


@dataclass(frozen=True, slots=True)
class Move:
    """One change of where a stage points.

    Attributes:
        name: Registry name.
        stage: Stage that moved.
        number: Version it points at since.
        action: `promote` or `rollback`.
        time: UTC time, ISO 8601.
        entry: Index of its entry in the ledger.
    """

    name: str
    stage: str
    number: int
    action: Action
    time: str
    entry: int


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


class Registry(Closing):
    """Versions and stages in `folder/ingot.sqlite`, with `folder/evidence` and `folder/store`."""

    def __init__(
        self, ledger: Ledger, folder: Path, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self.ledger = ledger
        self.folder = folder
        self._now = now
        self._db = ledger.connection

    @classmethod
    def open(cls, path: Path | None = None, *, now: Callable[[], datetime] = utc_now) -> Self:
        """Open or make a registry; that of a bundle is only read.

        Args:
            path: Its folder; `home()` by default.
            now: The clock.

        Raises:
            LedgerError: The file in it is not a SQLite database.
        """
        folder = path or home()
        ledger = Ledger.open(folder / FILE)
        if ledger.is_frozen:
            return cls(ledger, folder, now=now)
        for statement in _TABLES:
            ledger.connection.execute(statement)
        guard(ledger.connection, "versions", "moves")
        return cls(ledger, folder, now=now)

    def close(self) -> None:
        """Close the file."""
        self.ledger.close()

    def release(self, name: str, model: Model, evidence: Evidence) -> Version:
        """Release a model under a name. No evidence, no release.

        Releasing the same model with the same evidence again gives the same version.

        Args:
            name: Lower-case name, e.g. `digits`.
            model: A model in this registry's store; nothing is copied.
            evidence: What was measured on this very model; every claim in it must have held.

        Raises:
            EvidenceError: Evidence is missing, of another model, or did not pass.
            ModelError: The model is not in the store, or its files were changed.
            RegistryError: The name is not usable.
        """
        check_name("name", name)
        check_evidence(model, evidence)
        self._check_model(model)
        keep_evidence(evidence, self._evidence_folder)
        with self.ledger.transaction():
            query = f"{_VERSION} WHERE name = ? AND model = ? AND evidence = ?"
            row = self._db.execute(query, (name, model.digest, evidence.digest)).fetchone()
            if row is not None:
                return self._version(row)
            return self._insert(name, model, evidence)

    def promote(self, name: str, number: int, stage: str) -> Version:
        """Point a stage at a released version; a stage that is there already does not move.

        Raises:
            RegistryError: The version was never released, or the stage's name is not usable.
        """
        check_name("stage", stage)
        with self.ledger.transaction():
            version = self._find(name, number)
            stack = self._stack(name, stage)
            if not stack or stack[-1] != number:
                self._move(version, stage, "promote", stack[-1] if stack else None)
        return version

    def rollback(self, name: str, stage: str) -> Version:
        """Point a stage back at the version it had before; history is kept.

        Raises:
            RegistryError: The stage is unknown, or there is nothing to go back to.
        """
        with self.ledger.transaction():
            stack = self._stack(name, stage)
            if not stack:
                raise self._unknown_stage(name, stage)
            if len(stack) == 1:
                raise RegistryError(
                    f"{name}@{stage} must have had another version before; it has only had "
                    f"{name}:{stack[0]}. Promote the version you want instead."
                )
            version = self._find(name, stack[-2])
            self._move(version, stage, "rollback", stack[-1])
        return version

    def resolve(self, reference: str) -> Version:
        """Return the version that `name@stage`, `name:3` or `name` (the newest) stands for.

        Raises:
            RegistryError: Nothing has that name.
            LedgerError: The row is not what the ledger says was written.
        """
        name, at, stage = reference.partition("@")
        if at:
            query = f"{_MOVE} WHERE name = ? AND stage = ? ORDER BY id DESC LIMIT 1"
            row = self._db.execute(query, (name, stage)).fetchone()
            if row is None:
                raise self._unknown_stage(name, stage)
            return self._find(name, self._checked_move(row).number)
        name, colon, number = reference.partition(":")
        if not colon:
            return self._find(name, None)
        if not _NUMBER.fullmatch(number):
            raise RegistryError(
                f"A version must be written name:number or name@stage; got {reference!r}. "
                "Example: digits:3 or digits@prod."
            )
        return self._find(name, int(number))

    def versions(self, name: str | None = None) -> tuple[Version, ...]:
        """Return the versions of a name in order, or every version.

        Raises:
            RegistryError: Nothing was released under that name.
        """
        if name is None:
            rows = self._db.execute(f"{_VERSION} ORDER BY name, number").fetchall()
        else:
            rows = self._db.execute(
                f"{_VERSION} WHERE name = ? ORDER BY number", (name,)
            ).fetchall()
            if not rows:
                raise self._unknown_name(name)
        return tuple(self._version(row) for row in rows)

    def stages(self, name: str) -> dict[str, Version]:
        """Return where each stage of a name points.

        Raises:
            RegistryError: Nothing was released under that name.
        """
        self._find(name, None)
        query = "SELECT DISTINCT stage FROM moves WHERE name = ? ORDER BY stage"
        stages = [row[0] for row in self._db.execute(query, (name,)).fetchall()]
        return {stage: self.resolve(f"{name}@{stage}") for stage in stages}

    def history(self, name: str, stage: str) -> tuple[Move, ...]:
        """Return every move of a stage, oldest first.

        Raises:
            RegistryError: The stage is unknown.
        """
        query = f"{_MOVE} WHERE name = ? AND stage = ? ORDER BY id"
        rows = self._db.execute(query, (name, stage)).fetchall()
        if not rows:
            raise self._unknown_stage(name, stage)
        return tuple(self._checked_move(row) for row in rows)

    def evidence_of(self, version: Version) -> Evidence:
        """Return the evidence a version was released with, its digest computed again.

        Raises:
            EvidenceError: The file is missing or was changed.
        """
        return read_kept(version.evidence, self._evidence_folder)

    def model_of(self, version: Version) -> Model:
        """Return the model of a version, its digest computed again.

        Raises:
            ModelError: It is not in the store, or its files were changed.
        """
        return find_model(version.model, root=self._store)

    @property
    def _evidence_folder(self) -> Path:
        return self.folder / "evidence"

    @property
    def _store(self) -> Path:
        return self.folder / "store"

    def _check_model(self, model: Model) -> None:
        if model.path.resolve().parent != self._store.resolve():
            raise ModelError(
                f"A released model must be in the store {self._store}; got {model.path}. "
                "Load it with load_model(), or bring it in with adopt_model()."
            )
        found = open_model(model.path).digest
        if found != model.digest:
            raise ModelError(
                f"Model {short(model.digest)} must be the one in its folder; got {short(found)}. "
                "The files were changed: restore them or load the model again."
            )

    def _insert(self, name: str, model: Model, evidence: Evidence) -> Version:
        query = "SELECT coalesce(max(number), 0) + 1 FROM versions WHERE name = ?"
        number = int(self._db.execute(query, (name,)).fetchone()[0])
        released = self._now().isoformat()
        body = _release_body(name, number, model.digest, evidence.digest, evidence.config)
        entry = self.ledger.append("release", body, time=released)
        config = canonical_json(evidence.config.to_json()).decode()
        row = (name, number, model.digest, evidence.digest, config, released, entry.index)
        self._db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return self._version(row)

    def _move(self, version: Version, stage: str, action: Action, before: int | None) -> None:
        time = self._now().isoformat()
        body = _move_body(version.name, stage, version.number) | {
            "version": version.digest,
            "before": before,
        }
        entry = self.ledger.append(action, body, time=time)
        row = (version.name, stage, version.number, action, time, entry.index)
        self._db.execute("INSERT INTO moves VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)

    def _stack(self, name: str, stage: str) -> list[int]:
        """Return the versions that rollback can still reach; the last one is current."""
        query = f"{_MOVE} WHERE name = ? AND stage = ? ORDER BY id"
        stack: list[int] = []
        for row in self._db.execute(query, (name, stage)):
            move = self._checked_move(row)
            if move.action == "promote":
                stack.append(move.number)
            else:
                stack.pop()
        return stack

    def _find(self, name: str, number: int | None) -> Version:
        query = f"{_VERSION} WHERE name = ?" + ("" if number is None else " AND number = ?")
        values = (name,) if number is None else (name, number)
        row = self._db.execute(f"{query} ORDER BY number DESC LIMIT 1", values).fetchone()
        if row is not None:
            return self._version(row)
        known = [f"{v.number}" for v in self.versions(name)]  # raises if the name is unknown
        raise RegistryError(
            f"{name}:{number} must have been released; it was not. {suggest(str(number), known)}"
        )

    def _version(self, row: tuple[str, int, str, str, str, str, int]) -> Version:
        name, number, model, evidence, config, released, entry = row
        parsed = EngineConfig.from_json(json.loads(config))
        body = _release_body(name, number, model, evidence, parsed)
        self._check_entry(entry, "release", body, released)
        return Version(name, number, model, evidence, parsed, released, entry)

    def _checked_move(self, row: tuple[str, str, int, Action, str, int]) -> Move:
        move = Move(*row)
        body = _move_body(move.name, move.stage, move.number)
        self._check_entry(move.entry, move.action, body, move.time)
        return move

    def _check_entry(self, index: int, kind: str, body: Mapping[str, Json], time: str) -> None:
        entry = self.ledger.entry(index)
        is_same = all(key in entry.body and entry.body[key] == body[key] for key in body)
        if entry.kind != kind or entry.time != time or not is_same:
            raise LedgerError(
                f"A registry row must say what ledger entry {index} says; {dict(body)} does not. "
                "One of them was changed: run `ingot ledger verify` and restore from a copy."
            )

    def _unknown_name(self, name: str) -> RegistryError:
        known = [row[0] for row in self._db.execute("SELECT DISTINCT name FROM versions")]
        return RegistryError(
            f"A registry name must have been released; got {name!r}. {suggest(name, known)}"
        )

    def _unknown_stage(self, name: str, stage: str) -> RegistryError:
        self._find(name, None)
        query = "SELECT DISTINCT stage FROM moves WHERE name = ?"
        known = [row[0] for row in self._db.execute(query, (name,))]
        return RegistryError(
            f"A stage of {name!r} must have been promoted to; got {stage!r}. "
            f"{suggest(stage, known)}"
        )


def _release_body(
    name: str, number: int, model: str, evidence: str, config: EngineConfig
) -> dict[str, Json]:
    return {
        "name": name,
        "number": number,
        "model": model,
        "evidence": evidence,
        "config": config.to_json(),
    }


def _move_body(name: str, stage: str, number: int) -> dict[str, Json]:
    return {"name": name, "stage": stage, "number": number}
