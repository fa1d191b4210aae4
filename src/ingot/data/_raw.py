"""What the readers of this room give to `load_data` before classes and splits are settled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.core.errors import DataError
from ingot.data.data import Array

WHOLE = ""  # name of the one split of a source that says nothing about splits
ALIASES = {"train": "training", "val": "validation", "dev": "validation", "calib": "calibration"}


@dataclass(frozen=True, slots=True, eq=False)
class RawSplit:
    """Examples whose targets may still be class names or Python numbers."""

    inputs: Mapping[str, Array]
    targets: Array | Sequence[object] | None = None
    rows_per_example: int = 1
    labels: tuple[str, ...] = ()


def split_name(name: str) -> str:
    """Return the house's word for a split: `train` is `training`, `val` and `dev` `validation`."""
    return ALIASES.get(name.lower(), name)


def as_targets(values: Sequence[object]) -> Array:
    """Return a column as int64, float32 or text, the first that holds every value.

    Raises:
        DataError: A value is missing.
    """
    for index, value in enumerate(values):
        if value is None or value == "":
            raise DataError(
                f"Every example must have a target; got none in row {index}. "
                "Fill it in or remove the row."
            )
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    texts = [str(value) for value in values]
    for kind in (np.int64, np.float32):
        try:
            return np.array([kind(text) for text in texts], dtype=kind)
        except (ValueError, OverflowError):
            continue  # the next, wider kind
    return np.array(texts)
