"""Single operators computed in numpy, by ONNX's own reference."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ingot.data.data import Array
from ingot.models.transformer._fused import DOMAIN, run_own
from ingot.models.transformer.refusal import NotRecognized

# What numpy and the reference raise for sizes and types that do not fit, or an unknown operator.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """Return the error function of every element, in the type of `x`."""
    found: Array = np.asarray(_erf(x)).astype(x.dtype)
    return found


class Operators:
    """Computes nodes one at a time; what was prepared for a node is kept."""

    def __init__(self, opsets: Any) -> None:
        """Take the operator sets of a model."""
        self._opsets = [helper.make_opsetid(o.domain, o.version) for o in opsets]
        self.opset = next((o.version for o in opsets if o.domain in ("", "ai.onnx")), 1)
        self._ready: dict[bytes, Any] = {}

    def run(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """Return what a node gives.

        Raises:
            NotRecognized: The reference cannot compute it.
        """
        own = self._own(node, inputs)
        if own is not None:
            return [own]
        from onnx.reference import ReferenceEvaluator

        label = f"{node.op_type} (node {node.name or node.output[0]!r})"
        key = node.SerializeToString()
        given = {f"i{at}": value for at, value in enumerate(inputs) if value is not None}
        try:
            if key not in self._ready:
                self._ready[key] = ReferenceEvaluator(self._model(node, inputs))
            with np.errstate(all="ignore"):  # masks hold infinities on purpose
                found = self._ready[key].run(None, given)
        except FAILURES as error:
            raise NotRecognized(f"{label} cannot be computed beside the graph: {error}") from error
        return [np.asarray(value) for value in found]

    def _own(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> Array | None:
        """Compute what the reference cannot, or only slowly; None for all else."""
        given = [np.asarray(value) for value in inputs if value is not None]
        if node.domain == DOMAIN:
            return run_own(node, given)
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Erf":
            return erf(given[0])
        if node.op_type == "GatherND" and not any(a.i for a in node.attribute):
            return _gather_nd(*given)
        if node.op_type == "GatherElements":
            return _gather_elements(node, *given)
        if node.op_type == "DequantizeLinear":
            return _dequantize(node, *given)
        return None

    def _model(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> onnx.ModelProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend("" if v is None else f"i{at}" for at, v in enumerate(inputs))
        unknown = onnx.TensorProto.UNDEFINED
        infos = [
            helper.make_tensor_value_info(f"i{at}", unknown, None)
            for at, value in enumerate(inputs)
            if value is not None
        ]
        outs = [helper.make_tensor_value_info(o, unknown, None) for o in node.output if o]
        graph = helper.make_graph([copy], "one", infos, outs)
        return helper.make_model(graph, opset_imports=self._opsets)


def _gather_nd(data: Array, indices: Array) -> Array:
    found: Array = data[tuple(np.moveaxis(indices, -1, 0))]
    return found


def _gather_elements(node: onnx.NodeProto, data: Array, indices: Array) -> Array:
    """Pick along an axis; the reference knows at most 64 rows."""
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0) % data.ndim
    kept = tuple(
        slice(None) if at == axis else slice(size) for at, size in enumerate(indices.shape)
    )
    found: Array = np.take_along_axis(data[kept], indices, axis)
    return found


def _dequantize(
    node: onnx.NodeProto, stored: Array, scale: Array, zero: Array | None = None
) -> Array:
    """Widen integers; the reference knows this operator only from opset 19 on."""
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axis, values = options.get("axis", 1), stored.astype(np.float32)
    points = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
    if options.get("block_size"):
        scale, points = (np.repeat(v, options["block_size"], axis) for v in (scale, points))
    elif scale.size > 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, points = scale.reshape(shape), points.reshape(shape)
    found: Array = (values - points.astype(np.float32)) * scale
    return found
