"""inspect_model: what a model is made of, what it costs, and what can be compressed."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from ingot.core.digest import Json
from ingot.models.model import Model, Signature
from ingot.models.onnx_format import open_onnx, subgraphs

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_PRODUCTS = {"MatMul", "Gemm"}
_TABLES = {"Gather", "GatherElements", "EmbedLayerNormalization"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
_ROUNDS = 4  # of shape inference; each resolves sizes that the one before made known
# method -> operators whose weights it turns into integers
_FAMILIES: Mapping[str, set[str]] = {
    "int8 dynamic": _PRODUCTS | _RECURRENT,
    "int8 static": _PRODUCTS | _CONVOLUTIONS,
    "weight-only int8": _PRODUCTS | {"Gather"},
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One node that holds weights, or multiplies matrices.

    Attributes:
        name: Node name.
        operator: ONNX operator.
        parameters: Values in its constant float inputs; shared ones count with their first layer.
        macs: Multiply-accumulates at the nominal sizes; None where shapes are not known.
        weight_shape: Shape of its largest weight, or empty.
    """

    name: str
    operator: str
    parameters: int
    macs: int | None
    weight_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compressible:
    """What one family of methods can do here.

    Attributes:
        method: Its name.
        layers: Layers it can compress.
        parameter_share: Share of all parameters that these hold, 0 to 1.
        reason: Why the rest stays as it is.
    """

    method: str
    layers: int
    parameter_share: float
    reason: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        signature: Inputs and outputs.
        parameters: Values in float weights.
        bytes_by_dtype: Bytes of constants by element type.
        macs: Multiply-accumulates of all layers, None if any layer's is unknown.
        batch: Batch size that `macs` is for.
        sequence: Nominal size of every other dynamic axis that `macs` is for.
        operators: Operator -> nodes, most frequent first.
        layers: Nodes with weights or matrix products, in graph order.
        compressible: One entry per family of methods.
    """

    signature: Signature
    parameters: int
    bytes_by_dtype: Mapping[str, int]
    macs: int | None
    batch: int
    sequence: int
    operators: Mapping[str, int]
    layers: tuple[Layer, ...]
    compressible: tuple[Compressible, ...]

    def to_json(self) -> Json:
        """Return the JSON form."""
        return {
            "signature": self.signature.to_json(),
            "parameters": self.parameters,
            "bytes_by_dtype": dict(self.bytes_by_dtype),
            "macs": self.macs,
            "batch": self.batch,
            "sequence": self.sequence,
            "operators": dict(self.operators),
            "layers": [asdict(x) | {"weight_shape": list(x.weight_shape)} for x in self.layers],
            "compressible": [asdict(c) for c in self.compressible],
        }


def inspect_model(model: Model, *, sequence: int = 128) -> Inspection:
    """Return signature, parameters, bytes, MACs, operators, layers and what can be compressed.

    Args:
        model: The model; its graph is read, nothing is run.
        sequence: Size to assume for every dynamic axis but the first when MACs are counted; the
            first axis is taken as 1.

    Raises:
        ModelError: The stored graph cannot be read.
    """
    with open_onnx(model.onnx_path, scratch=model.path) as net:  # sizes only: weights stay on disk
        proto = net.proto
    weights = _weights(proto)
    shapes = _shapes(proto, model.signature, sequence)
    layers = _layers(proto, weights, shapes)
    counted = [layer.macs for layer in layers if layer.operator not in _TABLES]
    sizes: Counter[str] = Counter()
    for dtype, shape in weights.values():
        sizes[dtype.name] += math.prod(shape) * dtype.itemsize
    parameters = sum(math.prod(s) for d, s in weights.values() if _is_float(d))
    operators = Counter(n.op_type for g in subgraphs(proto.graph) for n in g.node)
    return Inspection(
        model.signature,
        parameters,
        dict(sizes.most_common()),
        None if None in counted else sum(m or 0 for m in counted),
        1,
        sequence,
        dict(operators.most_common()),
        layers,
        tuple(_family(name, ops, layers, parameters) for name, ops in _FAMILIES.items()),
    )


def _is_float(dtype: Any) -> bool:
    return dtype.kind == "f" or dtype.name in {"bfloat16", "int8", "uint8"}


def _weights(proto: onnx.ModelProto) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return name -> (dtype, shape) of initializers and Constant nodes, in subgraphs too."""
    found: dict[str, tuple[Any, tuple[int, ...]]] = {}

    def add(name: str, tensor: Any) -> None:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        found.setdefault(name, (dtype, tuple(tensor.dims)))

    for graph in subgraphs(proto.graph):
        for tensor in graph.initializer:
            add(tensor.name, tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    add(node.output[0], attribute.t)
    return found


def _shapes(
    proto: onnx.ModelProto, signature: Signature, sequence: int
) -> dict[str, tuple[int | None, ...]]:
    """Infer shapes with the first axis 1 and every other dynamic axis `sequence`."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    sizes = {
        size: 1 if axis == 0 or size == "batch" else sequence
        for spec in reversed(signature.inputs)
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }
    for value in fixed.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_param or f"axis{axis}", 1)
    shapes: dict[str, tuple[int | None, ...]] = {}
    for _ in range(_ROUNDS):
        shapes = _infer(fixed)
        if not _fold_sizes(fixed.graph, shapes):
            break
    return shapes


def _infer(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    for graph in subgraphs(proto.graph):
        del graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        )
        for graph in subgraphs(inferred.graph)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _fold_sizes(graph: Any, shapes: Mapping[str, tuple[int | None, ...]]) -> bool:
    """Replace Shape nodes whose answer is known: ONNX's inference does not follow them far."""
    done = []
    for node in graph.node:
        known = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if known is None or None in known:
            continue
        limits = {a.name: a.i for a in node.attribute}
        part = known[limits.get("start", 0) : limits.get("end", len(known))]
        value = np.array(part, np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
        done.append(node)
    for node in done:
        graph.node.remove(node)
    return bool(done)


def _layers(proto: onnx.ModelProto, weights: Any, shapes: Any) -> tuple[Layer, ...]:
    seen: set[str] = set()
    layers = []
    for graph in subgraphs(proto.graph):
        for node in graph.node:
            mine = [s for s in node.input if s in weights and _is_float(weights[s][0])]
            fresh = [s for s in dict.fromkeys(mine) if s not in seen]
            seen.update(fresh)
            counted = node.op_type in _CONVOLUTIONS | _PRODUCTS | _RECURRENT
            parameters = sum(math.prod(weights[s][1]) for s in fresh)
            if not counted and not parameters:
                continue
            shape = max((weights[s][1] for s in mine), key=math.prod, default=())
            macs = _macs(node, weights, shapes) if counted else 0
            layers.append(Layer(node.name, node.op_type, parameters, macs, tuple(shape)))
    return tuple(layers)


def _macs(node: Any, weights: Any, shapes: Any) -> int | None:
    def shape(name: str) -> tuple[int | None, ...] | None:
        return tuple(weights[name][1]) if name in weights else shapes.get(name)

    first, second, out = shape(node.input[0]), shape(node.input[1]), shape(node.output[0])
    if first is None or second is None or node.op_type in _RECURRENT:
        return None
    if node.op_type == "Gemm":
        flipped = any(a.name == "transA" and a.i for a in node.attribute)
        return _product((*(out or (None,)), first[0 if flipped else 1]))
    if node.op_type == "MatMul":
        return _product((*(out or (None,)), first[-1])) if len(first) else None
    # a convolution does one kernel per output position, a transposed one per input position
    where = out if node.op_type == "Conv" else first
    if where is None:
        return None
    return _product((where[0], *where[2:], second[0], *second[1:]))


def _product(sizes: tuple[int | None, ...]) -> int | None:
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def _family(name: str, operators: set[str], layers: tuple[Layer, ...], total: int) -> Compressible:
    able = [
        x for x in layers if x.operator in operators and len(x.weight_shape) >= 2 and x.parameters
    ]
    rest = Counter(x.operator for x in layers if x not in able and x.parameters)
    share = sum(x.parameters for x in able) / total if total else 0.0
    if not rest:
        return Compressible(name, len(able), share, "nothing is left")
    listing = ", ".join(f"{count} {op}" for op, count in rest.most_common(4))
    return Compressible(name, len(able), share, f"{listing}: {_why(name)}")


def _why(name: str) -> str:
    if name == "int8 dynamic":
        return (
            "dynamic ranges pay only in matrix products; the rest is small or has no integer kernel"
        )
    if name == "int8 static":
        return "looked up, normalised or recurrent weights have no integer kernel on every engine"
    return "only matrices that are multiplied or looked up are stored as integers"
