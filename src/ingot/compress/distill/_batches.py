"""Training batches of rows of like length, cut to the longest: padding costs time and no answer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.compress.quantize.calibrate import MASK
from ingot.data.data import Array, Split


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows and what the teacher answers.

    Attributes:
        feeds: Inputs by name, rows first.
        truth: The teacher's outputs by name.
    """

    feeds: Mapping[str, Array]
    truth: Mapping[str, Array]

    @property
    def rows(self) -> int:
        """Rows in it."""
        return len(next(iter(self.feeds.values())))


def length_sorted(split: Split, rows: int, seed: int) -> Iterator[dict[str, Array]]:
    """Give every row once, in batches of like length; rows without a mask come in random order."""
    total = split.rows
    order = np.random.default_rng(seed).permutation(total)
    mask = split.inputs.get(MASK)
    masked = mask is not None and mask.ndim == 2
    lengths = np.ones(total, np.int64)
    if masked:
        assert mask is not None
        ends = mask.shape[1] - np.argmax(mask[:, ::-1].astype(bool), axis=1)
        lengths = np.where(mask.any(axis=1), ends, mask.shape[1])
        order = order[np.argsort(lengths[order], kind="stable")]
    for start in range(0, total, rows):
        part = order[start : start + rows]
        longest = int(lengths[part].max())
        yield {
            name: array[part][:, :longest]
            if masked and array.shape[:2] == mask.shape  # type: ignore[union-attr] # masked says so
            else array[part]
            for name, array in split.inputs.items()
        }
