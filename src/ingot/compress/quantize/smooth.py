"""Move outliers from activations into weights, channel by channel (SmoothQuant, AWQ)."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.calibrate import channel_peaks
from ingot.compress.quantize.groups import Granularity, group_scales, limits_of
from ingot.compress.quantize.moments import Moments
from ingot.compress.quantize.placement import Plan
from ingot.compress.quantize.rounding import output_error
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array, Split

NARROWEST, WIDEST = 1e-3, 1e3  # factors beyond these would lose float16 and bf16 digits elsewhere


def smooth_inputs(
    graph: Graph,
    plan: Plan,
    split: Split,
    *,
    strength: float,
    insert: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Array]:
    """Divide the inputs of linear layers by `f` and multiply their weights by it, in place.

    `f_j = max|X_j|^a / max|W_j|^(1-a)` per input channel j, over all layers that read the same
    tensor. Answers of the float graph stay the same. Where the tensor comes from a norm that nobody
    else reads, its gain and shift take the factor; else a multiplication is inserted, which engines
    fuse into the quantization that follows.

    Args:
        graph: A prepared graph.
        plan: Which layers run as integers.
        split: Calibration rows.
        strength: `a`, 0 leaves activations alone, 1 moves everything into the weights.
        insert: Whether to insert multiplications; without, layers that would need one stay.
        progress: Where batches are reported.

    Returns:
        The factors of each layer that was smoothed, by its name.

    References:
        Xiao et al., SmoothQuant, 2023. arXiv:2211.10438
    """
    groups: dict[str, list[str]] = {}
    for name in plan.weights:
        node = graph.by_name[name]
        is_linear = node.op_type != "Conv" and len(graph.weights[node.input[1]].dims) == 2
        if is_linear and not _is_made_by_integers(graph, plan, node.input[0]):
            groups.setdefault(node.input[0], []).append(name)
    if not insert:
        groups = {t: names for t, names in groups.items() if _norm_of(graph, t, names) is not None}
    peaks = channel_peaks(graph.proto, split, sorted(groups), progress=progress)
    done: dict[str, Array] = {}
    for tensor, names in groups.items():
        weights = [graph.value(graph.by_name[n].input[1]) for n in names]
        rows = np.max([np.abs(w).max(axis=1) for w in weights if w is not None], axis=0)
        factor = _factor(peaks[tensor], rows, strength)
        for name, weight in zip(names, weights, strict=True):
            assert weight is not None
            scaled = (weight * factor[:, None]).astype(np.float32)
            graph.by_name[name].input[1] = graph.add_weight(f"{name}_smooth_weight", scaled)
        _divide(graph, tensor, names, factor)
        done |= dict.fromkeys(names, factor)
    graph.index()
    graph.drop_unused_weights()
    return done


def _is_made_by_integers(graph: Graph, plan: Plan, tensor: str) -> bool:
    # A multiplication there would break a chain of integer kernels in two.
    maker = graph.maker.get(tensor)
    readers = plan.edges.get(maker.input[0], ()) if maker is not None and maker.input else ()
    return maker is not None and any(name == maker.name for name, _ in readers)


def _factor(activation: Array, weight: Array, strength: float) -> Array:
    usable = (activation > 0) & (weight > 0)
    a, w = np.where(usable, activation, 1.0), np.where(usable, weight, 1.0)
    factor = a.astype(np.float64) ** strength / w.astype(np.float64) ** (1 - strength)
    factor = np.where(usable, factor, 1.0)
    return np.clip(factor, NARROWEST, WIDEST).astype(np.float32)


def _norm_of(graph: Graph, tensor: str, names: Sequence[str]) -> onnx.NodeProto | None:
    """Return the node whose constant vectors can take a factor, if only these layers read it."""
    maker = graph.maker.get(tensor)
    alone = {n.name for n, _ in graph.readers[tensor]} == set(names) and tensor not in graph.outputs
    if maker is None or not alone:
        return None
    if maker.op_type in {"LayerNormalization", "RMSNormalization"}:
        constants = [graph.value(name) for name in maker.input[1:]]
        return maker if all(c is not None and c.ndim == 1 for c in constants) else None
    # The gain of a norm that the graph spells out.
    given = [graph.value(name) for name in maker.input] if maker.op_type == "Mul" else []
    return maker if sum(v is not None and v.ndim == 1 for v in given) == 1 else None


def _divide(graph: Graph, tensor: str, names: list[str], factor: Array) -> None:
    norm = _norm_of(graph, tensor, names)
    if norm is not None:
        parameters = {i: graph.value(name) for i, name in enumerate(norm.input)}
        held = {i: p for i, p in parameters.items() if p is not None}
        if all(p.shape == factor.shape for p in held.values()):
            for i, value in held.items():
                name = graph.add_weight(f"{tensor}_smooth_{i}", (value / factor).astype(np.float32))
                norm.input[i] = name
            return
    inverse = graph.add_weight(f"{tensor}_smooth_factor", (1 / factor).astype(np.float32))
    smoothed = f"{tensor}_smooth"
    node = helper.make_node("Mul", [tensor, inverse], [smoothed], f"{tensor}_smooth_mul")
    for reader, position in graph.readers[tensor]:
        if reader.name in names and position == 0:
            reader.input[0] = smoothed
    nodes = graph.nodes
    at = next((i + 1 for i, n in enumerate(nodes) if tensor in n.output), 0)
    graph.replace_nodes([*nodes[:at], node, *nodes[at:]])


def scale_for_weights(
    graph: Graph, moments: Mapping[str, Moments], *, bits: int, granularity: Granularity
) -> None:
    """Multiply input channels that carry much by `f` before rounding, divide what they read by it.

    `f_j = E[x_j^2]^(a/2)`, scaled to a geometric mean of 1; `a` from 0 to 1 in tenths is the one
    with the least error of the outputs of all layers that read the tensor. As in AWQ, but for the
    root of the second moment in place of the mean magnitude: it is known already.

    Args:
        graph: A prepared graph; edited.
        moments: Of the inputs of the layers to round, by layer.
        bits: Bits they will be rounded to.
        granularity: What will share a scale.

    References:
        Lin et al., AWQ, 2024. arXiv:2306.00978
    """
    groups: dict[str, list[str]] = {}
    for name in moments:
        groups.setdefault(graph.by_name[name].input[0], []).append(name)
    for tensor, names in groups.items():
        hessian = moments[names[0]].hessian[0]
        weights = [graph.value(graph.by_name[n].input[1]) for n in names]
        rows = [np.ascontiguousarray(w.T) for w in weights if w is not None]
        factor = _awq_factor(rows, hessian, bits, granularity)
        if np.allclose(factor, 1):
            continue
        for name, weight in zip(names, rows, strict=True):
            scaled = np.ascontiguousarray((weight * factor).T.astype(np.float32))
            graph.by_name[name].input[1] = graph.add_weight(f"{name}_awq_weight", scaled)
        _divide(graph, tensor, names, factor.astype(np.float32))
    graph.index()
    graph.drop_unused_weights()


def _awq_factor(rows: list[Array], hessian: Array, bits: int, granularity: Granularity) -> Array:
    power = np.diag(hessian)
    seen = power > 0
    log = np.where(seen, np.log(np.where(seen, power, 1.0)), 0.0) / 2
    log = np.where(seen, log - log[seen].mean() if seen.any() else 0.0, 0.0)
    best, least = np.ones(len(power)), np.inf
    for strength in np.linspace(0, 1, 11):
        factor = np.clip(np.exp(strength * log), NARROWEST, WIDEST)
        error = sum(_error_when_scaled(w, factor, hessian, bits, granularity) for w in rows)
        if error < least:
            best, least = factor, error
    return best


def _error_when_scaled(
    weight: Array, factor: Array, hessian: Array, bits: int, granularity: Granularity
) -> float:
    scaled = weight * factor
    scale = group_scales(scaled, bits, granularity, np.diag(hessian) / factor**2)
    low, high = limits_of(bits)
    restored = np.clip(np.rint(scaled / scale), low, high) * scale / factor
    return output_error(weight, restored, hessian)
