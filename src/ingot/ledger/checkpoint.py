"""Checkpoints: the size and root of a ledger as three lines of text, to be kept elsewhere."""

import base64
import binascii
from dataclasses import dataclass

from ingot.core.errors import LedgerError
from ingot.core.units import show_number

ORIGIN = "ingot.dev/ledger"
_ROOT_BYTES = 32
_LINES = 3


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a ledger.

    Attributes:
        size: Number of entries.
        root: Root of the tree over them, 64 hex digits.
    """

    size: int
    root: str


def write_checkpoint(head: Head, origin: str = ORIGIN) -> str:
    """Return the checkpoint body: origin, size and base64 root, one per line.

    The root alone does not say how large the tree is, so the two always travel together.

    References:
        C2SP tlog-checkpoint.

    Examples:
        >>> print(write_checkpoint(Head(0, "e3" * 32)), end="")
        ingot.dev/ledger
        0
        4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+M=
    """
    return f"{origin}\n{head.size}\n{base64.b64encode(bytes.fromhex(head.root)).decode()}\n"


def parse_checkpoint(text: str, origin: str = ORIGIN) -> Head:
    """Read a checkpoint; extension lines and signatures after the body are not looked at.

    Args:
        text: The checkpoint, with or without a signature block.
        origin: The ledger it must be of.

    Raises:
        LedgerError: It is not a checkpoint, or it is one of another ledger.
    """
    lines = text.split("\n\n")[0].removesuffix("\n").split("\n")
    if len(lines) < _LINES:
        raise LedgerError(_message(show_number(len(lines), "line")))
    if lines[0] != origin:
        raise LedgerError(
            f"The checkpoint must be of ledger {origin!r}; got one of {lines[0]!r}. "
            "Use the checkpoint that was made by this ledger."
        )
    size, root = lines[1], _decode(lines[2])
    if not (size.isascii() and size.isdigit()) or size != str(int(size)):
        raise LedgerError(_message(f"size {size!r}"))
    return Head(int(size), root.hex())


def _decode(text: str) -> bytes:
    try:
        root = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LedgerError(_message(f"root {text!r}")) from error
    if len(root) != _ROOT_BYTES or base64.b64encode(root).decode() != text:
        raise LedgerError(_message(f"root {text!r}"))
    return root


def _message(got: str) -> str:
    return (
        "A checkpoint must hold an origin line, a decimal size and the base64 of a 32-byte root; "
        f"got {got}. Use the text as the ledger gave it."
    )
