"""Rotation: spread outlier channels over all channels, without changing any answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper

from ingot.compress.method import Method
from ingot.compress.quantize._graph import Graph, known_dims
from ingot.compress.quantize._rotations import hadamard_rotation, mean_keeping_rotation
from ingot.compress.quantize._stream import Stream, find_streams
from ingot.compress.quantize._values import ValuePath, find_value_paths
from ingot.compress.quantize.placement import linear_layers
from ingot.compress.quantize.prepare import prepare
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Array, Data
from ingot.models.network import Form, Network, OnnxNetwork

ACTIVATIONS = frozenset(
    ("Div", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mul", "Relu", "Selu", "Sigmoid", "Softplus")
) | frozenset(("Swish", "Tanh"))
SMALLEST_BLOCK, LARGEST_BLOCK = 4, 64


@dataclass(frozen=True)
class Rotate(Method):
    """Rotate what linear layers hand to each other, so that no channel sticks out; answers stay.

    Weights take up two rotations:

    - values: attention mixes rows of V, not columns, so the columns of each head can be rotated by
      a Hadamard matrix in the projection that makes them and back in the one that reads them;
    - the residual stream of a pre-norm network: gains and shifts of its layer norms move into the
      layers that read them, and a rotation Q with `Q 1 = 1` commutes with what is left,
      LN(x Q) = LN(x) Q. It stays out, with the reason in the log, where anything but linear layers,
      embeddings, sums and norms touches the stream, as in all post-norm networks (BERT). Behind a
      norm that no linear layer reads, the last of an encoder, one product rotates back: the only
      one that is computed when the network runs.

    A third, `online`, is computed when the network runs: in front of linear layers that read an
    activation function (the second half of a feed-forward), blocks of up to 64 channels are
    multiplied by a Hadamard matrix, in float. It costs at most 64 products per channel of a row.

    Put it in front of a quantizer. It needs no data; signs and the parts of the matrices that are
    not Hadamard come from the seed. A layer with no outliers may lose a little.

    Attributes:
        values: Rotate the values of attention.
        stream: Rotate residual streams.
        online: Rotate what linear layers read from activation functions.

    References:
        Ashkboos et al., QuaRot, 2024. arXiv:2404.00456
        Tseng et al., QuIP#, 2024. arXiv:2402.04396
    """

    values: bool = True
    stream: bool = True
    online: bool = False

    form: ClassVar[Form] = "onnx"

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        if not (self.values or self.stream or self.online):
            raise RecipeError(
                "Rotate must rotate values, streams or activations; got none of them. "
                "Leave one setting out."
            )

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the rotated network.

        Raises:
            RecipeError: Nothing can be rotated; the first reasons are named.
        """
        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto)
        streams, refused = find_streams(graph) if self.stream else ([], {})
        paths, left = find_value_paths(graph) if self.values else ([], {})
        refused |= left
        activations = _activations(graph) if self.online else []
        if not streams and not paths and not activations:
            raise RecipeError(_nothing(refused))
        for name, reason in refused.items():
            run.log(name, operator=graph.by_name[name].op_type, left=reason)
        rng = np.random.default_rng(run.seed)
        for path in paths:
            _rotate_values(graph, path, rng, run)
        for stream in streams:
            _rotate_stream(graph, stream, rng, run)
        for tensor, layers in activations:
            _rotate_online(graph, tensor, layers, rng, run)
        graph.index()
        graph.drop_unused_weights()
        return OnnxNetwork(graph.proto)


def _activations(graph: Graph) -> list[tuple[tuple[str, int], list[str]]]:
    """Return (result of an activation function, its rank) and the linear layers that read it."""
    found: dict[str, list[str]] = {}
    for name in linear_layers(graph, ("Gemm", "MatMul")):
        node = graph.by_name[name]
        maker, weight = graph.maker.get(node.input[0]), graph.weights[node.input[1]]
        if maker is None or maker.op_type not in ACTIVATIONS or len(weight.dims) != 2:
            continue
        if _block(weight.dims[0]) >= SMALLEST_BLOCK:
            found.setdefault(node.input[0], []).append(name)
    dims = known_dims(graph.proto)
    known = ((tensor, len(dims.get(tensor, [])), layers) for tensor, layers in found.items())
    return [((tensor, rank), layers) for tensor, rank, layers in known if rank]


def _block(width: int) -> int:
    """Return the largest power of two that divides the width, up to 64."""
    return min(width & -width, LARGEST_BLOCK)


