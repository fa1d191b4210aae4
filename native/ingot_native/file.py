"""A packed transformer on disk: a safetensors file whose tensors lie at multiples of 64 bytes.

Eight bytes, little-endian: length of the header. The header: JSON, padded with spaces so that the
data begins at a multiple of 64. The data, without gaps, as that format wants it: what is needed to
reach the next multiple is a tensor named `padding.{n}`. Reading maps the file and copies nothing;
every size, place, type and name, and the spec, are checked before a tensor is made.
"""

import contextlib
import json
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ingot_native.errors import PackedFileError, PackError
from ingot_native.layout import (
    DTYPE_NAMES,
    DTYPES,
    Packed,
    Slot,
    check_slots,
    check_spec,
    slots_of,
)
from ingot_native.pack import ALIGNMENT, check_packed
from ingot_native.spec import TransformerSpec
from ingot_native.tiles import check_four_bits

FORMAT = "ingot-native"
FORMAT_VERSION = "1"

_PADDING = "padding."
_LONGEST_HEADER = 16 << 20


def write_packed(packed: Packed, path: str | os.PathLike[str]) -> None:
    """Write a packed transformer, whole or not at all.

    Args:
        packed: What `pack` returned.
        path: Where to; an existing file is replaced in one step.

    Raises:
        PackError: The tensors do not fit the spec.
        OSError: The file cannot be written.
    """
    check_packed(packed)
    padded = _with_padding(packed.tensors)
    entries: dict[str, Any] = {"__metadata__": _metadata(packed)}
    offset = 0
    for name, tensor in padded.items():
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, header, padded)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    _sync_folder(target.parent)


def _with_padding(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    padded: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        padded[name] = tensor
        if gap := -tensor.nbytes % ALIGNMENT:
            padded[f"{_PADDING}{len(padded)}"] = np.zeros(gap, np.int8)
    return padded


def _write(file: BinaryIO, header: bytes, tensors: dict[str, NDArray[Any]]) -> None:
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    file.writelines(np.ascontiguousarray(tensor).data for tensor in tensors.values())


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _metadata(packed: Packed) -> dict[str, str]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": json.dumps(packed.spec.to_json()),
        "head_widths": json.dumps(list(packed.head_widths)),
    }


def read_packed(path: str | os.PathLike[str]) -> Packed:
    """Map a packed transformer.

    The file must not be cut or changed while the result is in use: its pages are read when they are
    needed.

    Args:
        path: A file that `write_packed` wrote.

    Returns:
        The packed transformer; its tensors are read-only views of the file.

    Raises:
        PackedFileError: The file is not a packed transformer or is damaged. Says what must hold.
        OSError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            header, start = _header(file)
            spec, widths, slots, places = _checked(header, os.fstat(file.fileno()).st_size - start)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tensors = {name: _view(mapped, slot, start + places[name]) for name, slot in slots.items()}
        check_four_bits(tensors)
    except (PackedFileError, PackError) as error:
        raise PackedFileError(f"{Path(path).name}: {error}") from error
    return Packed(spec, widths, tensors)


def _view(mapped: mmap.mmap, slot: Slot, place: int) -> NDArray[Any]:
    dtype = DTYPES[slot.dtype]
    count = slot.size_bytes // dtype.itemsize
    return np.frombuffer(mapped, dtype, count, place).reshape(slot.shape)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise PackedFileError(
            f"{rule} The file is damaged or is no packed transformer; pack the model again."
        )


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require(
        len({name for name, _ in pairs}) == len(pairs), "No name may stand twice in the header."
    )
    return dict(pairs)


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Parsed header and the place where the data begins."""
    size = os.fstat(file.fileno()).st_size
    _require(size >= 8, "The file must have a header.")
    length = int.from_bytes(file.read(8), "little")
    _require(
        2 <= length <= min(size - 8, _LONGEST_HEADER),
        f"The header's length must fit the file of {size} bytes; got {length}.",
    )
    _require((8 + length) % ALIGNMENT == 0, f"The data must begin at a multiple of {ALIGNMENT}.")
    text = file.read(length)
    _require(len(text) == length, "The header must be whole.")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise PackedFileError(f"The header must be JSON; {error}") from error
    _require(isinstance(header, dict), "The header must be a JSON object.")
    return header, 8 + length


