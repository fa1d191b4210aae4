"""External data: weights in files beside the graph, checked once and mapped only while in use.

A model larger than memory is changed as a graph whose large weights stay on disk: each is read
through a memory map that vanishes with the array, and what is made anew goes to a scratch file.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ingot.core.closing import Closing
from ingot.core.errors import ModelError
from ingot.core.files import full_disk_explained
from ingot.data.data import Array

PAGE = 4096  # engines map weights from the file where they start on a page
_PIECE = 1 << 24
_NARROW = {"FLOAT4E2M1": 4, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes lie.

    Attributes:
        path: The file; None for the scratch file.
        offset: First byte.
        length: Bytes.
    """

    path: Path | None
    offset: int
    length: int


class ExternalData(Closing):
    """Large weights that stay on disk: read through memory maps, written one after another.

    Graph tensors name their place by number, so that no path from a file is followed twice.
    """

    def __init__(self, scratch: Path, *, inline_below: int = PAGE) -> None:
        """Make an empty set of places; `close` it after use.

        Args:
            scratch: Folder on whose disk new weights lie until the model is stored. The scratch
                file has no name: nothing of it is left, however the process ends.
            inline_below: Bytes; smaller tensors are held in the graph, where shape inference and
                constant folding see them.
        """
        self._folder, self._inline_below = scratch, max(1, inline_below)
        self._places: list[Place] = []
        self._scratch: IO[bytes] | None = None

    @property
    def folder(self) -> Path:
        """The folder on whose disk new weights lie until the model is stored."""
        return self._folder

    def claim(self, tensor: onnx.TensorProto, folder: Path) -> None:
        """Take an external tensor over; a small one is read into the graph.

        Args:
            tensor: Edited in place.
            folder: The model's folder.

        Raises:
            ModelError: Its data are missing, short, or lie outside the folder.
        """
        place = find_place(tensor, folder)
        if place.length >= self._inline_below:
            self._refer(tensor, place)
        else:
            take_in(tensor, folder)

    def read(self, tensor: onnx.TensorProto) -> Array:
        """Return the value of a claimed or kept tensor; it is mapped as long as the array lives."""
        place = self._place(tensor)
        source = place.path if place.path is not None else self._scratch
        assert source is not None
        raw = np.asarray(np.memmap(source, np.uint8, "r", place.offset, (place.length,)))
        if bits_per_value(tensor) < 8:
            whole = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
            whole.raw_data = raw.tobytes()
            return np.asarray(numpy_helper.to_array(whole))
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        value: Array = raw.view(dtype).reshape(tuple(tensor.dims))
        return value

    def keep(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return the tensor with its bytes in the scratch file, or as it is if it is small."""
        if is_external(tensor) or len(tensor.raw_data) < self._inline_below:
            return tensor
        place = self._append(memoryview(tensor.raw_data))
        return self._refer(_named(tensor.name, tensor.data_type, tensor.dims), place)

    def keep_array(self, name: str, value: Array) -> onnx.TensorProto:
        """Return a tensor of this value; if it is large, its bytes are in the scratch file."""
        if value.nbytes < self._inline_below:
            return numpy_helper.from_array(value, name)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        place = self._append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return self._refer(_named(name, kind, value.shape), place)

    def write(self, proto: onnx.ModelProto, path: Path) -> None:
        """Write every external weight of a graph to one file, page after page, and refer to it.

        Args:
            proto: Edited in place: its tensors then refer to `path.name`.
            path: The file of weights, in the folder of the graph.
        """
        written: dict[Place, int] = {}
        with path.open("wb") as target:
            for tensor in filter(is_external, proto.graph.initializer):
                place = self._place(tensor)
                if place not in written:
                    target.write(b"\0" * (-target.tell() % PAGE))
                    written[place] = target.tell()
                    self._copy(place, target)
                _set_location(tensor, path.name, written[place], place.length)

    def close(self) -> None:
        """Give the scratch file up."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _place(self, tensor: onnx.TensorProto) -> Place:
        return self._places[int(_facts(tensor)["location"])]

    def _refer(self, tensor: onnx.TensorProto, place: Place) -> onnx.TensorProto:
        _set_location(tensor, str(len(self._places)), 0, place.length)
        self._places.append(place)
        return tensor

    def _append(self, raw: memoryview) -> Place:
        if self._scratch is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 # lives until close()
        start, length = self._scratch.seek(0, 2), len(raw)
        with full_disk_explained(self._folder / "scratch"):
            while raw:
                raw = raw[self._scratch.write(raw) :]
        return Place(None, start, length)

    def _copy(self, place: Place, target: IO[bytes]) -> None:
        if place.path is None:
            assert self._scratch is not None
            _copy_piecewise(self._scratch, place, target)
            return
        with place.path.open("rb") as source:
            _copy_piecewise(source, place, target)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's bytes lie outside the graph."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def bits_per_value(tensor: onnx.TensorProto) -> int:
    """Return the bits that one value takes in a file.

    Raises:
        ModelError: The type is unknown, or has no fixed size.
    """
    try:
        narrow = _NARROW.get(onnx.TensorProto.DataType.Name(tensor.data_type))
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError) as error:
        raise _untyped(tensor) from error
    if dtype.hasobject:
        raise _untyped(tensor)
    return narrow or 8 * int(dtype.itemsize)


