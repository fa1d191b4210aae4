"""From a torch network to an ONNX graph that engines can fuse, checked against the network."""

import contextlib
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ingot.core.errors import ModelError
from ingot.models.onnx_format import name_nodes, subgraphs

# The exporter's own opset; LayerNormalization is one operator since 17, and both ONNX Runtime and
# OpenVINO fuse attention and GELU in this form.
OPSET = 18
_TOLERANCE = 1e-4  # of the largest output: float32 kernels of two libraries differ by 1e-6
_BATCHES = (1, 2, 5)
_PROTO_LIMIT = 1_800_000_000
_HIDDEN = "ingot.hidden"


def export(
    module: Any, example: Mapping[str, Any], *, dynamic: bool, outputs: Sequence[str] = ()
) -> onnx.ModelProto:
    """Export a torch module in evaluation mode; see `torch_format.export_module`.

    Args:
        module: A `torch.nn.Module`.
        example: Inputs by name, rows first.
        dynamic: Keep batch (and sequence) axes dynamic.
        outputs: Names of the outputs; if not given the keys of a network that answers a mapping,
            else made up.

    Raises:
        ModelError: It cannot be exported, or the graph gives other numbers.
    """
    import torch

    arrays = {name: np.asarray(value) for name, value in example.items()}
    inputs = {name: torch.from_numpy(_rows(array, 2)) for name, array in arrays.items()}
    errors = (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError, TypeError)
    program, failure = None, None
    for sequence in (True, False) if dynamic else (False,):
        axes = [_axes(value, dynamic=dynamic, sequence=sequence) for value in inputs.values()]
        try:
            with quiet(), torch.no_grad():
                program = _run_exporter(torch, module, inputs, axes)
            break
        except errors as error:
            failure = error
    if program is None:
        raise ModelError(
            "The network must export to ONNX with a dynamic batch axis; torch says: "
            f"{str(failure).strip().splitlines()[0][:300]}. Avoid sizes taken from the example and "
            "branches on values in forward()."
        ) from failure
    names = outputs or _answer_names(torch, module, inputs)
    proto = tidy(program.model_proto, list(arrays), names)
    check_against(proto, lambda feeds: _call(torch, module, feeds), arrays, dynamic=dynamic)
    return proto


def _run_exporter(torch: Any, module: Any, inputs: Mapping[str, Any], axes: list[Any]) -> Any:
    args, kwargs = _arguments(module, inputs)
    shapes = tuple(axes) if args else dict(zip(inputs, axes, strict=True))
    program = torch.onnx.export(
        module,
        args,
        kwargs=kwargs or None,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=shapes,
        optimize=False,
        verbose=False,
    )
    with _norms_kept(program):
        program.optimize()
    return program


@contextlib.contextmanager
def _norms_kept(program: Any) -> Iterator[None]:
    """Hide the batch norms after convolutions from the exporter's optimizer, which would fold them.

    Every engine folds them too, but their statistics are all that a model knows of its training
    data, and methods that need no data live on them.
    """
    norms = [node for node in program.model.graph if node.op_type == "BatchNormalization"]
    makers = [node.inputs[0].producer() for node in norms]
    kept = [n for n, m in zip(norms, makers, strict=True) if m is not None and m.op_type == "Conv"]
    for node in kept:
        node.domain = _HIDDEN
    yield
    for node in kept:
        node.domain = ""


