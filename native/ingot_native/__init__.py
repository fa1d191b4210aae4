"""A CPU engine for transformers in eight bits, four bits and bf16.

`pack` turns weights into the form the kernels read, `write_packed` and `read_packed` keep it in a
file, `Encoder` and `Decoder` run it. Importing loads numpy and nothing compiled; the library is
loaded by the first of them.
"""

from ingot_native.binding import granted_sets
from ingot_native.decoder import Decoder
from ingot_native.encoder import Encoder
from ingot_native.errors import (
    CacheFull,
    InputError,
    LibraryError,
    NativeError,
    PackedFileError,
    PackError,
)
from ingot_native.file import read_packed, write_packed
from ingot_native.layout import Packed
from ingot_native.pack import pack
from ingot_native.spec import TransformerSpec

__all__ = [
    "CacheFull",
    "Decoder",
    "Encoder",
    "InputError",
    "LibraryError",
    "NativeError",
    "PackError",
    "Packed",
    "PackedFileError",
    "TransformerSpec",
    "granted_sets",
    "pack",
    "read_packed",
    "write_packed",
]
