"""Several requests as one call: which may share it, how they join, how their answers part again."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Signature
from ingot.runtime.buckets import MASK, fit_columns, fixed_axes, longest
from ingot.runtime.engine import EngineConfig
from ingot.runtime.openvino_shapes import has_text_axis

Feeds = Mapping[str, Array]


class Joiner:
    """Joins requests by their rows.

    Requests share a call where only their rows differ. Masked text of an engine with buckets shares
    one where it runs in the same bucket, and is padded to it: the engine would pad it as far alone.

    Args:
        signature: What the model takes and gives.
        config: How it is run.

    Raises:
        EngineError: The number of rows is fixed, or not the first axis of every input and output.
    """

    def __init__(self, signature: Signature, config: EngineConfig) -> None:
        for spec in (*signature.inputs, *signature.outputs):
            if not spec.shape or isinstance(spec.shape[0], int):
                raise EngineError(
                    "Requests can share a call where the first axis of every input and output is "
                    f"free; {spec.name!r} has shape {list(spec.shape)}. Serve this model without "
                    "batching, or export it with that axis dynamic."
                )
        self._buckets = config.buckets if has_text_axis(signature) else ()
        self._sizes = frozenset(config.batch_sizes)
        self._first = signature.inputs[0].name
        self._names = [spec.name for spec in signature.inputs]
        self._fixed = fixed_axes(signature)

    def rows(self, feeds: Feeds) -> int:
        """Return how many rows a request has."""
        return len(feeds[self._first])

    def key(self, feeds: Feeds) -> Hashable:
        """Return what two requests must have in common to share a call."""
        if not self._buckets:
            return tuple(feeds[name].shape[1:] for name in self._names)
        inputs, _ = self._fixed
        shape, width = feeds[MASK].shape, self._width(feeds)
        columns = (feeds[name].shape for name in self._names)
        return width, tuple(
            s[1:] if name in inputs or s[:2] != shape else s[2:]
            for name, s in zip(self._names, columns, strict=True)
        )

    def choose(self, rows: Sequence[int], most: int) -> int:
        """Return how many requests, from the front, the next call should take.

        As many as fit; fewer if that gives a number of rows that the engine has a graph of its own
        for, and at least half of what fits.

        Args:
            rows: Of each request that waits, at least one.
            most: Rows of the largest call.
        """
        sums = list(accumulate(rows))
        fitting = max(1, sum(total <= most for total in sums))
        for count in range(fitting, fitting // 2, -1):
            if sums[count - 1] in self._sizes:
                return count
        return fitting

    def join(self, requests: Sequence[Feeds]) -> dict[str, Array]:
        """Return the inputs of one call, the rows of each request after those of the one before."""
        fitted = [self._fit(feeds) for feeds in requests] if self._buckets else requests
        return {name: np.concatenate([feeds[name] for feeds in fitted]) for name in self._names}

    def part(
        self, outputs: Mapping[str, Array], requests: Sequence[Feeds]
    ) -> list[dict[str, Array]]:
        """Return the outputs of each request.

        Raises:
            EngineError: An output has not one row per row of the inputs.
        """
        ends = list(accumulate(self.rows(feeds) for feeds in requests))
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != ends[-1]:
                raise EngineError(
                    f"Output {name!r} must have a row per row of the inputs to be shared among "
                    f"requests; got shape {list(array.shape)} for {ends[-1]}. Serve this model "
                    "without batching."
                )
        starts = [0, *ends[:-1]]
        return [
            {n: self._cut(n, array[start:end], feeds) for n, array in outputs.items()}
            for start, end, feeds in zip(starts, ends, requests, strict=True)
        ]

    def _width(self, feeds: Feeds) -> int:
        length = longest(feeds[MASK])
        return next((bucket for bucket in self._buckets if bucket >= length), length)

    def _fit(self, feeds: Feeds) -> dict[str, Array]:
        shape, width, (inputs, _) = feeds[MASK].shape, self._width(feeds), self._fixed
        return {
            name: array if name in inputs else fit_columns(array, shape[:2], width)
            for name, array in feeds.items()
        }

    def _cut(self, name: str, array: Array, feeds: Feeds) -> Array:
        if not self._buckets or name in self._fixed[1]:
            return array
        rows, columns = feeds[MASK].shape
        return fit_columns(array, (rows, self._width(feeds)), columns)
