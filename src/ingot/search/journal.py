"""What a search has finished, so that an interrupted one goes on where it stopped."""

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ingot.core.digest import Json, canonical_json, hex_of
from ingot.core.files import home, write_atomic
from ingot.data.data import Array


@dataclass(frozen=True, slots=True)
class Journal:
    """Facts and arrays of finished steps, one file each, written whole or not at all.

    Attributes:
        folder: Where they are kept.
    """

    folder: Path

    @classmethod
    def of(cls, job: str) -> "Journal":
        """Return the journal of the job with this digest, in the Ingot home."""
        return cls(home() / "searches" / hex_of(job)[:24])

    def forget(self) -> None:
        """Drop everything, so that the job starts over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, step: str) -> dict[str, Json] | None:
        """Return the facts of a finished step, or None."""
        path = self.folder / f"{step}.json"
        if not path.is_file():
            return None
        facts: dict[str, Json] = json.loads(path.read_bytes())
        return facts

    def write(self, step: str, facts: dict[str, Json]) -> None:
        """Write down that a step is finished."""
        write_atomic(self.folder / f"{step}.json", canonical_json(facts))

    def read_array(self, step: str) -> Array | None:
        """Return the array of a finished step, or None; a damaged file counts as not finished."""
        path = self.folder / f"{step}.npy"
        try:
            array: Array = np.load(path, allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError, BadZipFile):
            return None
        return array

    def write_array(self, step: str, array: Array) -> None:
        """Keep an array, e.g. predictions."""
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        write_atomic(self.folder / f"{step}.npy", stream.getvalue())