def _checked(
    header: dict[str, Any], size: int
) -> tuple[TransformerSpec, tuple[int, ...], dict[str, Slot], dict[str, int]]:
    """Spec, widths of the head, and type, shape and place of every tensor."""
    spec, widths = _checked_metadata(header.pop("__metadata__", None))
    slots: dict[str, Slot] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in header.items():
        slots[name], spans[name] = _entry(name, entry, size)
    end = 0
    for span, name in sorted((span, name) for name, span in spans.items()):
        _require(
            span[0] == end,
            f"Tensor {name!r} must begin where another ends, at {end}; got {span[0]}.",
        )
        end = span[1]
    _require(end == size, f"The data must be {end} bytes, as the header says; got {size}.")
    slots = {name: slot for name, slot in slots.items() if not name.startswith(_PADDING)}
    check_slots(slots_of(spec, widths, slots), slots)
    return spec, widths, slots, {name: spans[name][0] for name in slots}


def _checked_metadata(metadata: object) -> tuple[TransformerSpec, tuple[int, ...]]:
    ok = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    _require(ok, "The header must have metadata.")
    facts: dict[str, str] = metadata  # type: ignore[assignment]  # checked by ok
    named = facts.get("format"), facts.get("format_version")
    _require(
        named == (FORMAT, FORMAT_VERSION),
        f"The format must be {FORMAT} {FORMAT_VERSION}; got {named}.",
    )
    try:
        spec = TransformerSpec.from_json(_object(facts.get("spec", "")))
        widths = json.loads(facts.get("head_widths", ""))
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise PackedFileError(f"The spec must be whole; {type(error).__name__}: {error}") from error
    _require(isinstance(widths, list), "head_widths must be a list.")
    check_spec(spec)
    return spec, tuple(widths)


def _object(text: str) -> dict[str, Any]:
    facts = json.loads(text)
    _require(isinstance(facts, dict), "The spec must be a JSON object.")
    for name in ("rotary_bases", "windows", "head"):
        _require(isinstance(facts.get(name), list), f"spec.{name} must be a list.")
    return dict(facts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _entry(name: str, entry: object, size: int) -> tuple[Slot, tuple[int, int]]:
    ok = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    _require(ok, f"Tensor {name!r} must have dtype, shape and data_offsets.")
    facts: dict[str, Any] = entry  # type: ignore[assignment]  # checked by ok
    dtype, shape, span = facts["dtype"], facts["shape"], facts["data_offsets"]
    _require(
        isinstance(dtype, str) and dtype in DTYPES,
        f"Tensor {name!r} must be one of {', '.join(DTYPES)}; got {dtype!r}.",
    )
    ok = isinstance(shape, list) and len(shape) <= 4 and all(_is_count(n) for n in shape)
    _require(ok, f"Tensor {name!r} must have a shape of at most four sizes; got {shape!r}.")
    ok = isinstance(span, list) and len(span) == 2 and all(_is_count(n) for n in span)
    _require(ok, f"Tensor {name!r} must have two data_offsets; got {span!r}.")
    slot = Slot(dtype, tuple(shape))
    begin, end = span
    _require(
        begin <= end <= size,
        f"Tensor {name!r} must lie inside the data of {size} bytes; got {span}.",
    )
    _require(
        end - begin == slot.size_bytes,
        f"Tensor {name!r} must have {slot.size_bytes} bytes; got {end - begin}.",
    )
    is_aligned = begin % ALIGNMENT == 0 or name.startswith(_PADDING)
    _require(is_aligned, f"Tensor {name!r} must begin at a multiple of {ALIGNMENT}; got {begin}.")
    return slot, (begin, end)
