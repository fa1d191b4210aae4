"""How queries, keys and values are cut from the layers that give them, and rotated."""

from dataclasses import dataclass

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._pieces import Dense
from ingot.models.transformer._probes import SCALES, Probes, Values, close, mapped
from ingot.models.transformer.refusal import NotRecognized

_NEAR = 5e-5
_TURNS = SCALES | {"RotaryEmbedding"}
_BESIDE = 4  # neighbours that are looked at: thousands of random numbers lie close
_FAR = 2e-3  # float32 angles of far positions are exact to 1e-4


@dataclass(frozen=True, slots=True)
class Heads:
    """What a product of attention reads.

    Attributes:
        dense: The layer that gives it.
        columns: Of each head the layer's outputs, `[heads, head_dim]`.
        scale: What they are multiplied by.
        rotary_dim: Leading columns that are rotated; 0 for none.
        base: Of the angles.
    """

    dense: Dense
    columns: Array
    scale: float
    rotary_dim: int = 0
    base: float = 0.0


class HeadReader:
    """Reads what products of attention read; angles that blocks share are checked once."""

    def __init__(self, probes: Probes, positions: int) -> None:
        """Take the traces and the longest sequence."""
        self._probes, self._positions = probes, positions
        self._checked: set[tuple[object, ...]] = set()

    def read(self, name: str, group: list[Dense], *, turned: bool, where: str) -> Heads:
        """Read one side of a product.

        Args:
            name: The tensor.
            group: Layers that it may come from.
            turned: Whether its last two axes are exchanged, as those of keys are.
            where: Block and part, for messages.

        Raises:
            NotRecognized: It is not made of one layer's outputs, cut into heads.
        """
        probes, sources = self._probes, self._probes.sources(name)
        dense = next((d for d in group if sources == {d.output}), None)
        if dense is None:
            made = ", ".join(sorted(probes.label(s) for s in sources)) or "no layer"
            raise NotRecognized(
                f"{where}: {probes.label(name)} is made of {made}, not of one layer that reads the "
                "block's input"
            )
        label, base = f"{where}: {probes.label(name)}", probes.tokens(dense.output)
        values = mapped(lambda v, b: _by_head(v, b, turned=turned), probes[name], base)
        columns, scale = _columns(values, base, label)
        plain = mapped(lambda b: scale * b[..., columns].transpose(0, 2, 1, 3), base)
        found = Heads(dense, columns, scale)
        if not all(close(v, p) for v, p in zip(values, plain, strict=True)):
            found = Heads(dense, columns, scale, *_rotation(values, plain, label))
            self._check_far(name, found, turned=turned, label=label)
        probes.explain(name, _TURNS if found.rotary_dim else SCALES, where)
        return found

    def _check_far(self, name: str, heads: Heads, *, turned: bool, label: str) -> None:
        """Check that the angles keep their rule up to the longest sequence."""
        key = self._probes.beside(name)
        if key in self._checked:
            return
        self._checked.add(key)
        length, width = self._positions, len(heads.dense.matrix.values)
        base = np.random.default_rng(length).standard_normal((1, length, width), np.float32)
        flat = self._probes[heads.dense.output][0].ndim == 2
        given = {heads.dense.output: base[0] if flat else base}
        value = _by_head(self._probes.far(length, given)[name], base, turned=turned)
        plain = heads.scale * base[..., heads.columns].transpose(0, 2, 1, 3)
        if not close(value, rotate(plain, heads.rotary_dim, heads.base), _FAR):
            raise NotRecognized(f"{label} is rotated by another rule far from the first token")


def _by_head(value: Array, base: Array, *, turned: bool) -> Array:
    """Return `(batch, heads, length, head_dim)` of whatever axes batch and heads are on."""
    if value.ndim < 3:
        raise NotRecognized(f"attention reads a tensor of {value.ndim} axes; it needs heads")
    swapped: Array = value.swapaxes(-1, -2) if turned else value
    batch, length = base.shape[:2]
    if swapped.shape[-2] != length or swapped.size % (batch * length * swapped.shape[-1]):
        raise NotRecognized(
            f"attention reads {list(value.shape)}: no row for each of {length} tokens"
        )
    return swapped.reshape(batch, -1, length, swapped.shape[-1])


