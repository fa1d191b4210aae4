"""Messages between a server and its workers: a length, then one msgpack message with tensors."""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from ingot.data.data import Array

PREFIX = struct.Struct("!Q")
T = TypeVar("T")


class Tensor(msgspec.Struct, array_like=True, frozen=True):
    """One named array; `data` is row-major in this machine's byte order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Start(msgspec.Struct, array_like=True, frozen=True):
    """To a worker, first of all: which model it serves, and how.

    `model` and `config` are JSON forms; see `ingot.serve.workers.worker`.
    """

    model: dict[str, object]
    config: dict[str, object]


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    """From a worker: it lives and begins to load."""

    pid: int


class Ready(msgspec.Struct, array_like=True, frozen=True, tag="ready"):
    """From a worker: a real inference succeeded, in so many milliseconds, on these inputs."""

    latency_ms: float
    feeds: list[Tensor]


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """From a worker: it cannot serve this model, and why."""

    message: str


class Answer(msgspec.Struct, array_like=True, frozen=True, tag="answer"):
    """From a worker: the outputs of a call."""

    call: int
    outputs: list[Tensor]


class Failure(msgspec.Struct, array_like=True, frozen=True, tag="failure"):
    """From a worker: a call failed; whether its inputs were at fault, and the engine's words."""

    call: int
    is_refusal: bool
    message: str


class Call(msgspec.Struct, array_like=True, frozen=True):
    """To a worker: run this."""

    call: int
    feeds: list[Tensor]


FromWorker = Hello | Ready | Refused | Answer | Failure
_ENCODER = msgspec.msgpack.Encoder()
FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
TO_WORKER = msgspec.msgpack.Decoder(Call)
START = msgspec.msgpack.Decoder(Start)


def frame(message: msgspec.Struct) -> bytes:
    """Return a message as it goes over the socket."""
    body = _ENCODER.encode(message)
    return PREFIX.pack(len(body)) + body


def pack(arrays: Mapping[str, Array]) -> list[Tensor]:
    """Return arrays as tensors of a message.

    Raises:
        TypeError: An array holds objects, which have no bytes of their own.
    """
    tensors = []
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"{name!r} holds objects; only numbers and booleans can be sent")
        tensors.append(Tensor(name, array.dtype.str, array.shape, array.tobytes()))
    return tensors


def unpack(tensors: Sequence[Tensor], *, writable: bool = False) -> dict[str, Array]:
    """Return the arrays of a message by name.

    Args:
        tensors: From a message.
        writable: Whether to copy them into memory that an engine may be given: aligned, writable.
    """
    arrays = {t.name: np.frombuffer(t.data, t.dtype).reshape(t.shape) for t in tensors}
    return {name: array.copy() for name, array in arrays.items()} if writable else arrays


def receive(channel: socket.socket, decoder: "msgspec.msgpack.Decoder[T]") -> T | None:
    """Wait for one message on a blocking socket; None when the other side is gone."""
    prefix = receive_exactly(channel, PREFIX.size)
    body = receive_exactly(channel, PREFIX.unpack(prefix)[0]) if prefix else None
    return None if body is None else decoder.decode(body)


def receive_exactly(channel: socket.socket, size: int) -> bytearray | None:
    """Wait for so many bytes; None when the other side is gone before."""
    body = bytearray(size)
    view = memoryview(body)
    while view:
        try:
            count = channel.recv_into(view)
        except ConnectionError:
            return None
        if not count:
            return None
        view = view[count:]
    return body


class Inbox:
    """Puts messages together from the pieces in which a stream delivers them."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take a piece; yield every message that is now whole."""
        held = self._held
        held += piece
        start = 0
        while len(held) - start >= PREFIX.size:
            first = start + PREFIX.size
            end = first + PREFIX.unpack_from(held, start)[0]
            if len(held) < end:
                break
            yield bytes(memoryview(held)[first:end])
            start = end
        del held[:start]
