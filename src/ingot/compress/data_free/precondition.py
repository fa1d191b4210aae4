"""What can be put right before and after rounding, from batch norm statistics alone."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from ingot.compress.data_free.inputs import Gaussian
from ingot.compress.quantize._graph import Graph, attributes
from ingot.compress.quantize.prepare import foldable_norms
from ingot.data.data import Array


def equalize_norms(graph: Graph) -> None:
    """Give all output channels of a convolution the same weight range, in place.

    The weights of channel c are divided by s_c, and the batch norm behind takes it up:
    `m <- m / s`, `v <- (v + e) / s^2 - e`. Where that variance would be negative it becomes
    `v / s^2` and the gain makes up for the rest. Answers stay the same whatever the activation.
    Dead channels stay as they are.

    References:
        Horton et al., Layer-Wise Data-Free CNN Compression, 2022. arXiv:2011.09058
        (the abstract; the formulas are derived here).
    """
    for conv, norm in foldable_norms(graph):
        weight, has_bias = graph.value(conv.input[1]), len(conv.input) > 2
        assert weight is not None
        peak = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
        alive = peak > 0
        if not alive.any():
            continue
        target = np.exp(np.log(peak[alive]).mean())
        s = np.where(alive, peak / target, 1.0)
        _scale_input(graph, conv, 1, 1 / s)
        if has_bias:
            _scale_input(graph, conv, 2, 1 / s)
        _scale_norm(graph, norm, s)
    graph.index()
    graph.drop_unused_weights()


def _scale_norm(graph: Graph, norm: NodeProto, s: Array) -> None:
    epsilon = float(attributes(norm).get("epsilon", 1e-5))  # type: ignore[arg-type] # a float attribute
    var = graph.value(norm.input[4])
    assert var is not None
    before = var.astype(np.float64) + epsilon
    wanted = before / s**2 - epsilon
    after = np.where(wanted >= 0, wanted, var / s**2).astype(np.float32)
    gain = s * np.sqrt(after.astype(np.float64) + epsilon) / np.sqrt(before)
    _scale_input(graph, norm, 1, gain)
    _scale_input(graph, norm, 3, 1 / s)
    norm.input[4] = graph.add_weight(f"{norm.output[0]}_equalized_4", after)


def _scale_input(graph: Graph, node: NodeProto, position: int, factor: Array) -> None:
    """Multiply the first axis of a constant input; others that read the constant keep theirs."""
    value = graph.value(node.input[position])
    assert value is not None
    shaped = factor.reshape(-1, *[1] * (value.ndim - 1))
    name = f"{node.output[0]}_equalized_{position}"
    node.input[position] = graph.add_weight(name, (value * shaped).astype(np.float32))


def clipped_normal(
    mean: Array, std: Array, low: float = 0.0, high: float = float("inf")
) -> tuple[Array, Array]:
    """Return mean and variance of `min(max(x, low), high)` for x from N(mean, std^2).

    With a = (low - m) / s, b = (high - m) / s, P = Phi(b) - Phi(a) and d = phi(a) - phi(b):
    `E = low Phi(a) + m P + s d + high (1 - Phi(b))`; for ReLU `m Phi(m/s) + s phi(m/s)`.

    Args:
        mean: Any shape.
        std: Same shape, not negative; where it is 0 the value is fixed.
        low: Lower bound, 0 for ReLU.
        high: Upper bound, 6 for ReLU6.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
        2019, appendix C. arXiv:1906.04721
    """
    from scipy.special import ndtr

    m, s = np.asarray(mean, np.float64), np.maximum(np.asarray(std, np.float64), 1e-12)
    a, b = (low - m) / s, (high - m) / s
    below, above, inside = ndtr(a), ndtr(-b), ndtr(b) - ndtr(a)
    at_low, at_high = _density(a), _density(b)
    floor, top = (0.0 if np.isinf(bound) else bound for bound in (low, high))
    first = floor * below + m * inside + s * (at_low - at_high) + top * above
    edges = _times(low + m, at_low) - _times(high + m, at_high)
    second = floor**2 * below + (m**2 + s**2) * inside + s * edges + top**2 * above
    return first, np.maximum(second - first**2, 0.0)


def _density(z: Array) -> Array:
    found: Array = np.exp(-np.minimum(z**2, 1400.0) / 2) / np.sqrt(2 * np.pi)
    return found


def _times(bound: Array, density: Array) -> Array:
    """Return the product; an infinite bound has no density."""
    return np.where(np.isinf(bound), 0.0, bound) * density


def known_normal(
    graph: Graph, statistics: Mapping[str, Gaussian], tensor: str
) -> tuple[Gaussian, float, float] | None:
    """Return the normal and the bounds it is clipped to, if that is what a tensor is.

    That is so for the output of a batch norm, and for ReLU and Clip of one.
    """
    source, low, high = unclipped(graph, tensor)
    return (statistics[source], low, high) if source in statistics else None


def unclipped(graph: Graph, tensor: str) -> tuple[str, float, float]:
    """Return what a ReLU or Clip makes a tensor of, and its bounds; else the tensor itself."""
    maker = graph.maker.get(tensor)
    if maker is not None and maker.op_type == "Relu":
        return maker.input[0], 0.0, np.inf
    bounds = [graph.value(name) if name else None for name in maker.input[1:]] if maker else []
    if maker is None or maker.op_type != "Clip" or len(bounds) < len(maker.input) - 1:
        return tensor, -np.inf, np.inf
    low, high = [*bounds, None, None][:2]
    return (
        maker.input[0],
        -np.inf if low is None else float(low.reshape(())),
        np.inf if high is None else float(high.reshape(())),
    )


def clipped_mean(graph: Graph, statistics: Mapping[str, Gaussian], tensor: str) -> Array | None:
    """Return the exact mean of each channel of a tensor, `(channels,)`, if it is known."""
    found = known_normal(graph, statistics, tensor)
    if found is None:
        return None
    normal, low, high = found
    return clipped_normal(normal.mean, normal.std, low, high)[0]
