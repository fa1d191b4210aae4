"""Run a packed encoder."""

import ctypes
import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ingot_native import binding
from ingot_native.errors import InputError, LibraryError
from ingot_native.file import read_packed
from ingot_native.layout import ACTIVATIONS, NORMS, POOLS, POSITIONS, Packed, head_of
from ingot_native.pack import aligned, check_packed

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
        if not 0 <= threads < 1 << 31:
            raise InputError(f"threads must be 0 or more; got {threads}. 0 takes every core.")
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._handle = ctypes.c_void_p()
        if isinstance(packed, Packed):
            check_packed(packed)
        else:
            packed = read_packed(packed)
        self.spec = packed.spec
        self._tensors = {name: aligned(tensor) for name, tensor in packed.tensors.items()}
        self._create(packed, threads, isa)
        library = binding.loaded()
        self.threads = int(library.ingot_threads(self._handle))
        self.isa = library.ingot_isa(self._handle).decode()
        self.width = int(library.ingot_width(self._handle))

    def _create(self, packed: Packed, threads: int, isa: str | None) -> None:
        tensors = (binding.Tensor * len(self._tensors))(
            *(
                binding.Tensor(name.encode(), tensor.ctypes.data, tensor.nbytes)
                for name, tensor in self._tensors.items()
            )
        )
        spec = _spec_struct(packed)
        config = binding.Config(
            ctypes.sizeof(binding.Config),
            threads,
            isa.encode() if isa is not None else None,
            ctypes.pointer(spec),
            tensors,
            len(tensors),
        )
        text = ctypes.create_string_buffer(binding.ERROR_BYTES)
        code = binding.loaded().ingot_create(config, ctypes.byref(self._handle), text, len(text))
        if code:
            raise LibraryError(text.value.decode(errors="replace"))

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
        ids, offsets = _joined("Token ids", sequences, self.spec.vocab)
        joined_types = None
        if types is not None:
            joined_types, type_offsets = _joined(
                "Token types", types, max(1, self.spec.token_types)
            )
            if not np.array_equal(offsets, type_offsets):
                raise InputError("Every token must have one type; the lengths differ.")
        n = len(offsets) - 1
        answer = np.empty((len(ids) if self.spec.pool == "tokens" else n, self.width), np.float32)
        self._run(ids, joined_types, offsets, answer)
        return answer

    def _run(
        self,
        ids: NDArray[np.int32],
        types: NDArray[np.int32] | None,
        offsets: NDArray[np.int64],
        answer: NDArray[np.float32],
    ) -> None:
        text = ctypes.create_string_buffer(binding.ERROR_BYTES)
        if self._process != os.getpid():  # a fork may have copied the lock while it was held
            self._process, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            if self._handle.value is None:
                raise LibraryError("The encoder must be open; it was closed. Make another.")
            code = binding.loaded().ingot_run(
                self._handle,
                ids.ctypes.data,
                types.ctypes.data if types is not None else None,
                len(ids),
                offsets.ctypes.data,
                len(offsets) - 1,
                answer.ctypes.data,
                answer.size,
                text,
                len(text),
            )
        if code:
            message = text.value.decode(errors="replace")
            raise InputError(message) if code == binding.BAD_INPUT else LibraryError(message)

    def close(self) -> None:
        """Stop the threads and give back the memory, after a call in progress; twice is once."""
        with self._lock:
            handle, self._handle = self._handle, ctypes.c_void_p()
            self._tensors = {}
            if handle.value is not None:
                binding.loaded().ingot_free(handle)

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
        if hasattr(self, "_handle"):
            self.close()


def _spec_struct(packed: Packed) -> binding.Spec:
    spec = packed.spec
    facts: dict[str, Any] = {  # a C struct's fields are set by name
        name: int(value)
        for name, value in spec.to_json().items()
        if isinstance(value, int) and name in binding.Spec.__dict__
    }
    activations, layers = head_of(spec), spec.layers
    n_head = len(activations)
    head = (ctypes.c_int32 * n_head)(*(ACTIVATIONS.index(name) for name in activations))
    facts |= {
        "struct_size": ctypes.sizeof(binding.Spec),
        "position": POSITIONS.index(spec.position),
        "norm": NORMS.index(spec.norm),
        "activation": ACTIVATIONS.index(spec.activation),
        "pool": POOLS.index(spec.pool),
        "n_head": n_head,
        "head_activations": head,
        "head_widths": (ctypes.c_int32 * n_head)(*packed.head_widths),
        "epsilon": float(spec.epsilon),
        "attention_scale": float(spec.attention_scale),
    }
    if spec.rotary_bases:
        facts["rotary_bases"] = (ctypes.c_double * layers)(*spec.rotary_bases)
    if spec.windows:
        facts["windows"] = (ctypes.c_int32 * layers)(*spec.windows)
    return binding.Spec(**facts)


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


def _joined(
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
