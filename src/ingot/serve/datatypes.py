"""Element types: their names and bytes on the wire of the Open Inference Protocol, and in numpy."""

from typing import Literal

import numpy as np

from ingot.data.data import Array

Kind = Literal["bool", "int", "float"]

NUMPY_OF = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_WIRE_OF = {name: wire for wire, name in NUMPY_OF.items()}
_NOT_IN_JSON = {"bfloat16": "BF16", "object": "BYTES"}


def wire_name(dtype: str) -> str:
    """Return the protocol's name of a numpy element type.

    Examples:
        >>> wire_name("float32"), wire_name("object")
        ('FP32', 'BYTES')
    """
    return _WIRE_OF.get(dtype) or _NOT_IN_JSON.get(dtype) or dtype.upper()


def kind_of(wire: str) -> Kind:
    """Return which JSON values a protocol type is written with.

    Examples:
        >>> kind_of("UINT8"), kind_of("FP16"), kind_of("BOOL")
        ('int', 'float', 'bool')
    """
    if wire == "BOOL":
        return "bool"
    return "float" if wire.startswith("FP") else "int"


def to_bytes(array: Array) -> bytes:
    """Return an array as the protocol's binary extension has it: row-major, little-endian."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_bytes(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return the array that these bytes are, in memory of its own: aligned and writable.

    Args:
        data: Row-major, little-endian.
        dtype: numpy name.
        shape: Whose size is that of the data.
    """
    return np.array(np.frombuffer(data, np.dtype(dtype).newbyteorder("<")), dtype).reshape(shape)