def on_shell(
    proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> onnx.ModelProto:
    """Return `change(proto)`, made without external weights: they stand in as inputs meanwhile.

    The checker, shape inference and the opset converter neither need nor bear them.
    """
    outside = [tensor for tensor in proto.graph.initializer if is_external(tensor)]
    if not outside:
        return change(proto)
    names = {tensor.name for tensor in outside}
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    _replace(shell.graph.initializer, [t for t in proto.graph.initializer if t.name not in names])
    listed = {value.name for value in shell.graph.input}
    shell.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in outside
        if t.name not in listed
    )
    changed = change(shell)
    added = names - listed
    _replace(changed.graph.input, [v for v in changed.graph.input if v.name not in added])
    changed.graph.initializer.extend(outside)
    return changed


def find_place(tensor: Any, folder: Path) -> Place:
    """Return where a tensor's external data lie.

    Raises:
        ModelError: They are missing, short, or lie outside the folder.
    """
    facts = _facts(tensor)
    location = facts.get("location", "")
    home = folder.resolve()
    path = (home / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(home):
        raise ModelError(
            f"External data must lie in the model's own folder; tensor {tensor.name!r} points to "
            f"{location!r}. Do not use this file unless you know who made it; save the model again "
            "with its weights beside it."
        )
    if not path.is_file():
        raise ModelError(
            f"External data of the model must lie beside it; {location!r} is not there (tensor "
            f"{tensor.name!r} needs it). Copy that file into the same folder."
        )
    want, have = size_bytes(tensor), path.stat().st_size
    try:
        offset = int(facts.get("offset", 0))
        length = int(facts.get("length", want))
    except ValueError as error:
        raise ModelError(
            f"External data of tensor {tensor.name!r} must have a whole number as offset and "
            f"length; got {facts}. Copy or export the file again."
        ) from error
    if offset < 0 or length != want or offset + length > have:
        raise ModelError(
            f"External data of tensor {tensor.name!r} must be {want:,} bytes; the file says offset "
            f"{offset:,}, length {length:,}, and {location!r} holds {have:,}. It is truncated or "
            "belongs to another model: copy it again."
        )
    return Place(path, offset, length)


def take_in(tensor: Any, folder: Path) -> None:
    """Read a tensor's external data into the graph.

    Raises:
        ModelError: They are missing, short, or lie outside the folder.
    """
    place = find_place(tensor, folder)
    assert place.path is not None
    with place.path.open("rb") as stream:
        stream.seek(place.offset)
        tensor.raw_data = stream.read(place.length)
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT


def size_bytes(tensor: Any) -> int:
    """Return the bytes that a tensor's values take in a file.

    Raises:
        ModelError: A size is negative.
    """
    if any(size < 0 for size in tensor.dims):
        raise ModelError(
            f"Sizes of tensor {tensor.name!r} must not be negative; got {list(tensor.dims)}. "
            "Copy or export the file again."
        )
    return -(-int(math.prod(tensor.dims)) * bits_per_value(tensor) // 8)


def _untyped(tensor: onnx.TensorProto) -> ModelError:
    return ModelError(
        f"External data of tensor {tensor.name!r} must be numbers of a known type; got type "
        f"{tensor.data_type}. Copy or export the file again."
    )


def _copy_piecewise(source: IO[bytes], place: Place, target: IO[bytes]) -> None:
    source.seek(place.offset)
    left = place.length
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise ModelError(
                "A file of weights must not change while it is read; it became shorter. Try again."
            )
        target.write(piece)
        left -= len(piece)


def _named(name: str, kind: int, dims: Any) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=kind, dims=dims)


def _set_location(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _facts(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _replace(field: Any, values: list[Any]) -> None:
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(kept)
