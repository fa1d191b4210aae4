"""Run a packed encoder."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ingot_native.errors import InputError
from ingot_native.handle import Handle, opened
from ingot_native.layout import Packed

Ids = Sequence[Any] | NDArray[Any]  # token ids of one sequence: any whole numbers


class Encoder:
    """A packed transformer, ready to run.

    Sequences of a call are computed without padding; the answer for each has the same bits alone
    and in company, and with any number of threads. Calls from several threads wait for one another.
    After a fork the child may go on using it.

    Attributes:
        spec: What it is made of.
        threads: Threads it runs on, the calling one included.
        isa: Instruction set of its kernels.
        width: Floats in a row of the answer.
    """

    def __init__(
        self, packed: Packed | str | os.PathLike[str], threads: int = 0, isa: str | None = None
    ) -> None:
        """Load the kernels and start the threads.

        Args:
            packed: What `pack` returned, or a file that `write_packed` wrote: it is mapped, not
                copied.
            threads: 0 for one per granted core; never more than the affinity mask holds.
            isa: One of `granted_sets()`, or None for the fastest.

        Raises:
            PackedFileError: The file is damaged.
            PackError: Tensors do not fit the spec.
            LibraryError: The library is missing, or refused: unknown instruction set, no memory.
            InputError: `threads` is negative.
        """
        self._model = Handle("encoder", "ingot_free")
        packed = opened(packed)
        self.spec = packed.spec
        self._model.create("ingot_create", packed, threads, isa)
        self.threads = int(self._model.ask("ingot_threads"))
        self.isa: str = self._model.ask("ingot_isa").decode()
        self.width = int(self._model.ask("ingot_width"))

    def encode(
        self,
        sequences: Sequence[Ids] | NDArray[Any],
        mask: NDArray[Any] | None = None,
        types: Sequence[Ids] | NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Compute the answer for every sequence.

        Args:
            sequences: Token ids, one list or array per sequence; or with `mask`, padded ids
                `(n, length)`.
            mask: `(n, length)`, 1 for a token, 0 for padding after the last token.
            types: Token types in the form of `sequences`; None for all 0.

        Returns:
            `(n, width)`; if the pool is `tokens`, `(tokens, width)`, sequence after sequence
            without padding.

        Raises:
            InputError: An id, a type or a length that the encoder does not have, or a mask with
                gaps.
            LibraryError: The encoder is closed.
        """
        if mask is not None:
            sequences, types = _unpadded(sequences, types, np.asarray(mask))
        ids, offsets = joined("Token ids", sequences, self.spec.vocab)
        joined_types = None
        if types is not None:
            joined_types, type_offsets = joined("Token types", types, max(1, self.spec.token_types))
            if not np.array_equal(offsets, type_offsets):
                raise InputError("Every token must have one type; the lengths differ.")
        n = len(offsets) - 1
        answer = np.empty((len(ids) if self.spec.pool == "tokens" else n, self.width), np.float32)
        self._model.call(
            "ingot_run",
            ids.ctypes.data,
            joined_types.ctypes.data if joined_types is not None else None,
            len(ids),
            offsets.ctypes.data,
            n,
            answer.ctypes.data,
            answer.size,
        )
        return answer

    def close(self) -> None:
        """Stop the threads and give back the memory, after a call in progress; twice is once."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_model"):
            self.close()


def _unpadded(
    ids: Sequence[Ids] | NDArray[Any],
    types: Sequence[Ids] | NDArray[Any] | None,
    mask: NDArray[Any],
) -> tuple[list[NDArray[Any]], list[NDArray[Any]] | None]:
    """Rows without their padding."""
    table = np.asarray(ids)
    if table.ndim != 2 or mask.shape != table.shape:
        raise InputError(f"ids and mask must be (n, length); got {table.shape} and {mask.shape}.")
    kept = mask != 0
    lengths = kept.sum(axis=1)
    if not np.array_equal(kept, np.arange(mask.shape[1]) < lengths[:, None]):
        raise InputError("A mask must be ones, then zeros; got a gap, or padding before a token.")
    rows = [row[:length] for row, length in zip(table, lengths, strict=True)]
    if types is None:
        return rows, None
    type_table = np.asarray(types)
    if type_table.shape != table.shape:
        raise InputError(
            f"types must have the shape of ids, {table.shape}; got {type_table.shape}."
        )
    return rows, [row[:length] for row, length in zip(type_table, lengths, strict=True)]


def joined(
    what: str, sequences: Sequence[Ids] | NDArray[Any], end: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All values one after another, and where each sequence begins."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    for i, array in enumerate(arrays):
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise InputError(
                f"{what} must be a list of whole numbers per sequence; "
                f"sequence {i} is {array.dtype} {list(array.shape)}."
            )
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    if values.size and not (values.min() >= 0 and values.max() < end):
        place = int(np.argmax((values < 0) | (values >= end)))
        sequence = int(np.searchsorted(offsets, place, side="right")) - 1
        raise InputError(
            f"{what} must be between 0 and {end - 1}; got {values[place]} in sequence {sequence}."
        )
    return np.ascontiguousarray(values, dtype=np.int32), offsets
