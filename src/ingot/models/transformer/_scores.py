"""What happens between scores and their softmax: a factor, a mask, a bias by distance."""

from dataclasses import dataclass

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._fused import MASK
from ingot.models.transformer._pieces import Product, Softmax
from ingot.models.transformer._probes import SCALES, Probes, close
from ingot.models.transformer.refusal import NotRecognized

_HIDDEN = -5000.0  # old exports add -10000 to the scores of padding
_ALLOWED = SCALES | {"Where", MASK}


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores become what the softmax reads.

    Attributes:
        scale: Their factor.
        causal: Whether a token sees only earlier ones.
        window: How far it sees; 0 for all.
        relative: Bias `[heads, 2 * positions - 1]` by key - query; None if there is none.
    """

    scale: float
    causal: bool
    window: int
    relative: Array | None


class ScoreReader:
    """Reads scores of all blocks; masks and biases that blocks share are computed once."""

    def __init__(self, probes: Probes, positions: int) -> None:
        """Take the traces and the longest sequence."""
        self._probes, self._positions = probes, positions
        self._known: dict[tuple[object, ...], tuple[Array, Array | None]] = {}

    def read(self, product: Product, softmax: Softmax, heads: int, where: str) -> Scores:
        """Read what is between a product and a softmax.

        Raises:
            NotRecognized: It is no factor, mask or bias by distance, or the mask hides something
                else than padding.
        """
        probes, name = self._probes, softmax.inputs[0]
        if probes.sources(name) != {product.output}:
            raise NotRecognized(f"{where}: {softmax.nodes[0].label} does not read the scores alone")
        scale = 0.0
        seen, bias = self._long(product.output, name, heads, where)
        for at, size in enumerate(probes.sizes):
            shape = (size.batch, heads, size.length, size.length)
            s, z = (t.reshape(shape) for t in (probes[product.output][at], probes[name][at]))
            visible = seen[: size.length, : size.length] & size.real()[:, None, None, :]
            if at == 0:
                scale = _scale(s, z, visible)
            expected = scale * s if bias is None else scale * s + _by_distance(bias, size.length)
            rows = np.broadcast_to(size.real()[:, None, :, None], shape)
            visible = np.broadcast_to(visible, shape)
            shown = close(z[rows & visible], expected[rows & visible])
            if not shown or not (z[rows & ~visible] < _HIDDEN).all():
                raise NotRecognized(
                    f"{where}: what {softmax.nodes[0].label} reads is not the scaled scores with a "
                    "mask of padding and a bias by distance"
                )
        probes.explain(name, _ALLOWED, where)
        causal, window = _pattern(seen, where)
        return Scores(scale, causal, window, bias)

    def _long(self, scores: str, name: str, heads: int, where: str) -> tuple[Array, Array | None]:
        """Return who sees whom at full length `(length, length)`, and the bias by distance."""
        key = self._probes.beside(name)
        if key not in self._known:
            self._known[key] = self._look(scores, name, heads, where)
        return self._known[key]

    def _look(self, scores: str, name: str, heads: int, where: str) -> tuple[Array, Array | None]:
        length, probes = self._positions, self._probes
        flat = probes[scores][0].ndim == 3
        zeros = np.zeros((heads, length, length) if flat else (1, 1, length, length), np.float32)
        z = probes.far(length, {scores: zeros})[name].reshape(-1, length, length)
        seen = z[0] >= _HIDDEN
        if any(((z[h] >= _HIDDEN) != seen).any() for h in range(len(z))):
            raise NotRecognized(f"{where}: the heads of {probes.label(name)} see different tokens")
        bias = np.where(seen, z, 0)
        if not np.abs(bias).max(initial=0) > 1e-6:
            return seen, None
        table = np.zeros((len(z), 2 * length - 1), np.float32)
        for distance in range(1 - length, length):
            line = np.diagonal(bias, distance, axis1=1, axis2=2)
            table[:, distance + length - 1] = line[:, 0]
            if (line != line[:, :1]).any():
                raise NotRecognized(f"{where}: {probes.label(name)} adds no bias by distance alone")
        return seen, np.broadcast_to(table, (heads, table.shape[1]))


def _by_distance(table: Array, length: int) -> Array:
    """Return `(heads, length, length)` of a table by key - query."""
    zero = table.shape[1] // 2
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    found: Array = table[:, distance + zero]
    return found


def _scale(s: Array, z: Array, visible: Array) -> float:
    """Return the factor of the scores; two sequences share whatever is added."""
    both = np.broadcast_to(visible[:1] & visible[1:2], s[:1].shape)[0]
    rise, run = z[0][both] - z[1][both], s[0][both] - s[1][both]
    steady = np.abs(run) > 0.5
    scale = float(np.median(rise[steady] / run[steady])) if steady.any() else 0.0
    return 1.0 if abs(scale - 1) < 1e-5 else scale


def _pattern(seen: Array, where: str) -> tuple[bool, int]:
    """Return whether tokens see only earlier ones, and how far."""
    length = len(seen)
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    causal = length > 1 and not seen[distance > 0].any()
    reach = int(np.abs(distance[seen]).max(initial=0))
    expected = np.abs(distance) <= reach
    if causal:
        expected &= distance <= 0
    if not (seen == expected).all():
        raise NotRecognized(f"{where}: tokens see others by another rule than order and distance")
    return bool(causal), reach if reach < length - 1 else 0
