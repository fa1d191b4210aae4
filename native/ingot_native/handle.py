"""A model inside the compiled library, and calls of it."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot_native import binding
from ingot_native.errors import CacheFull, InputError, LibraryError
from ingot_native.file import read_packed
from ingot_native.layout import ACTIVATIONS, NORMS, POOLS, POSITIONS, Packed, head_of
from ingot_native.pack import aligned, check_packed

_ERRORS: dict[int, type[InputError | LibraryError | CacheFull]] = {
    binding.BAD_INPUT: InputError,
    binding.CACHE_FULL: CacheFull,
}


def opened(packed: Packed | str | os.PathLike[str]) -> Packed:
    """Return what was packed, checked, from memory or from a file.

    Raises:
        PackedFileError: The file is damaged.
        PackError: Tensors do not fit the spec.
    """
    if isinstance(packed, Packed):
        check_packed(packed)
        return packed
    return read_packed(packed)


class Handle:
    """Owns what `create` made: keeps its tensors in memory, lets one call in at a time, frees it.

    After a fork the child may go on using it.
    """

    def __init__(self, what: str, free: str) -> None:
        """Own nothing yet.

        Args:
            what: What it is, for messages: "encoder".
            free: Function of the library that frees it.
        """
        self._what, self._free = what, free
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._pointer = ctypes.c_void_p()
        self._tensors: dict[str, NDArray[np.generic]] = {}

    def create(
        self, name: str, packed: Packed, threads: int, isa: str | None, *arguments: Any
    ) -> None:
        """Let the library's function `name` make it.

        Args:
            name: A function whose first arguments are a config and `arguments`.
            packed: A checked transformer.
            threads: As the config has it.
            isa: As the config has it.
            arguments: The function's own, of any C type.

        Raises:
            LibraryError: The library is missing, or refused.
            InputError: `threads` is negative.
        """
        if not 0 <= threads < 1 << 31:
            raise InputError(f"threads must be 0 or more; got {threads}. 0 takes every core.")
        self._tensors = {name: aligned(tensor) for name, tensor in packed.tensors.items()}
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
        binding.check_cap()
        _call(getattr(binding.loaded(), name), config, *arguments, ctypes.byref(self._pointer))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library that can refuse, with this model as its first argument.

        Args:
            name: Of the function.
            arguments: What follows the model, of any C type, up to the place for the message.

        Raises:
            InputError: The library refused the input.
            CacheFull: No pages were left.
            LibraryError: It is closed, or the library refused for another reason.
        """
        with self._held() as pointer:
            _call(getattr(binding.loaded(), name), pointer, *arguments)

    def ask(self, name: str) -> Any:
        """Return what a function answers whose only argument is this model.

        Raises:
            LibraryError: It is closed.
        """
        with self._held() as pointer:
            return getattr(binding.loaded(), name)(pointer)

    @contextmanager
    def _held(self) -> Iterator[ctypes.c_void_p]:
        with self._own_lock():
            if self._pointer.value is None:
                raise LibraryError(f"The {self._what} must be open; it was closed. Make another.")
            yield self._pointer

    def _own_lock(self) -> threading.Lock:
        if self._process != os.getpid():  # a fork may have copied the lock while it was held
            self._process, self._lock = os.getpid(), threading.Lock()
        return self._lock

    def close(self) -> None:
        """Stop the threads and give back the memory, after a call in progress; twice is once."""
        with self._own_lock():
            pointer, self._pointer = self._pointer, ctypes.c_void_p()
            self._tensors = {}
            if pointer.value is not None:
                getattr(binding.loaded(), self._free)(pointer)


def _call(function: Callable[..., int], *arguments: Any) -> None:
    text = ctypes.create_string_buffer(binding.ERROR_BYTES)
    code = function(*arguments, text, len(text))
    if code:
        raise _ERRORS.get(code, LibraryError)(text.value.decode(errors="replace"))


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
