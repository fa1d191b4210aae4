"""Batches of masked text without needless padding; answers do not change."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.feeds import fixed_rows
from ingot.models.model import Signature
from ingot.runtime.cpu import check_buckets
from ingot.runtime.engine import EngineConfig, ExecutedNode, Session

MASK = "attention_mask"


class BucketSession:
    """Cuts trailing columns that every row masks, then pads up to the next bucket.

    Engines compile or tune once per bucket instead of once per length. Left padding and holes in a
    mask stay where they are: only columns after the last one that any row uses are cut.
    """

    def __init__(self, session: Session, buckets: Sequence[int]) -> None:
        """Wrap a session.

        Raises:
            EngineError: Buckets are not positive and ascending.
        """
        check_buckets(buckets)
        self._session, self._buckets = session, tuple(buckets)
        self.config: EngineConfig = session.config
        self.signature: Signature | None = getattr(session, "signature", None)
        self._fixed = fixed_axes(self.signature)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, with as many columns as the mask; those cut are zero."""
        mask = feeds.get(MASK)
        if mask is None or mask.ndim != 2:
            return self._session.run(feeds)
        if mask.shape[1] in self._buckets and mask[:, -1].any():
            return self._session.run(feeds)  # as wide as a bucket, and every column is used
        length = longest(mask)
        width = next((b for b in self._buckets if b >= length), length)
        inputs, outputs = self._fixed
        found = self._session.run(
            {
                name: array if name in inputs else fit_columns(array, mask.shape, width)
                for name, array in feeds.items()
            }
        )
        shape = (len(mask), width)
        return {
            name: value if name in outputs else fit_columns(value, shape, mask.shape[1])
            for name, value in found.items()
        }

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return what the wrapped session executes."""
        return self._session.executed()

    def close(self) -> None:
        """Close the wrapped session."""
        self._session.close()


def longest(mask: Array) -> int:
    """Return how many leading columns of a mask `(rows, columns)` any row uses, at least 1."""
    used = np.flatnonzero(mask.any(axis=0))
    return int(used[-1]) + 1 if len(used) else 1


def run_rows(
    session: Session,
    inputs: Mapping[str, Array],
    *,
    batch_rows: int = 32,
    sort_by_length: bool = True,
) -> dict[str, Array]:
    """Run many rows in batches and return every output in the order of the rows.

    Rows of masked text run together with rows of like length and are cut to the longest of their
    batch. Outputs whose second axis is the sequence are padded back with zeros. Which those are is
    read from the signature of the session; without one, equal lengths decide.

    Args:
        session: What runs.
        inputs: Arrays `(rows, ...)` by input name.
        batch_rows: Rows per call; a model with a fixed number of rows gets that number.
        sort_by_length: Whether to batch by length; otherwise rows run in the order given.

    Raises:
        EngineError: There are no rows, `batch_rows` is not positive, or the inputs do not fit.
    """
    if batch_rows < 1:
        raise EngineError(f"batch_rows must be at least 1; got {batch_rows}. Try 32.")
    rows = len(next(iter(inputs.values()), ()))
    if rows == 0:
        raise EngineError("run_rows must get at least one row; got 0. Add examples.")
    signature: Signature | None = getattr(session, "signature", None)  # plug-ins may have none
    batch_rows = (signature and fixed_rows(signature)) or batch_rows
    mask = inputs.get(MASK)
    if mask is not None and mask.ndim != 2:
        mask = None
    order = np.arange(rows)
    if mask is not None and sort_by_length:
        order = np.argsort(mask.sum(axis=1), kind="stable")
    found: dict[str, Array] = {}
    for index, outputs in _in_streams(session, list(_parts(order, batch_rows)), inputs, mask):
        for name, value in outputs.items():
            if name not in found:
                found[name] = np.zeros((rows, *value.shape[1:]), value.dtype)
            found[name][index] = value
    return found


def _in_streams(
    session: Session, parts: Sequence[Array], inputs: Mapping[str, Array], mask: Array | None
) -> Iterator[tuple[Array, dict[str, Array]]]:
    """Give each part of the rows with its outputs; as many run at a time as there are streams."""
    fixed = fixed_axes(getattr(session, "signature", None))  # plug-ins may have none

    def run(index: Array) -> tuple[Array, dict[str, Array]]:
        return index, _run_part(session, index, inputs, mask, fixed=fixed)

    streams = getattr(getattr(session, "config", None), "streams", 1)  # plug-ins may have none
    if streams == 1:
        yield from map(run, parts)
        return
    with ThreadPoolExecutor(streams, "ingot-stream") as pool:
        # the longest first, so that no stream ends with a long part alone
        yield from pool.map(run, reversed(parts))


def _run_part(
    session: Session,
    index: Array,
    inputs: Mapping[str, Array],
    mask: Array | None,
    *,
    fixed: tuple[frozenset[str], frozenset[str]],
) -> dict[str, Array]:
    feeds = {name: array[index] for name, array in inputs.items()}
    if mask is None:
        return session.run(feeds)
    columns, width = mask.shape[1], longest(mask[index])
    shape = (len(index), columns)
    feeds = {n: a if n in fixed[0] else fit_columns(a, shape, width) for n, a in feeds.items()}
    return {
        name: value if name in fixed[1] else fit_columns(value, (len(index), width), columns)
        for name, value in session.run(feeds).items()
    }


def _parts(order: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def fixed_axes(signature: Signature | None) -> tuple[frozenset[str], frozenset[str]]:
    """Return inputs and outputs whose second axis cannot be the sequence: its size is fixed.

    Args:
        signature: Of the model; None if it is not known, and then none are.
    """
    if signature is None:
        return frozenset(), frozenset()
    inputs, outputs = (
        frozenset(s.name for s in specs if len(s.shape) < 2 or isinstance(s.shape[1], int))
        for specs in (signature.inputs, signature.outputs)
    )
    return inputs, outputs


def fit_columns(array: Array, shape: tuple[int, ...], target: int) -> Array:
    """Cut or pad with zeros the second axis of arrays `(rows, columns, ...)` of this shape."""
    if array.shape[:2] != shape or target == shape[1]:
        return array
    if target < shape[1]:
        return np.ascontiguousarray(array[:, :target])
    room = [(0, 0), (0, target - shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, room)