def _rotate_online(
    graph: Graph, at: tuple[str, int], layers: list[str], rng: np.random.Generator, run: Run
) -> None:
    """Channel i b + j of b blocks becomes sum_k R_ik x_kj; rows of the weights likewise.

    The matrix stands on the left, so no quantizer takes it for the weights of a layer.
    """
    width = graph.weights[graph.by_name[layers[0]].input[1]].dims[0]
    size, (tensor, rank) = _block(width), at
    lead = rank - 1
    rotation = hadamard_rotation(size, rng)
    matrix = graph.add_weight(f"{tensor}_hadamard", rotation.astype(np.float32))
    split = graph.add_weight(
        f"{tensor}_split", np.array([0] * lead + [size, width // size], np.int64)
    )
    join = graph.add_weight(f"{tensor}_join", np.array([0] * lead + [width], np.int64))
    parts = [f"{tensor}_{part}" for part in ("blocks", "rotated_blocks", "rotated")]
    made = [
        helper.make_node("Reshape", [tensor, split], [parts[0]], parts[0]),
        helper.make_node("MatMul", [matrix, parts[0]], [parts[1]], parts[1]),
        helper.make_node("Reshape", [parts[1], join], [parts[2]], parts[2]),
    ]
    for name in layers:
        node = graph.by_name[name]
        weight = _value(graph, node, 1)
        rotated = np.tensordot(rotation, weight.reshape(size, width // size, -1), axes=1)
        _store(graph, node, 1, rotated.reshape(weight.shape))
        node.input[0] = parts[2]
        facts = {"weight_peak_before": _peak(weight), "weight_peak_after": _peak(rotated)}
        run.log(name, rotated="input", block=size, **facts)
    maker = graph.maker[tensor].name
    for new in reversed(made):
        _insert_after(graph, maker, new)


def _nothing(refused: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{name!r}: {why}" for name, why in list(refused.items())[:3])
    return (
        "Rotate must find attention whose values come from one linear layer and go to another, or "
        f"the residual stream of a pre-norm network; got neither ({reasons or 'no attention'}). "
        "Leave this method out of the recipe."
    )


def _rotate_values(graph: Graph, path: ValuePath, rng: np.random.Generator, run: Run) -> None:
    """W_v <- W_v R, b_v <- b_v R, W_o <- R^T W_o, head by head."""
    heads, size = path.columns.shape
    rotation = hadamard_rotation(size, rng)
    first, second = graph.by_name[path.value], graph.by_name[path.output]
    one, two = _value(graph, first, 1), _value(graph, second, 1)
    peaks = {"value": _peak(one[:, path.columns.ravel()]), "output": _peak(two)}
    one[:, path.columns] = one[:, path.columns] @ rotation
    two[path.rows] = rotation.T @ two[path.rows]
    _store(graph, first, 1, one)
    _store(graph, second, 1, two)
    if path.bias is not None:
        node = graph.by_name[path.bias[0]]
        bias = _value(graph, node, path.bias[1])
        bias[path.columns] = bias[path.columns] @ rotation
        _store(graph, node, path.bias[1], bias)
    run.log(
        path.output,
        rotated="values",
        heads=heads,
        head_size=size,
        value_peak_before=peaks["value"],
        value_peak_after=_peak(one[:, path.columns.ravel()]),
        output_peak_before=peaks["output"],
        output_peak_after=_peak(two),
    )


def _rotate_stream(graph: Graph, stream: Stream, rng: np.random.Generator, run: Run) -> None:
    """Writers get W Q and b Q; readers Q^T diag(g) W and a bias of b W; norms lose g and b."""
    rotation = mean_keeping_rotation(stream.width, rng)
    names = [*stream.writers, *(n for n in stream.readers if n not in stream.writers)]
    before = max(_peak(_value(graph, graph.by_name[n], 1)) for n in names)
    _rotate_constants(graph, stream, rotation)
    for name in stream.writers:
        _rotate_outputs(graph, graph.by_name[name], rotation)
    for name, norm in stream.readers.items():
        if norm is not None:
            _take_affine(graph, graph.by_name[name], graph.by_name[norm])
        node = graph.by_name[name]  # a shift may have been put behind it
        _store(graph, node, 1, rotation.T @ _value(graph, node, 1))
    for name in stream.restored:
        _restore(graph, name, rotation)
    for name in stream.norms:
        node = graph.by_name[name]
        for position in (i for i in range(1, len(node.input)) if node.input[i]):
            _store(graph, node, position, np.full(stream.width, float(position == 1)))
    run.log(
        f"stream at {stream.norms[0]}",
        rotated="stream",
        width=stream.width,
        norms=len(stream.norms),
        writers=len(stream.writers),
        readers=len(stream.readers),
        rotated_back=len(stream.restored),
        weight_peak_before=before,
        weight_peak_after=max(_peak(_value(graph, graph.by_name[n], 1)) for n in names),
    )


def _restore(graph: Graph, name: str, rotation: Array) -> None:
    """Put x Q^T diag(g) + b behind a norm: what it gave before."""
    norm = graph.by_name[name]
    out, matrix = norm.output[0], rotation.T * _value(graph, norm, 1)
    shift = _value(graph, norm, 2) if len(norm.input) > 2 and norm.input[2] else None
    norm.output[0] = f"{out}_rotated"
    stored = graph.add_weight(f"{name}_back", np.ascontiguousarray(matrix, np.float32))
    product = helper.make_node("MatMul", [norm.output[0], stored], [out], f"{name}_rotate_back")
    _insert_after(graph, name, product)
    if shift is not None and shift.any():
        _add_shift(graph, graph.by_name[product.name], shift)


def _rotate_constants(graph: Graph, stream: Stream, rotation: Array) -> None:
    """Rotate embedding tables and constants once each, under names of this stream's own."""
    for name, position in stream.constants:
        node = graph.by_name[name]
        added = f"{node.input[position]}_rotated_{stream.norms[0]}"
        if added not in graph.weights:
            value = _value(graph, node, position) @ rotation
            graph.add_weight(added, value.astype(np.float32))
        node.input[position] = added


def _rotate_outputs(graph: Graph, node: onnx.NodeProto, rotation: Array) -> None:
    """Rotate weights and bias along the output channels."""
    for position in (i for i in range(1, len(node.input)) if node.input[i]):
        value = _value(graph, node, position)
        axis = 0 if node.op_type == "Conv" else value.ndim - 1
        rotated = np.moveaxis(value, axis, -1) @ rotation
        _store(graph, node, position, np.moveaxis(rotated, -1, axis))


def _take_affine(graph: Graph, node: onnx.NodeProto, norm: onnx.NodeProto) -> None:
    """Let a linear layer take up gain and shift of the norm it reads: x W = n (g W) + b W."""
    weight = _value(graph, node, 1)
    gain = _value(graph, norm, 1)
    _store(graph, node, 1, gain[:, None] * weight)
    if len(norm.input) < 3 or not norm.input[2]:
        return
    shift = _value(graph, norm, 2) @ weight
    if not shift.any():
        return
    readers = graph.readers.get(node.output[0], [])
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
        _store(graph, node, 2, _value(graph, node, 2) + shift)
    elif len(readers) == 1 and _adds_vector(graph, readers[0], len(shift)):
        reader, position = readers[0]
        _store(graph, reader, 1 - position, _value(graph, reader, 1 - position) + shift)
    else:
        _add_shift(graph, node, shift)


def _adds_vector(graph: Graph, reader: tuple[onnx.NodeProto, int], width: int) -> bool:
    node, position = reader
    if node.op_type != "Add" or not graph.is_float_weight(node.input[1 - position]):
        return False
    return list(graph.weights[node.input[1 - position]].dims) == [width]


def _add_shift(graph: Graph, node: onnx.NodeProto, shift: Array) -> None:
    """Add a constant to the result of a layer that has no bias yet."""
    stored = graph.add_weight(f"{node.name}_shift", shift.astype(np.float32))
    if node.op_type == "Gemm":
        del node.input[2:]
        node.input.append(stored)
        return
    out, name = node.output[0], node.name
    node.output[0] = f"{out}_unshifted"
    add = helper.make_node("Add", [node.output[0], stored], [out], f"{name}_add_shift")
    _insert_after(graph, name, add)


def _insert_after(graph: Graph, name: str, node: onnx.NodeProto) -> None:
    nodes = graph.nodes
    at = next(i + 1 for i, n in enumerate(nodes) if n.name == name)
    graph.replace_nodes([*nodes[:at], node, *nodes[at:]])


def _value(graph: Graph, node: onnx.NodeProto, position: int) -> Array:
    """Return a constant input in double precision, as a copy."""
    value = graph.value(node.input[position])
    assert value is not None
    return value.astype(np.float64)


def _store(graph: Graph, node: onnx.NodeProto, position: int, value: Array) -> None:
    """Give a node a constant of its own: the old one may be shared."""
    name = f"{node.name}_rotated_{position}"
    node.input[position] = graph.add_weight(name, np.ascontiguousarray(value, np.float32))


def _peak(weight: Array) -> float:
    """Return the largest magnitude over the root mean square: what makes a grid coarse."""
    power = float(np.sqrt(np.mean(weight**2)))
    return float(np.abs(weight).max()) / power if power else 0.0
