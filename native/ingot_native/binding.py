"""The compiled library, loaded when it is first needed."""

import ctypes
import os
import sys
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ingot_native.errors import LibraryError

ABI = 1
BAD_INPUT = 4  # INGOT_BAD_INPUT in ingot_native.h
CACHE_FULL = 8
CAP = "INGOT_NATIVE_ISA"
# As in src/dispatch.cpp, slowest first.
SETS = ("scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx")
ERROR_BYTES = 512

_SPEC_WHOLE = [
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "inner",
    "vocab",
    "positions",
    "token_types",
    "position",
    "position_offset",
    "padding_id",
    "norm",
    "norm_first",
    "first_attention_norm",
    "embedding_norm",
    "final_norm",
    "activation",
    "gated",
    "causal",
    "rotary_dim",
    "pool",
    "pool_norm",
    "head_norm",
    "normalize",
    "n_head",
]


class Spec(ctypes.Structure):
    """`ingot_spec` of ingot_native.h."""

    _fields_: ClassVar[list[Any]] = [
        ("struct_size", c_uint32),
        *((name, c_int32) for name in _SPEC_WHOLE),
        ("head_activations", POINTER(c_int32)),
        ("head_widths", POINTER(c_int32)),
        ("rotary_bases", POINTER(c_double)),
        ("windows", POINTER(c_int32)),
        ("epsilon", c_double),
        ("attention_scale", c_double),
    ]


class Tensor(ctypes.Structure):
    """`ingot_tensor`."""

    _fields_: ClassVar[list[Any]] = [
        ("name", c_char_p),
        ("data", c_void_p),
        ("size_bytes", c_uint64),
    ]


class Config(ctypes.Structure):
    """`ingot_config`."""

    _fields_: ClassVar[list[Any]] = [
        ("struct_size", c_uint32),
        ("threads", c_int32),
        ("isa", c_char_p),
        ("spec", POINTER(Spec)),
        ("tensors", POINTER(Tensor)),
        ("n_tensors", c_uint64),
    ]


_TEXT = [c_char_p, c_size_t]  # where the message goes

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ingot_abi": (c_int, []),
    "ingot_version": (c_char_p, []),
    "ingot_sets": (c_char_p, []),
    "ingot_create": (c_int, [POINTER(Config), POINTER(c_void_p), *_TEXT]),
    "ingot_free": (None, [c_void_p]),
    "ingot_threads": (c_int, [c_void_p]),
    "ingot_isa": (c_char_p, [c_void_p]),
    "ingot_width": (c_int, [c_void_p]),
    "ingot_run": (
        c_int,
        [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64, *_TEXT],
    ),
    "ingot_decoder_create": (
        c_int,
        [POINTER(Config), c_int64, c_int32, POINTER(c_void_p), *_TEXT],
    ),
    "ingot_decoder_free": (None, [c_void_p]),
    "ingot_decoder_threads": (c_int, [c_void_p]),
    "ingot_decoder_isa": (c_char_p, [c_void_p]),
    "ingot_decoder_width": (c_int, [c_void_p]),
    "ingot_free_tokens": (c_int64, [c_void_p]),
    "ingot_sequence_open": (c_int, [c_void_p, POINTER(c_int64), *_TEXT]),
    "ingot_sequence_close": (c_int, [c_void_p, c_int64, *_TEXT]),
    "ingot_sequence_trim": (c_int, [c_void_p, c_int64, c_int64, *_TEXT]),
    "ingot_sequence_length": (c_int, [c_void_p, c_int64, POINTER(c_int64), *_TEXT]),
    "ingot_decode": (
        c_int,
        [
            c_void_p,
            c_void_p,
            c_int64,
            c_void_p,
            c_void_p,
            c_int64,
            c_int32,
            c_void_p,
            c_int64,
            *_TEXT,
        ],
    ),
}


def library_path() -> Path:
    """Where the compiled library should be: `INGOT_NATIVE_LIBRARY`, or beside this file."""
    named = os.environ.get("INGOT_NATIVE_LIBRARY")
    if named:
        return Path(named)
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    prefix = "" if sys.platform == "win32" else "lib"
    return Path(__file__).with_name(f"{prefix}ingot_native{suffix}")


@cache
def loaded() -> ctypes.CDLL:
    """Load the compiled library once.

    Raises:
        LibraryError: It is missing, cannot be loaded, or speaks another version of the interface.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise LibraryError(
            f"The compiled library must be at {path}; {error}. Install ingot-native for this "
            "platform, or build native/ with cmake and point INGOT_NATIVE_LIBRARY to it."
        ) from error
    if library.ingot_abi() != ABI:
        raise LibraryError(
            f"The library must speak interface {ABI}; {path} speaks {library.ingot_abi()}. "
            "Build it again."
        )
    return library


def check_cap() -> None:
    """Refuse a name in `INGOT_NATIVE_ISA` that is no instruction set.

    Raises:
        LibraryError: It is none.
    """
    named = os.environ.get(CAP)
    if named and named not in SETS:
        raise LibraryError(
            f"{CAP} must be one of {', '.join(SETS)}; got {named!r}. Correct it, or unset it for "
            "the fastest set that the machine grants."
        )


def granted_sets() -> tuple[str, ...]:
    """Names of the instruction sets that this build has and this machine grants, slowest first.

    Raises:
        LibraryError: The compiled library is missing, or `INGOT_NATIVE_ISA` names no set.
    """
    check_cap()
    return tuple(loaded().ingot_sets().decode().split())
