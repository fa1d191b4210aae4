"""Where a batch keeps what it has finished, and what it was when it began."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ingot.core.digest import Json, canonical_json
from ingot.core.errors import DataError, ServeError
from ingot.core.files import digest_file, write_atomic
from ingot.search.journal import Journal
from ingot.serve.batch.batch import Batch
from ingot.serve.batch.work import Done

_FACTS = "batch"
_LOCK = "lock"
_OURS = ("model", "input", "settings", "output")  # in every manifest: what has them is a batch's


@dataclass(frozen=True, slots=True)
class Places:
    """The files of a batch. Only the output, the manifest and the error file outlive it.

    Attributes:
        target: The output.
        parts: Folder of parts: the output itself if that is a folder.
        work: Folder of what is finished.
        manifest: Says what ran.
        errors: Rows that were refused.
    """

    target: Path
    parts: Path
    work: Path
    manifest: Path
    errors: Path

    @classmethod
    def of(cls, batch: Batch) -> "Places":
        """Return the places beside, or inside, the output."""
        target = batch.target
        if batch.is_folder:  # readers of folders pass over names that start with a . or _
            work, named = target / ".unfinished", target / "_"
            return cls(
                target, target, work, Path(f"{named}manifest.json"), Path(f"{named}errors.jsonl")
            )
        work = target.with_name(f"{target.name}.parts")
        manifest = target.with_name(f"{target.name}.manifest.json")
        return cls(target, work, work, manifest, target.with_name(f"{target.name}.errors.jsonl"))

    def read_manifest(self) -> Mapping[str, Json] | None:
        """Return the manifest of a finished batch, or None.

        Raises:
            DataError: It is none of ours.
        """
        return _read_json(self.manifest) if self.manifest.is_file() else None

    def read_facts(self) -> Mapping[str, Json] | None:
        """Return what an unfinished batch was begun with, or None."""
        return Journal(self.work).read(_FACTS)

    @property
    def notes(self) -> list[Path]:
        """What says that a part is finished, one file for each."""
        return sorted(self.work.glob("part-*.json"))

    def check_free(self) -> None:
        """Refuse to write where something is that no batch has written.

        Raises:
            DataError: Something is there.
        """
        if self.read_manifest() is not None or self.read_facts() is not None:
            return
        there = [path for path in self.work.glob("*") if path.name != _LOCK]
        if self.parts != self.target:
            there += [self.target] if self.target.exists() else []
        else:
            there += [path for path in self.target.glob("*") if path != self.work]
        if there:
            raise DataError(
                f"The output {self.target.name!r} must be new, or that of an earlier batch; "
                f"something else is there: {there[0].name!r}. Move it away, or choose another name."
            )

    def begin(self, facts: dict[str, Json]) -> None:
        """Write down what a batch is, before its first part."""
        self.work.mkdir(parents=True, exist_ok=True)
        Journal(self.work).write(_FACTS, facts)

    def forget(self) -> None:
        """Delete what this output holds of a batch: nothing that a batch has not written."""
        if self.read_manifest() is None and self.read_facts() is None:
            return
        for path in self.work.glob("*"):
            if path.name != _LOCK:  # it is held
                path.unlink()
        if self.parts == self.target:
            for path in (*self.target.glob("part-*"), *self.target.glob(".part-*")):
                path.unlink()
        else:
            self.target.unlink(missing_ok=True)
        self.errors.unlink(missing_ok=True)
        self.manifest.unlink(missing_ok=True)  # last: without it the rest would be a stranger's

    def vanish(self) -> None:
        """Leave nothing behind, not even a folder; while it is locked."""
        self.forget()
        shutil.rmtree(self.work, ignore_errors=True)
        if self.parts == self.target and not any(self.target.iterdir()):
            self.target.rmdir()

    def finished(self, index: int, path: Path) -> Done | None:
        """Return the record of a part that is whole on disk, or None."""
        found = Journal(self.work).read(f"part-{index:06d}")
        if found is None or not path.is_file() or digest_file(path) != found["digest"]:
            return None
        return Done(**(dict(found) | {"first": tuple(found["first"])}))  # type: ignore[arg-type] # what `finish` wrote

    def finish(self, done: Done) -> None:
        """Write down that a part is finished."""
        Journal(self.work).write(f"part-{done.index:06d}", asdict(done))

    def clean(self) -> None:
        """Delete half-written files of a run that was killed."""
        names = (self.target.name, self.errors.name, self.manifest.name)
        beside = (path for n in names for path in self.target.parent.glob(f".{n}.????????"))
        inside = self.errors.parent.glob(f".{self.errors.name}.????????")
        for path in (*self.parts.glob(".part-*.*.????????"), *beside, *inside):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the output is written.

        Raises:
            ServeError: Another process is at work on it.
        """
        import fcntl

        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / _LOCK).open("wb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ServeError(
                    f"One batch at a time must write {self.target.name!r}; another is at work. "
                    "Wait for it, or choose another output."
                ) from error
            yield


def write_manifest(places: Places, manifest: Mapping[str, Json]) -> None:
    """Write the manifest, which makes a batch finished, and drop what only an unfinished needs."""
    canonical_json(manifest)  # refuses NaN
    write_atomic(places.manifest, (json.dumps(manifest, indent=1) + "\n").encode())
    shutil.rmtree(places.work, ignore_errors=True)


def changes(before: Mapping[str, Json], now: Mapping[str, Json], *, at: str = "") -> list[str]:
    """Return what differs between two batches, each as `what: before, now`.

    Examples:
        >>> changes({"model": "a", "settings": {"keys": [1]}}, {"model": "b", "settings": {}})
        ["model: 'a' then, 'b' now", 'settings.keys: [1] then, None now']
    """
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changes(old, new, at=f"{at}{name}.")
        elif old != new:
            found.append(f"{at}{name}: {old!r} then, {new!r} now")
    return found


def _read_json(path: Path) -> Mapping[str, Json]:
    try:
        found: Mapping[str, Json] = json.loads(path.read_bytes())
        if not set(_OURS) <= set(found):
            raise ValueError(f"it lacks {', '.join(_OURS)}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name!r} must be the manifest of a batch; it is not: {error}. "
            "Move it and its output away."
        ) from error
    return found