def _arguments(module: Any, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass by name where the names are forward's, else in order."""
    known = inspect.signature(module.forward).parameters
    if all(name in known for name in inputs):
        return (), dict(inputs)
    return tuple(inputs.values()), {}


def _call(torch: Any, module: Any, feeds: Mapping[str, Any]) -> list[Any]:
    args, kwargs = _arguments(module, {n: torch.from_numpy(v) for n, v in feeds.items()})
    with torch.inference_mode():
        return flat(module(*args, **kwargs))


def _answer_names(torch: Any, module: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Return the keys of a network that answers tensors by name, else nothing."""
    args, kwargs = _arguments(module, inputs)
    with torch.inference_mode():
        found = module(*args, **kwargs)
    if not isinstance(found, Mapping) or set(found) & set(inputs):
        return []
    return list(found) if all(isinstance(v, torch.Tensor) for v in found.values()) else []


def flat(result: Any) -> list[Any]:
    """Return every tensor of a network's answer as an array, in order."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        return [array for part in result if part is not None for array in flat(part)]
    return [result.detach().cpu().numpy()]


def _axes(value: Any, *, dynamic: bool, sequence: bool) -> dict[int, Any]:
    import torch

    if not dynamic:
        return {}
    axes = {0: torch.export.Dim("batch")}
    if sequence and value.ndim == 2 and not value.is_floating_point():
        axes[1] = torch.export.Dim("sequence")
    return axes


def _rows(array: Any, rows: int, *, seed: int = 0) -> Any:
    """Repeat an example to `rows` rows; floats get a little noise so that rows differ."""
    picked = np.ascontiguousarray(np.take(array, np.arange(rows) % len(array), axis=0))
    if picked.dtype.kind == "f" and picked.size:
        noise = np.random.default_rng(seed).standard_normal(picked.shape)
        return (picked + 0.1 * (picked.std() + 0.1) * noise).astype(array.dtype)
    return picked


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's chatter about operators and dynamic shapes; errors still rise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    inner = logging.getLogger("torch.onnx._internal.exporter._registration")
    before, inner_level = inner.disabled, inner.level
    inner.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        inner.setLevel(inner_level)
        inner.disabled = before


def tidy(
    proto: onnx.ModelProto, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> onnx.ModelProto:
    """Give inputs, outputs, axes, weights and nodes readable names and drop what is not the model.

    The exporter writes source lines and file paths into the graph: with them equal networks would
    have different digests on different machines.
    """
    proto.doc_string = ""
    del proto.metadata_props[:]
    for graph in subgraphs(proto.graph):
        graph.doc_string = ""
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
            part.doc_string = ""
            del part.metadata_props[:]
        for tensor in graph.initializer:
            tensor.doc_string = ""
            del tensor.metadata_props[:]
    proto.graph.name = "model"
    new = list(outputs) or _output_names(len(proto.graph.output))
    names = dict(zip([v.name for v in proto.graph.input], inputs, strict=False))
    names |= dict(zip([v.name for v in proto.graph.output], new, strict=False))
    _rename(proto, names)
    _rename_axes(proto)
    _name_layers(proto)
    name_nodes(proto)
    return proto


def _output_names(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _rename(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors everywhere; an inner tensor that has a wanted name already makes room."""
    names = {old: new for old, new in names.items() if old != new}
    taken = {new: f"{new}_inner" for new in names.values() if new not in names}
    names = taken | names
    for graph in subgraphs(proto.graph):
        for node in graph.node:
            for side in (node.input, node.output):
                for i, name in enumerate(side):
                    side[i] = names.get(name, name)
        for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            value.name = names.get(value.name, value.name)


def _rename_axes(proto: onnx.ModelProto) -> None:
    names: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and axis < 2:
                names.setdefault(dim.dim_param, ("batch", "sequence")[axis])
    for graph in subgraphs(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in names:
                    dim.dim_param = names[dim.dim_param]


def _name_layers(proto: onnx.ModelProto) -> None:
    """Name a matrix product after the bias that follows it, a convolution after its weight."""
    graph = proto.graph
    weights = {t.name for t in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for source in node.input:
            readers.setdefault(source, []).append(node)
    names: dict[str, str] = {}
    for node in graph.node:
        constant = [s for s in node.input[1:2] if s in weights]
        if node.op_type not in {"MatMul", "Gemm", "Conv", "ConvTranspose"} or not constant:
            continue
        bias = next((s for s in node.input[2:] if s.endswith(".bias")), None)
        if node.op_type == "MatMul":
            after = [n for n in readers.get(node.output[0], []) if n.op_type == "Add"]
            sources = [s for n in after for s in n.input if s in weights and s.endswith(".bias")]
            bias = sources[0] if sources else None
        stem = bias.removesuffix(".bias") if bias else constant[0].removesuffix(".weight")
        node.name = stem
        if len(readers[constant[0]]) == 1 and f"{stem}.weight" not in weights:
            names[constant[0]] = f"{stem}.weight"
    _rename(proto, names)


def check_against(
    proto: onnx.ModelProto, call: Any, arrays: Mapping[str, Any], *, dynamic: bool
) -> None:
    """Run the graph beside the network and compare.

    Args:
        proto: The graph.
        call: The network: arrays by input name to a list of arrays.
        arrays: Example inputs by name.
        dynamic: Compare at batch 1, 2 and 5; else only at the example's own size.

    Raises:
        ModelError: They differ by more than 1e-4 of the largest output.
    """
    session = _open(proto)
    wanted = {value.name for value in session.get_inputs()}
    sizes = _BATCHES if dynamic else (2,)
    for batch in sizes:
        feeds = {name: _rows(array, batch, seed=batch) for name, array in arrays.items()}
        ours = session.run(None, {k: v for k, v in feeds.items() if k in wanted})
        for mine, theirs, out in zip(ours, call(feeds), session.get_outputs(), strict=True):
            scale = max(float(np.abs(theirs).max(initial=0)), 1e-6)
            same = mine.shape == theirs.shape
            gap = float(np.abs(mine - theirs).max(initial=0)) / scale if same else float("inf")
            if not gap <= _TOLERANCE:
                raise ModelError(
                    f"The exported graph must give the network's numbers to {_TOLERANCE:g} of the "
                    f"largest output; {out.name!r} differs by {gap:.2g} at batch {batch}. Look for "
                    "randomness, or sizes and values taken from the example, in forward()."
                )


def _open(proto: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if proto.ByteSize() < _PROTO_LIMIT:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        onnx.save_model(copy, path, save_as_external_data=True, location="model.onnx.data")
        return onnxruntime.InferenceSession(path, options, providers=providers)