def _columns(values: Values, bases: Values, where: str) -> tuple[Array, float]:
    """Find each column of each head among the layer's outputs, up to one common factor.

    At position 0 nothing is rotated. The ratio of two sequences knows no factor: nearly all columns
    are found by it. Then all are, by their numbers in every sequence.
    """
    given = np.concatenate([base[:, 0] for base in bases]).astype(np.float64)
    wanted = np.concatenate([value[:, :, 0] for value in values]).astype(np.float64)
    rough = _nearest((given[0] / given[1])[None], (wanted[0] / wanted[1])[None])
    scale = float(np.median(wanted[0] / given[0][rough]))
    columns = _nearest(given, wanted / scale)
    if not close(wanted, scale * given[:, columns]):
        raise NotRecognized(f"{where} is more than one layer's outputs, scaled and cut into heads")
    return columns, 1.0 if abs(scale - 1) < 1e-5 else scale


def _nearest(given: Array, wanted: Array) -> Array:
    """Return which column of `given` `(samples, columns)` is nearest to each of `wanted`."""
    order = np.argsort(given[0])
    at = np.searchsorted(given[0][order], wanted[0])
    beside = np.clip(at[..., None] + np.arange(-_BESIDE, _BESIDE), 0, len(order) - 1)
    candidates = order[beside]
    gaps = np.abs(given[:, candidates] - wanted[..., None]).sum(axis=0)
    found: Array = np.take_along_axis(candidates, gaps.argmin(-1)[..., None], -1)[..., 0]
    return found


def _rotation(values: Values, plain: Values, where: str) -> tuple[int, float]:
    """Return how many columns are rotated, in pairs (d, d + half), and the base of the angles."""
    width = values[0].shape[-1]
    for rotary in range(width, 1, -2):
        half = rotary // 2
        before = plain[0][:, :, 1, :half] + 1j * plain[0][:, :, 1, half:rotary]
        after = values[0][:, :, 1, :half] + 1j * values[0][:, :, 1, half:rotary]
        steps = np.median(np.angle(after / before), axis=(0, 1))
        for base in _bases(steps, rotary):
            if all(close(v, rotate(p, rotary, base)) for v, p in zip(values, plain, strict=True)):
                return rotary, base
    raise NotRecognized(
        f"{where} is neither plain nor rotated by angles position * base ** (-2 i / dim) in pairs "
        "(d, d + dim / 2)"
    )


def _bases(steps: Array, rotary: int) -> list[float]:
    """Return b of steps b ** (-2 i / rotary): first with as few digits as fit, then with six."""
    if len(steps) < 2 or not 0 < steps[1] < 1:
        return [10_000.0]
    rough = float(steps[1] ** (-rotary / 2))
    rounded = (float(f"{rough:.{digits}e}") for digits in range(6))
    return [*(r for r in rounded if abs(r - rough) < _NEAR * rough)]


def rotate(x: Array, rotary: int, base: float) -> Array:
    """Rotate the leading columns of `(..., length, head_dim)` by their position, from 0.

    References:
        Su et al., RoFormer, 2021, section 3.2.2; pairs as in GPT-NeoX. arXiv:2104.09864
    """
    half = rotary // 2
    steps = base ** (-2.0 * np.arange(half) / rotary)
    angles = np.arange(x.shape[-2])[:, None] * steps
    first, second, rest = x[..., :half], x[..., half:rotary], x[..., rotary:]
    cosine, sine = np.cos(angles), np.sin(angles)
    parts = (first * cosine - second * sine, second * cosine + first * sine, rest)
    turned: Array = np.concatenate(parts, axis=-1)
    return turned
