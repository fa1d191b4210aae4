"""The noun Data: examples in disjoint splits, with a fingerprint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.core.digest import digest_json
from ingot.core.errors import DataError
from ingot.core.names import suggest

Array = NDArray[Any]  # a tensor of any dtype: the model's signature says which


class Task(StrEnum):
    """What the targets mean, hence which metrics apply.

    `classification`: integer class per example, the model gives logits or probabilities.
    `regression`: float target(s) per example.
    `similarity`: a score per pair of inputs, the model gives one embedding per input.
    `none`: no targets; only agreement with the baseline can be measured.
    """

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    SIMILARITY = "similarity"
    NONE = "none"


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Examples of one split.

    Attributes:
        inputs: Input name -> array whose first axis is rows. Text inputs are padded to the longest
            row and carry `attention_mask`. The name `*` means "the model's only input".
        targets: One target per example, or None.
        rows_per_example: Rows that make one example: 2 for pairs of texts (rows 2i, 2i+1), else 1.
        labels: A short text per example for people (a sentence, a file name), or empty.
    """

    inputs: Mapping[str, Array]
    targets: Array | None = None
    rows_per_example: int = 1
    labels: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in every input array."""
        return len(next(iter(self.inputs.values()))) if self.inputs else 0

    def __len__(self) -> int:
        return self.rows // self.rows_per_example

    def take(self, examples: Sequence[int]) -> "Split":
        """Return the split that holds only these examples, in this order."""
        index = np.asarray(examples, dtype=np.int64)
        k = self.rows_per_example
        rows = (index[:, None] * k + np.arange(k)).reshape(-1)
        return Split(
            {name: array[rows] for name, array in self.inputs.items()},
            None if self.targets is None else self.targets[index],
            k,
            tuple(self.labels[i] for i in index) if self.labels else (),
        )

    def batches(self, batch_rows: int) -> Iterator[dict[str, Array]]:
        """Give the inputs in runs of at most `batch_rows` rows."""
        for start in range(0, self.rows, batch_rows):
            yield {name: array[start : start + batch_rows] for name, array in self.inputs.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Examples in disjoint splits. Made by the functions of this room, never edited.

    Attributes:
        splits: Split name -> examples; usual names are `training`, `calibration` and `test`.
        task: What the targets mean.
        digest: Fingerprint over every row of every split, independent of file format and path.
        classes: Class names in label order, or empty.
        name: A short name for people.
    """

    splits: Mapping[str, Split]
    task: Task
    digest: str
    classes: tuple[str, ...] = ()
    name: str = field(default="data")

    def split(self, name: str) -> Split:
        """Return one split.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        if name not in self.splits:
            raise DataError(
                f"Data must have a split named {name!r}; got {sorted(self.splits)}. "
                + suggest(name, self.splits)
            )
        if len(self.splits[name]) == 0:
            raise DataError(
                f"Split {name!r} must hold at least one example; got 0. Add examples to it."
            )
        return self.splits[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Data) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


NOTHING = Data({}, Task.NONE, digest_json({}), name="nothing")  # for methods that read no data
