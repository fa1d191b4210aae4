"""ONNX files: read with their weights, checked before any engine sees them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs

from ingot.core.errors import ModelError
from ingot.core.names import suggest

# Every engine of the default install has run these for years; newer ones are probed.
_SETTLED_OPSET = 21
_PROTO_LIMIT = 2_000_000_000
_STANDARD = ("", "ai.onnx")
_VENDOR = "com.microsoft"
_WEIGHT_READERS = {
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "GRU",
    "Gemm",
    "LSTM",
    "LayerNormalization",
    "MatMul",
}


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return the graph of an ONNX file with all its weights inside, checked and with named nodes.

    Args:
        path: The `.onnx` file. External data must lie in the same folder or below it.

    Raises:
        ModelError: The file is missing, broken, too new, holds an unknown operator or weights that
            are not finite, or points outside its folder.
    """
    if not path.is_file():
        raise ModelError(f"An ONNX model must be a file; got {str(path)!r}. Check the path.")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, RecursionError) as error:
        raise _broken(path.name, str(error)) from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise _broken(path.name, "it holds no graph")
    _read_external(proto, path.parent)
    return check_graph(proto, path.name)


def check_graph(proto: onnx.ModelProto, name: str = "model") -> onnx.ModelProto:
    """Check a graph, infer its shapes, fix its weights and name every node; returns the result.

    Args:
        proto: Graph with its weights inside; not changed.
        name: What to call it in messages.

    Raises:
        ModelError: The graph cannot be served: the message says which node or tensor is at fault.
    """
    _check_versions(proto, name)
    _check_operators(proto, name)
    _check_finite(proto, name)
    _check_values(proto, name)
    if proto.ByteSize() < _PROTO_LIMIT:
        try:
            onnx.checker.check_model(proto)
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _broken(name, str(error).strip().splitlines()[0]) from error
    fix_weights(proto)
    name_nodes(proto)
    return proto


def fix_weights(proto: onnx.ModelProto) -> None:
    """Take weights off the list of inputs, where old exporters put them as defaults.

    An engine may not fold or pack a weight that a caller may replace: such a model is slow.
    """
    weights = {w.name for w in proto.graph.initializer}
    kept = [i for i in proto.graph.input if i.name not in weights]
    if len(kept) < len(proto.graph.input):
        kept = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in kept]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give every unnamed or twice-named node a name made of its operator and first output."""
    seen: set[str] = set()
    for graph in subgraphs(proto.graph):
        for node in graph.node:
            if not node.name or node.name in seen:
                base = f"{node.op_type}_{next((o for o in node.output if o), 'none')}"
                node.name, k = base, 1
                while node.name in seen:
                    node.name, k = f"{base}_{k}", k + 1
            seen.add(node.name)


def subgraphs(graph: Any) -> Iterator[Any]:
    """Give a graph and every graph inside it (the branches of If, the body of Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)
            for inner in attribute.graphs:
                yield from subgraphs(inner)


