"""ONNX files: read with their weights or opened with them on disk; checked before any engine."""

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs

from ingot.core.errors import ModelError
from ingot.core.names import suggest
from ingot.data.data import Array
from ingot.models.external import (
    PAGE,
    ExternalData,
    is_external,
    on_shell,
    size_bytes,
    take_in,
)
from ingot.models.network import OnnxNetwork

# Every engine of the default install has run these for years; newer ones are probed.
_SETTLED_OPSET = 21
_PROTO_LIMIT = 2_000_000_000
_PIECE = 1 << 20
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


def read_onnx(path: Path, skeleton: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """Return the graph of an ONNX file with all its weights inside, checked and with named nodes.

    Args:
        path: The `.onnx` file. External data must lie in the same folder or below it.
        skeleton: What `read_skeleton` gave for it, if it was read already; edited in place.

    Raises:
        ModelError: The file is missing, broken, too new, holds an unknown operator or weights that
            are not finite, or points outside its folder.
    """
    proto = skeleton or read_skeleton(path)
    for tensor in filter(is_external, tensors_of(proto)):
        take_in(tensor, path.parent)
    return check_graph(proto, path.name)


@contextlib.contextmanager
def open_onnx(path: Path, *, scratch: Path, inline_below: int = PAGE) -> Iterator[OnnxNetwork]:
    """Give the graph of an ONNX file, checked, while its large external weights stay on disk.

    Each weight is read through a memory map as long as it is in use: memory holds a layer, not a
    model.

    Args:
        path: The `.onnx` file.
        scratch: Folder on whose disk weights lie that are made anew.
        inline_below: Bytes; smaller weights are read into the graph.

    Raises:
        ModelError: As for `read_onnx`.
    """
    proto = read_skeleton(path)
    with ExternalData(scratch, inline_below=inline_below) as files:
        for tensor in filter(is_external, proto.graph.initializer):
            files.claim(tensor, path.parent)
        for tensor in islice(tensors_of(proto), len(proto.graph.initializer), None):
            if is_external(tensor):
                take_in(tensor, path.parent)
        yield OnnxNetwork(check_graph(proto, path.name, files), files)


def read_skeleton(path: Path) -> onnx.ModelProto:
    """Return the graph of an ONNX file without its external data, unchecked.

    Raises:
        ModelError: The file is missing or broken.
    """
    if not path.is_file():
        raise ModelError(f"An ONNX model must be a file; got {str(path)!r}. Check the path.")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, RecursionError) as error:
        raise _broken(path.name, str(error)) from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise _broken(path.name, "it holds no graph")
    return proto


def external_bytes(proto: onnx.ModelProto) -> int:
    """Return how many bytes a graph says it has in other files."""
    return sum(size_bytes(tensor) for tensor in filter(is_external, tensors_of(proto)))


def check_graph(
    proto: onnx.ModelProto, name: str = "model", files: ExternalData | None = None
) -> onnx.ModelProto:
    """Check a graph, infer its shapes, fix its weights and name every node; returns the result.

    Args:
        proto: Graph; not changed.
        name: What to call it in messages.
        files: Its large weights, if they stay on disk.

    Raises:
        ModelError: The graph cannot be served: the message says which node or tensor is at fault.
    """
    _check_versions(proto, name)
    _check_operators(proto, name)
    _check_finite(proto, name, files)
    _check_values(proto, name)
    if files is not None or proto.ByteSize() < _PROTO_LIMIT:
        proto = on_shell(proto, lambda shell: _infer(shell, name))
    fix_weights(proto)
    name_nodes(proto)
    return proto


def _infer(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(proto)
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _broken(name, str(error).strip().splitlines()[0]) from error


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
        proto.ir_version = max(proto.ir_version, 4)  # before it, weights had to be inputs


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


def _check_finite(proto: onnx.ModelProto, name: str, files: ExternalData | None) -> None:
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
        values = _value(tensor, name, files)
        if _is_finite(values) or (tensor.name not in read and _is_mask(values)):
            continue
        bad = int((~np.isfinite(values)).sum())
        raise ModelError(
            f"Weights of {name} must be finite; tensor {tensor.name!r} holds {bad:,} NaN or "
            "infinite "
            f"of {values.size:,} values. Its training diverged or the file is damaged: use an "
            "earlier checkpoint."
        )


def _value(tensor: Any, name: str, files: ExternalData | None) -> Array:
    if files is not None and is_external(tensor):
        return files.read(tensor)
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except ValueError as error:
        raise _broken(name, f"tensor {tensor.name!r} is not as large as it says") from error


def _is_finite(values: Array) -> bool:
    flat = values.reshape(-1)
    return all(
        np.isfinite(flat[start : start + _PIECE]).all() for start in range(0, flat.size, _PIECE)
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
