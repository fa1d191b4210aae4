"""Clean a float graph up so that quantization finds convolutions and linear layers in one form."""

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from ingot.compress.quantize._graph import Graph, attributes
from ingot.core.errors import RecipeError
from ingot.data.data import Array
from ingot.models.external import ExternalData, on_shell
from ingot.models.onnx_format import fix_weights

LEAST_OPSET = 13  # per-channel QuantizeLinear and DequantizeLinear
FOLD_LIMIT = 1 << 24  # elements: a folded constant must not make the file much larger
FOLDABLE = frozenset(
    ("Add", "Cast", "Concat", "Div", "Expand", "Mul", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub")
) | frozenset(("Transpose", "Unsqueeze"))
INTEGER_OPERATORS = frozenset(
    ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv")
) | frozenset(("QLinearMatMul", "QuantizeLinear"))


def prepare(
    proto: onnx.ModelProto,
    *,
    opset: int = LEAST_OPSET,
    files: ExternalData | None = None,
    fold_norms: bool = True,
) -> Graph:
    """Return the cleaned-up graph; `proto` is edited in place and its answers stay the same.

    The opset is raised to `opset` where it is older.

    Constant nodes become weights; constant expressions are computed; Identity and Dropout go;
    batch norms are folded into the convolution before them, unless `fold_norms` is off; `alpha`,
    `beta` and transposed inputs of Gemm are folded into its weights; GELU takes the form that
    engines recognise.

    Args:
        proto: The graph.
        opset: The least one that the result may have.
        files: Its large weights, if they are on disk.
        fold_norms: Whether batch norms go into the convolutions before them.

    Raises:
        RecipeError: The graph is quantized already, or its opset cannot be raised.
    """
    _check_is_float(proto)
    _raise_opset(proto, opset)
    fix_weights(proto)
    graph = Graph(proto, files=files)
    _lift_constants(graph)
    _fold_constants(graph)
    _drop_identities(graph)
    if fold_norms:
        fold_batch_norms(graph)
    _normalise_gemms(graph)
    _order_gelus(graph)
    graph.drop_unused_weights()
    return graph


def _check_is_float(proto: onnx.ModelProto) -> None:
    found = next((n for n in proto.graph.node if n.op_type in INTEGER_OPERATORS), None)
    if found is not None:
        raise RecipeError(
            f"A model must be float before it is quantized; got {found.op_type} node "
            f"{found.name!r}. Start from the float model."
        )


def _raise_opset(proto: onnx.ModelProto, least: int) -> None:
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset >= least:
        return
    try:
        proto.CopyFrom(on_shell(proto, lambda shell: _convert(shell, least)))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise RecipeError(
            f"Quantization needs opset {least} or newer; got {opset}, and it could not be "
            f"raised: {error}. Export the model again with a newer opset."
        ) from error


def _convert(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    return version_converter.convert_version(proto, opset)


def _lift_constants(graph: Graph) -> None:
    kept = []
    for node in graph.nodes:
        value = attributes(node).get("value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            graph.add_weight(node.output[0], numpy_helper.to_array(value))
        else:
            kept.append(node)
    graph.replace_nodes(kept)


def _fold_constants(graph: Graph) -> None:
    from onnx.reference import ReferenceEvaluator

    kept = []
    for node in graph.nodes:
        names = [n for n in node.input if n]
        values = {n: graph.value(n) for n in names}
        small = all(
            v is not None and (v.size <= FOLD_LIMIT or _is_layer(graph, node))
            for v in values.values()
        )
        if node.op_type not in FOLDABLE or not names or not small or graph.outputs & {*node.output}:
            kept.append(node)
            continue
        inputs = [
            helper.make_tensor_value_info(n, graph.weights[n].data_type, None) for n in values
        ]
        out = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)
        part = helper.make_graph([node], "part", inputs, [out])
        model = helper.make_model(part, opset_imports=graph.proto.opset_import)
        graph.add_weight(node.output[0], np.asarray(ReferenceEvaluator(model).run(None, values)[0]))
    graph.replace_nodes(kept)


def _is_layer(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether this turns the weight of linear layers round, which are stored as integers then."""
    readers = graph.readers.get(node.output[0], ())
    return node.op_type == "Transpose" and all(
        reader.op_type == "MatMul" and position == 1 for reader, position in readers
    )


def _drop_identities(graph: Graph) -> None:
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        unused = all(not o or o not in graph.readers for o in node.output[1:])
        is_copy = node.op_type == "Identity" or (
            node.op_type == "Dropout" and unused and not _is_training(graph, node)
        )
        if is_copy and node.output[0] not in graph.outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    graph.replace_nodes(kept)


def _is_training(graph: Graph, node: onnx.NodeProto) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return False
    value = graph.value(node.input[2])
    return value is None or bool(value)


def fold_batch_norms(graph: Graph) -> dict[str, Array]:
    """Fold each batch norm into the convolution before it, in place.

    Returns:
        Convolution -> what its output channels were multiplied by, `(channels,)`, float64.
    """
    factors: dict[str, Array] = {}
    folded: set[str] = set()
    for conv, norm in foldable_norms(graph):
        factors[conv.name] = _fold_batch_norm(graph, conv, norm)
        folded.add(norm.name)
    graph.replace_nodes([n for n in graph.nodes if n.name not in folded])
    graph.drop_unused_weights()
    return factors


def foldable_norms(graph: Graph) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Return every (convolution, batch norm) that can become one convolution."""
    norms = [n for n in graph.nodes if n.op_type == "BatchNormalization"]
    pairs = [(graph.maker.get(norm.input[0]), norm) for norm in norms]
    return [(c, n) for c, n in pairs if c is not None and _can_fold(graph, c, n)]


def norm_factor(graph: Graph, norm: onnx.NodeProto) -> Array:
    """Return g / sqrt(v + e) of a batch norm, `(channels,)`, float64."""
    gamma, var = _double(graph, norm.input[1]), _double(graph, norm.input[4])
    epsilon = float(attributes(norm).get("epsilon", 1e-5))  # type: ignore[arg-type] # a float attribute
    factor: Array = gamma / np.sqrt(var + epsilon)
    return factor


def _can_fold(graph: Graph, conv: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    parameters = [*norm.input[1:5], *conv.input[1:]]
    return (
        conv.op_type == "Conv"
        and len(graph.readers.get(conv.output[0], ())) == 1
        and conv.output[0] not in graph.outputs
        and all(graph.is_float_weight(name) for name in parameters)
        and not attributes(norm).get("training_mode", 0)
    )


def _fold_batch_norm(graph: Graph, conv: onnx.NodeProto, norm: onnx.NodeProto) -> Array:
    """W' = W g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta, in double precision."""
    beta, mean = _double(graph, norm.input[2]), _double(graph, norm.input[3])
    factor = norm_factor(graph, norm)
    weight = _double(graph, conv.input[1])
    bias = _double(graph, conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weight))
    shaped = factor.reshape(-1, *[1] * (weight.ndim - 1))
    name = f"{conv.output[0]}_folded"
    inputs = [
        conv.input[0],
        graph.add_weight(f"{name}_weight", (weight * shaped).astype(np.float32)),
        graph.add_weight(f"{name}_bias", ((bias - mean) * factor + beta).astype(np.float32)),
    ]
    del conv.input[:]
    conv.input.extend(inputs)
    conv.output[0] = norm.output[0]
    return factor


def _double(graph: Graph, name: str) -> Array:
    value = graph.value(name)
    assert value is not None
    return value.astype(np.float64)


def _order_gelus(graph: Graph) -> None:
    """Rewrite `x (0.5 (1 + erf))` as `(x (1 + erf)) 0.5`: the form ONNX Runtime fuses. Exact."""
    for erf in [n for n in graph.nodes if n.op_type == "Erf"]:
        plus = _only_reader(graph, erf.output[0], "Add")
        half = _only_reader(graph, plus.output[0], "Mul") if plus is not None else None
        last = _only_reader(graph, half.output[0], "Mul") if half is not None else None
        if plus is None or half is None or last is None:
            continue
        constant = half.input[0] if half.input[1] == plus.output[0] else half.input[1]
        value = graph.value(constant)
        x = last.input[0] if last.input[1] == half.output[0] else last.input[1]
        if value is None or value.size != 1 or value.item() != 0.5 or x == half.output[0]:
            continue
        half.input[0], half.input[1] = x, plus.output[0]
        last.input[0], last.input[1] = half.output[0], constant
    graph.index()


def _only_reader(graph: Graph, name: str, operator: str) -> onnx.NodeProto | None:
    readers = graph.readers.get(name, ())
    if len(readers) != 1 or name in graph.outputs or readers[0][0].op_type != operator:
        return None
    return readers[0][0]


def _normalise_gemms(graph: Graph) -> None:
    """Make every Gemm with constant weights `x W + b`, W stored as (in, out)."""
    for node in graph.nodes:
        if node.op_type != "Gemm" or not graph.is_float_weight(node.input[1]):
            continue
        options = attributes(node)
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if options.get("transA") or (has_bias and not graph.is_float_weight(node.input[2])):
            continue
        _normalise_gemm(graph, node, options)
    graph.index()


def _normalise_gemm(graph: Graph, node: onnx.NodeProto, options: dict[str, object]) -> None:
    weight = graph.value(node.input[1])
    assert weight is not None
    alpha, beta = np.float32(options.get("alpha", 1.0)), np.float32(options.get("beta", 1.0))  # type: ignore[arg-type] # float attributes
    if options.get("transB") or alpha != 1:
        value = np.ascontiguousarray(weight.T if options.get("transB") else weight) * alpha
        node.input[1] = graph.add_weight(f"{node.output[0]}_weight", value)
        weight = value
    if len(node.input) > 2 and node.input[2]:
        bias = graph.value(node.input[2])
        assert bias is not None
        if bias.size in (1, weight.shape[1]):
            value = np.broadcast_to(bias.reshape(-1) * beta, (weight.shape[1],))
            node.input[2] = graph.add_weight(f"{node.output[0]}_bias", np.ascontiguousarray(value))
            beta = np.float32(1)
    del node.attribute[:]
    if beta != 1:
        node.attribute.append(helper.make_attribute("beta", float(beta)))