def tensors_of(proto: onnx.ModelProto) -> Iterator[Any]:
    """Give every constant tensor: initializers and tensor attributes, in subgraphs too."""
    for graph in subgraphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
        yield from _node_tensors(graph.node)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _read_external(proto: onnx.ModelProto, folder: Path) -> None:
    for tensor in tensors_of(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            tensor.raw_data = _external_bytes(tensor, facts, folder)
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT


def _external_bytes(tensor: Any, facts: dict[str, str], folder: Path) -> bytes:
    location = facts.get("location", "")
    home = folder.resolve()
    path = (home / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(home):
        raise ModelError(
            f"External data must lie in the model's own folder; tensor {tensor.name!r} points to "
            f"{location!r}. Do not use this file unless you know who made it; save the model again "
            "with its weights beside it."
        )
    if not path.is_file():
        raise ModelError(
            f"External data of the model must lie beside it; {location!r} is not there (tensor "
            f"{tensor.name!r} needs it). Copy that file into the same folder."
        )
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    want = math.prod(tensor.dims) * width
    have = path.stat().st_size
    try:
        offset = int(facts.get("offset", 0))
        length = int(facts.get("length", want))
    except ValueError as error:
        raise _broken(location, f"tensor {tensor.name!r} has no valid offset or length") from error
    if offset < 0 or length != want or offset + length > have:
        raise ModelError(
            f"External data of tensor {tensor.name!r} must be {want:,} bytes; the file says offset "
            f"{offset:,}, length {length:,}, and {location!r} holds {have:,}. It is truncated or "
            "belongs to another model: copy it again."
        )
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _check_versions(proto: onnx.ModelProto, name: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{name} must have IR version {onnx.IR_VERSION} or lower; got {proto.ir_version}. "
            "Upgrade onnx and onnxruntime, or export the model again with a lower opset."
        )
    for entry in proto.opset_import:
        if entry.domain not in _STANDARD:
            continue
        if entry.version > newest or (
            entry.version > _SETTLED_OPSET and not _runs_opset(entry.version)
        ):
            raise ModelError(
                f"{name} must use an opset that the installed onnx ({newest}) and onnxruntime "
                f"support; got opset {entry.version}. Export it with opset 18, or upgrade both."
            )
    if not proto.opset_import:
        raise _broken(name, "it imports no operator set")


def _runs_opset(version: int) -> bool:
    """Ask ONNX Runtime with a graph of one node: it publishes no number to compare with."""
    import onnxruntime

    spec = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", spec[:1], spec[1:]
    )
    probe = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    probe.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (RuntimeError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        return False
    return True


def _check_operators(proto: onnx.ModelProto, name: str) -> None:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if "" in opsets or "ai.onnx" in opsets:
        opsets[""] = opsets.get("", opsets.get("ai.onnx", 1))
    local = {(function.domain, function.name) for function in proto.functions}
    for graph in subgraphs(proto.graph):
        for node in graph.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (domain, node.op_type) in local or _is_known(node.op_type, domain, opsets):
                continue
            where = node.name or next((o for o in node.output if o), "?")
            full = f"{domain or 'ai.onnx'}::{node.op_type}"
            known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
            hint = suggest(node.op_type, known).split("Valid:")[0]
            raise ModelError(
                f"Every operator of {name} must be known to ONNX or ONNX Runtime at its opset; "
                "node "
                f"{where!r} uses {full} (opset {opsets.get(domain, 'not imported')}). {hint}"
                "Export the model without it, or replace that node with standard operators."
            )


def _is_known(operator: str, domain: str, opsets: dict[str, int]) -> bool:
    if domain == _VENDOR or domain.startswith(_VENDOR + "."):
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        return any(
            s.name == operator and s.domain == domain for s in state.get_all_operator_schema()
        )
    return domain in opsets and bool(onnx.defs.has(operator, opsets[domain], domain))


def _check_finite(proto: onnx.ModelProto, name: str) -> None:
    read = {
        source
        for graph in subgraphs(proto.graph)
        for node in graph.node
        if node.op_type in _WEIGHT_READERS
        for source in node.input
    }
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    for tensor in tensors_of(proto):
        if tensor.data_type not in floats:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except ValueError as error:
            raise _broken(name, f"tensor {tensor.name!r} is not as large as it says") from error
        if np.isfinite(values).all() or (tensor.name not in read and _is_mask(values)):
            continue
        bad = int((~np.isfinite(values)).sum())
        raise ModelError(
            f"Weights of {name} must be finite; tensor {tensor.name!r} holds {bad:,} NaN or "
            "infinite "
            f"of {values.size:,} values. Its training diverged or the file is damaged: use an "
            "earlier checkpoint."
        )


def _is_mask(values: Any) -> bool:
    """Attention masks hold minus infinity on purpose: only 0, 1 and infinities, never NaN."""
    return bool((np.isinf(values) | (values == 0) | (np.abs(values) == 1)).all())


def _check_values(proto: onnx.ModelProto, name: str) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
            raise ModelError(
                f"Inputs and outputs of {name} must be tensors; {value.name!r} is not. Export the "
                "model so that it takes and gives tensors (for classifiers from other libraries: "
                "without the ZipMap step)."
            )


def _broken(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} must be a whole, valid ONNX model; {why}. Copy or export the file again."
    )
