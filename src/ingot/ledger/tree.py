"""The Merkle tree of RFC 9162 section 2.1 (the same hashes as RFC 6962), SHA-256, no storage.

A node is addressed by `(level, position)`: level 0 is the leaves, and node `(l, p)` covers the
`2^l` leaves from `p * 2^l` on. Only complete subtrees have an address; what hangs over on the
right is folded from them, so every proof needs a logarithmic number of look-ups.

References:
    RFC 9162, Certificate Transparency Version 2.0, section 2.1.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ingot.core.errors import LedgerError

NodeLookup = Callable[[int, int], bytes]
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Return the 32-byte hash of an entry, SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the 32-byte hash of an inner node, SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(slots=True)
class Frontier:
    """The right edge of a growing tree: what an append needs, and nothing else.

    Attributes:
        size: Number of leaves so far.
        peaks: Hashes of the complete subtrees from left (largest) to right (smallest); one for
            each bit that is set in `size`.
    """

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf hash and return every subtree it completed, as `(level, position, hash)`."""
        level, position, current = 0, self.size, leaf
        done = [(level, position, current)]
        while position & 1:
            current = node_hash(self.peaks.pop(), current)
            level, position = level + 1, position >> 1
            done.append((level, position, current))
        self.peaks.append(current)
        self.size += 1
        return done

    def root(self) -> bytes:
        """Return the root of the tree so far, 32 bytes."""
        if not self.peaks:
            return EMPTY_ROOT
        current = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            current = node_hash(peak, current)
        return current


def peak_addresses(size: int) -> list[tuple[int, int]]:
    """Return `(level, position)` of the complete subtrees of a tree with `size` leaves.

    Examples:
        >>> peak_addresses(6)
        [(2, 0), (1, 2)]
    """
    levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
    return [(level, (size >> level) - 1) for level in levels]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def lookup_in(leaves: Sequence[bytes]) -> NodeLookup:
    """Return a look-up of complete subtrees over leaf hashes held in memory."""
    frontier, nodes = Frontier(), {}
    for leaf in leaves:
        for level, position, value in frontier.append(leaf):
            nodes[level, position] = value
    return lambda level, position: nodes[level, position]


def inclusion_proof(node: NodeLookup, index: int, size: int) -> list[bytes]:
    """Return PATH(index, D[size]) of RFC 9162 section 2.1.3.1: hashes from the leaf upwards.

    Raises:
        LedgerError: `index` is not below `size`.
    """
    if not 0 <= index < size:
        raise LedgerError(
            f"An inclusion proof needs an entry index from 0 and below {size}; got {index}. "
            "Ask for an entry that the tree of this size holds."
        )
    path: list[bytes] = []
    start = 0
    while size > 1:
        half = _split(size)
        if index - start < half:
            path.append(_range(node, start + half, size - half))
            size = half
        else:
            path.append(_range(node, start, half))
            start, size = start + half, size - half
    return path[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, *, proof: Sequence[bytes], root: bytes
) -> bool:
    """Say whether `leaf` (a leaf hash) is at `index` in the tree of `size` leaves with `root`.

    The algorithm of RFC 9162 section 2.1.3.2, step by step.
    """
    if not 0 <= index < size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def consistency_proof(node: NodeLookup, first: int, second: int) -> list[bytes]:
    """Return PROOF(first, D[second]) of RFC 9162 section 2.1.4.1.

    Raises:
        LedgerError: Not 0 < first <= second.
    """
    if not 0 < first <= second:
        raise LedgerError(
            f"A consistency proof needs 0 < first <= second; got {first} and {second}. "
            "Give the smaller, earlier tree size first."
        )
    path: list[bytes] = []
    start, m, n, is_whole = 0, first, second, True
    while m != n:
        half = _split(n)
        if m <= half:
            path.append(_range(node, start + half, n - half))
            n = half
        else:
            path.append(_range(node, start, half))
            start, m, n, is_whole = start + half, m - half, n - half, False
    if not is_whole:
        path.append(_range(node, start, m))
    return path[::-1]


def verify_consistency(
    first: int, second: int, *, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Say whether the tree of `second` leaves extends the tree of `first` leaves.

    The algorithm of RFC 9162 section 2.1.4.2, step by step.
    """
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    if not proof:
        return False
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == first_root and sr == second_root


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _range(node: NodeLookup, start: int, size: int) -> bytes:
    """Return the root over `size` leaves from `start`, which is a multiple of the first subtree."""
    frontier = Frontier(size)
    for level, position in peak_addresses(size):
        frontier.peaks.append(node(level, position + (start >> level)))
    return frontier.root()
