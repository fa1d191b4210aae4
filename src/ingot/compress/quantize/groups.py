"""Weights in groups that share a scale: `tensor`, `row`, `rows:16` or `k:128`; 4 or 8 bits.

A row holds the weights of one output. `rows:16` (ZeroQuant) joins 16 consecutive rows; `k:128`
(GPTQ, AWQ and the kernels made for them) cuts each row into groups of 128 inputs.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.rounding import Rounding, round_rows
from ingot.core.errors import RecipeError
from ingot.data.data import Array

SHRINKS = np.linspace(1.0, 0.6, 17)  # shares of the largest magnitude that a scale may reach to
BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class Granularity:
    """How many weights share a scale.

    Attributes:
        kind: `tensor`, `row`, `rows` or `k`.
        size: Rows or inputs per group; 0 for the first two.
    """

    kind: str
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> "Granularity":
        """Read `tensor`, `row`, `rows:N` or `k:N`.

        Raises:
            RecipeError: It is none of them.
        """
        kind, _, size = text.partition(":")
        if text in ("tensor", "row") or (kind in ("rows", "k") and size.isdigit() and int(size)):
            return cls(kind, int(size or 0))
        raise RecipeError(
            f"granularity must be 'tensor', 'row', 'rows:N' or 'k:N'; got {text!r}. "
            "'k:32' is the most exact for 4 bits, 'row' for 8 bits."
        )

    def groups(self, rows: int, inputs: int) -> tuple[int, int]:
        """Return rows and inputs per group for a layer; a size that does not divide is refused.

        Raises:
            RecipeError: The size does not divide the layer.
        """
        height = {"tensor": rows, "row": 1, "rows": self.size, "k": 1}[self.kind]
        width = self.size if self.kind == "k" else inputs
        if rows % height or inputs % width:
            raise RecipeError(
                f"granularity {self.kind}:{self.size} must divide the layer; got {rows} rows of "
                f"{inputs} inputs. Take a smaller power of two, or 'row'."
            )
        return height, width


def limits_of(bits: int) -> tuple[int, int]:
    """Return the symmetric integer range: the most negative value stays unused.

    Raises:
        RecipeError: Other than 4 or 8 bits.
    """
    if bits not in BITS:
        raise RecipeError(f"bits must be 4 or 8; got {bits!r}. Take 8 if 4 loses too much.")
    top = 2 ** (bits - 1) - 1
    return -top, top


def group_scales(
    weight: Array, bits: int, granularity: Granularity, importance: Array | None = None
) -> Array:
    """Return the scale of every weight, `(rows, inputs)`, constant inside a group.

    The scale of a group reaches to its largest magnitude, or to the share of it, 0.6 to 1, that
    makes the squared error least, each input weighted by `importance`.

    Args:
        weight: `(rows, inputs)`.
        bits: 4 or 8.
        granularity: What shares a scale.
        importance: E[x^2] of each input; all equal if not given.
    """
    rows, inputs = weight.shape
    height, width = granularity.groups(rows, inputs)
    low, high = limits_of(bits)
    shape = (rows // height, height, inputs // width, width)
    parts = weight.astype(np.float64).reshape(shape)
    peak = np.abs(parts).max(axis=(1, 3), keepdims=True)
    peak = np.where(peak > 0, peak, float(high))  # a dead group gets scale 1
    matter = np.ones(inputs) if importance is None else importance + 1e-12
    matter = matter.reshape(1, 1, -1, width)
    best, least = peak / high, np.full(peak.shape, np.inf)
    for share in SHRINKS if bits == 4 else SHRINKS[:1]:
        scale = share * peak / high
        gap = parts - np.clip(np.rint(parts / scale), low, high) * scale
        error = (gap**2 * matter).sum(axis=(1, 3), keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.broadcast_to(best, shape).reshape(rows, inputs)


def round_groups(
    weight: Array, scale: Array, bits: int, *, hessian: Array | None, how: Rounding
) -> Array:
    """Return integers `(rows, inputs)`; without a Hessian, the nearest."""
    h = np.empty((0, 0)) if hessian is None else hessian
    rule: Rounding = "nearest" if hessian is None else how
    return round_rows(weight, scale, h, limits_of(bits), rule).astype(np.int8)


def store_groups(graph: Graph, name: str, integers: Array, scale: Array, bits: int) -> str:
    """Store `(rows, inputs)` as a blocked DequantizeLinear; return the name of its `(in, out)`.

    Engines turn it and the product that reads it into one kernel over packed integers.

    Args:
        graph: Edited.
        name: The layer.
        integers: `(rows, inputs)`.
        scale: Of every integer, or `(rows, groups)` for groups of equal size.
        bits: 4 or 8.
    """
    shared = _block(scale)
    width = integers.shape[1] // scale.shape[1] * shared
    kept = np.ascontiguousarray(integers.T)
    if bits == 4:
        graph.add_tensor(pack_int4(f"{name}_int4", kept))
    else:
        graph.add_weight(f"{name}_int8", kept)
    stored = f"{name}_int{bits}"
    scales = graph.add_weight(
        f"{name}_scale", np.ascontiguousarray(scale[:, ::shared].T.astype(np.float32))
    )
    node = helper.make_node(
        "DequantizeLinear", [stored, scales], [f"{name}_restored"], f"{name}_dequantize",
        axis=0, block_size=width,
    )  # fmt: skip
    graph.insert_first(node)
    return f"{name}_restored"


def pack_int4(name: str, values: Array) -> TensorProto:
    """Return an INT4 tensor: two values per byte, the first in the low half."""
    flat = values.astype(np.int8, copy=False).reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    raw = (flat[0::2] | (flat[1::2] << 4)).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, values.shape, raw, raw=True)


def pack_rows(integers: Array) -> Array:
    """Return a table `(rows, width / 2)` of bytes: left half of each row low, right half high.

    Standard operators can take it apart again, so that every engine runs it.
    """
    shifted = (integers + 8).astype(np.uint8)
    half = integers.shape[1] // 2
    packed: Array = shifted[:, :half] | (shifted[:, half:] << 4)
    return packed


def unpack_rows(graph: Graph, out: str, rows: str, widened: str) -> list[NodeProto]:
    """Return the nodes that turn gathered bytes into float values -8 to 7."""
    sixteenth = graph.add_weight("int4_sixteenth", np.array(1 / 16, np.float32))
    sixteen = graph.add_weight("int4_sixteen", np.array(16, np.float32))
    middle = graph.add_weight("int4_middle", np.array(8, np.float32))
    part = {key: f"{out}_{key}" for key in ("bytes", "shifted", "high", "above", "low", "both")}
    steps = [
        ("Cast", [rows], "bytes", {"to": TensorProto.FLOAT}),
        ("Mul", [part["bytes"], sixteenth], "shifted", {}),
        ("Floor", [part["shifted"]], "high", {}),
        ("Mul", [part["high"], sixteen], "above", {}),
        ("Sub", [part["bytes"], part["above"]], "low", {}),
        ("Concat", [part["low"], part["high"]], "both", {"axis": -1}),
    ]
    nodes = [
        helper.make_node(operator, inputs, [part[key]], f"{out}_int4_{key}", **options)
        for operator, inputs, key, options in steps
    ]
    last = helper.make_node("Sub", [part["both"], middle], [widened], f"{out}_int4_centre")
    return [*nodes, last]


def _block(scale: Array) -> int:
    """Return how many neighbouring columns share a scale in every row."""
    changes = np.flatnonzero((np.diff(scale, axis=1) != 0).any(axis=0)) + 1
    return int(np.gcd.reduce([scale.shape[1], *changes.tolist()]))
