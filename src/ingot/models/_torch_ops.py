"""ONNX operators in torch: one small function each, `(attributes, inputs) -> output(s)`.

Only what trained vision, text and audio networks use; an operator that is missing is named by the
graph that needs it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Attributes = dict[str, Any]  # ONNX attribute values: numbers, bytes, lists, tensors
Inputs = Sequence[Any]  # tensors; None for an optional input that is not given
Operator = Callable[[Attributes, Inputs], Any]

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def optional(x: Inputs, i: int) -> Any:
    """Return input `i`, or None if it is left out."""
    return x[i] if i < len(x) else None


def _axes(a: Attributes, x: Inputs, i: int = 1) -> list[int]:
    given = optional(x, i)
    return given.tolist() if given is not None else [int(v) for v in a.get("axes", ())]


def _broadcast(op: Callable[..., Any]) -> Operator:
    return lambda _, x: op(*x)


def _fold(op: Callable[[Any, Any], Any]) -> Operator:
    def run(_: Attributes, x: Inputs) -> Any:
        out = x[0]
        for other in x[1:]:
            out = op(out, other)
        return out

    return run


def _divide(_: Attributes, x: Inputs) -> Any:
    if x[0].is_floating_point():
        return x[0] / x[1]
    return torch.div(x[0], x[1], rounding_mode="trunc")


def _matmul(_: Attributes, x: Inputs) -> Any:
    return torch.matmul(x[0], x[1])


def _gemm(a: Attributes, x: Inputs) -> Any:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    out = left @ right
    out = out if alpha == 1.0 else out * alpha
    bias = optional(x, 2)
    return out if bias is None else out + (bias if beta == 1.0 else bias * beta)


def _spatial(a: Attributes, x: Any, kernel: Sequence[int]) -> tuple[Any, ...]:
    """Return `(x padded as needed, strides, dilations, symmetric padding)`."""
    rank = len(kernel)
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    pads = list(a.get("pads", [0] * 2 * rank))
    mode = a.get("auto_pad", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = [0] * 2 * rank
        for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
            size = x.shape[2 + i]
            total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            pads[i], pads[i + rank] = total // 2, total - total // 2
            if mode == b"SAME_LOWER":
                pads[i], pads[i + rank] = pads[i + rank], pads[i]
    return x, strides, dilations, pads


def _pad_by(x: Any, pads: Sequence[int], value: float = 0.0) -> Any:
    rank = len(pads) // 2
    flat = [p for i in reversed(range(rank)) for p in (pads[i], pads[i + rank])]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(a: Attributes, x: Inputs) -> Any:
    weight, bias = x[1], optional(x, 2)
    rank = weight.ndim - 2
    data, strides, dilations, pads = _spatial(a, x[0], weight.shape[2:])
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    if pads[:rank] == pads[rank:]:
        return run(data, weight, bias, strides, pads[:rank], dilations, a.get("group", 1))
    return run(_pad_by(data, pads), weight, bias, strides, 0, dilations, a.get("group", 1))


def _conv_transpose(a: Attributes, x: Inputs) -> Any:
    rank = x[1].ndim - 2
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    pads = list(a.get("pads", [0] * 2 * rank))
    extra = a.get("output_padding", [0] * rank)
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    out = run(x[0], x[1], optional(x, 2), strides, 0, extra, a.get("group", 1), dilations)
    return _pad_by(out, [-p for p in pads])


def _max_pool(a: Attributes, x: Inputs) -> Any:
    kernel = a["kernel_shape"]
    data, strides, dilations, pads = _spatial(a, x[0], kernel)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    padded = _pad_by(data, pads, float("-inf"))
    return run(padded, kernel, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def _average_pool(a: Attributes, x: Inputs) -> Any:
    kernel = a["kernel_shape"]
    data, strides, _, pads = _spatial(a, x[0], kernel)
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(a.get("ceil_mode", 0))
    total = run(_pad_by(data, pads), kernel, strides, 0, ceil)
    if a.get("count_include_pad", 0) or not any(pads):
        return total
    share = run(_pad_by(torch.ones_like(data[:1, :1]), pads), kernel, strides, 0, ceil)
    return total / share


def _global(op: Callable[..., Any]) -> Operator:
    return lambda _, x: op(x[0], dim=tuple(range(2, x[0].ndim)), keepdim=True)


def _batch_norm(a: Attributes, x: Inputs) -> Any:
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], False, 0.0, a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Inputs) -> Any:
    axis = a.get("axis", -1) % x[0].ndim
    shape = x[0].shape[axis:]
    return F.layer_norm(x[0], shape, x[1], optional(x, 2), a.get("epsilon", 1e-5))


def _rms_norm(a: Attributes, x: Inputs) -> Any:
    axis = a.get("axis", -1) % x[0].ndim
    return F.rms_norm(x[0], x[0].shape[axis:], x[1], a.get("epsilon", 1e-5))


def _instance_norm(a: Attributes, x: Inputs) -> Any:
    return F.instance_norm(x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5))


def _reduce(op: Callable[..., Any]) -> Operator:
    def run(a: Attributes, x: Inputs) -> Any:
        axes = _axes(a, x)
        if not axes and a.get("noop_with_empty_axes"):
            return x[0]
        return op(x[0], dim=axes or list(range(x[0].ndim)), keepdim=bool(a.get("keepdims", 1)))

    return run


def _prod(x: Any, dim: Sequence[int], keepdim: bool) -> Any:
    for axis in sorted((d % x.ndim for d in dim), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _l2(x: Any, dim: Sequence[int], keepdim: bool) -> Any:
    return torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)


def _arg(op: Callable[..., Any]) -> Operator:
    return lambda a, x: op(x[0], dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))


def _gather(a: Attributes, x: Inputs) -> Any:
    axis = a.get("axis", 0) % x[0].ndim
    index = torch.where(x[1] < 0, x[1] + x[0].shape[axis], x[1]).long()
    if axis == 0 and x[0].ndim == 2 and x[0].is_floating_point():
        return F.embedding(index, x[0])
    picked = torch.index_select(x[0], axis, index.reshape(-1))
    return picked.reshape((*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :]))


def _gather_nd(a: Attributes, x: Inputs) -> Any:
    batch, index = a.get("batch_dims", 0), x[1].long()
    if batch == 0:
        return x[0][tuple(index.unbind(-1))]
    rows = [torch.arange(index.shape[i]) for i in range(batch)]
    grids = [r.reshape([-1 if i == j else 1 for j in range(index.ndim - 1)])
             for i, r in enumerate(rows)]  # fmt: skip
    return x[0][(*grids, *index.unbind(-1))]


def _reshape(a: Attributes, x: Inputs) -> Any:
    sizes = x[1].tolist()
    if not a.get("allowzero"):
        sizes = [x[0].shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return x[0].reshape(sizes)


def _squeeze(a: Attributes, x: Inputs) -> Any:
    axes = _axes(a, x)
    return x[0].squeeze(tuple(axes)) if axes else x[0].squeeze()


def _unsqueeze(a: Attributes, x: Inputs) -> Any:
    axes, out = _axes(a, x), x[0]
    rank = out.ndim + len(axes)
    for axis in sorted(d % rank for d in axes):
        out = out.unsqueeze(axis)
    return out


def _slice(a: Attributes, x: Inputs) -> Any:
    if len(x) > 1:
        starts, ends = x[1].tolist(), x[2].tolist()
        given, strides = optional(x, 3), optional(x, 4)
        axes = given.tolist() if given is not None else list(range(len(starts)))
        steps = strides.tolist() if strides is not None else [1] * len(starts)
    else:
        starts, ends = a["starts"], a["ends"]
        axes, steps = a.get("axes", range(len(starts))), [1] * len(starts)
    out = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = out.shape[axis]
        picked = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if step > 0:
            out = out.narrow(axis, picked.start, len(range(picked.start, picked.stop)))
            out = out[(slice(None),) * (axis % out.ndim) + (slice(None, None, step),)]
        else:
            out = out.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return out


def _split(a: Attributes, x: Inputs) -> Any:
    axis, sizes = a.get("axis", 0), optional(x, 1)
    if sizes is not None:
        return torch.split(x[0], sizes.tolist(), axis)
    if "split" in a:
        return torch.split(x[0], list(a["split"]), axis)
    return torch.chunk(x[0], int(a["num_outputs"]), axis)


def _shape(a: Attributes, x: Inputs) -> Any:
    return torch.tensor(x[0].shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _constant_of_shape(a: Attributes, x: Inputs) -> Any:
    value = a.get("value")
    fill = torch.zeros(1) if value is None else value
    return torch.full(x[0].tolist(), fill.item(), dtype=fill.dtype)


def _expand(_: Attributes, x: Inputs) -> Any:
    return x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(x[1].tolist())))


def _pad(a: Attributes, x: Inputs) -> Any:
    pads = x[1].tolist() if len(x) > 1 else list(a["pads"])
    fill, axes = optional(x, 2), optional(x, 3)
    if axes is not None:
        full = [0] * 2 * x[0].ndim
        for i, axis in enumerate(axes.tolist()):
            full[axis] = pads[i]
            full[axis % x[0].ndim + x[0].ndim] = pads[i + len(axes)]
        pads = full
    mode: Any = a.get("mode", b"constant").decode()
    if mode == "constant":
        return _pad_by(x[0], pads, 0.0 if fill is None else float(fill))
    out, rank = x[0], x[0].ndim
    for axis in range(rank):
        if pads[axis] or pads[axis + rank]:
            kept = np.pad(np.arange(out.shape[axis]), (pads[axis], pads[axis + rank]), mode)
            out = out.index_select(axis, torch.from_numpy(kept))
    return out


def _clip(a: Attributes, x: Inputs) -> Any:
    low, high = optional(x, 1), optional(x, 2)
    low = a.get("min") if low is None else float(low)
    high = a.get("max") if high is None else float(high)
    return x[0] if low is None and high is None else x[0].clamp(low, high)


def _softmax(op: Callable[..., Any]) -> Operator:
    return lambda a, x: op(x[0], dim=a.get("axis", -1))


def _cast(a: Attributes, x: Inputs) -> Any:
    return x[0].to(DTYPES[a["to"]])


def _resize(a: Attributes, x: Inputs) -> Any:
    mode = a.get("mode", b"nearest").decode()
    sizes, scales = optional(x, 3), optional(x, 2)
    target = sizes.tolist()[2:] if sizes is not None and len(sizes) else None
    ratio = None if target else [float(s) for s in scales.tolist()[2:]]
    if mode == "nearest":
        return F.interpolate(x[0], target, ratio)
    align = a.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    names = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}
    return F.interpolate(x[0], target, ratio, names[mode][x[0].ndim - 3], align)


def _trilu(a: Attributes, x: Inputs) -> Any:
    k = optional(x, 1)
    run = torch.triu if a.get("upper", 1) else torch.tril
    return run(x[0], 0 if k is None else int(k))


def _gelu(a: Attributes, x: Inputs) -> Any:
    return F.gelu(x[0], approximate=a.get("approximate", b"none").decode())


def _hard_sigmoid(a: Attributes, x: Inputs) -> Any:
    return (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1)


def _transpose(a: Attributes, x: Inputs) -> Any:
    return x[0].permute(a.get("perm", list(reversed(range(x[0].ndim)))))


def _range(_: Attributes, x: Inputs) -> Any:
    return torch.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype)


def _where(_: Attributes, x: Inputs) -> Any:
    return torch.where(x[0], x[1], x[2])


def _mod(a: Attributes, x: Inputs) -> Any:
    return torch.fmod(x[0], x[1]) if a.get("fmod") else torch.remainder(x[0], x[1])


def _depth_to_space(a: Attributes, x: Inputs) -> Any:
    n, c, h, w = x[0].shape
    b = a["blocksize"]
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x[0], b)
    parts = x[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // b**2, h * b, w * b)


def _dropout(_: Attributes, x: Inputs) -> Any:
    return x[0]


def _cumsum(_: Attributes, x: Inputs) -> Any:
    return torch.cumsum(x[0], int(x[1]))


def _tile(_: Attributes, x: Inputs) -> Any:
    return x[0].repeat(x[1].tolist())


def _flatten(a: Attributes, x: Inputs) -> Any:
    axis = a.get("axis", 1) % (x[0].ndim + 1)
    return x[0].reshape(int(torch.tensor(x[0].shape[:axis]).prod()), -1)


def _einsum(a: Attributes, x: Inputs) -> Any:
    return torch.einsum(a["equation"].decode(), *x)


OPERATORS: dict[str, Operator] = {
    "Abs": _broadcast(torch.abs),
    "Add": _broadcast(torch.add),
    "And": _broadcast(torch.logical_and),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": lambda _, x: x[0].to(x[1].dtype),
    "Ceil": _broadcast(torch.ceil),
    "Clip": _clip,
    "Concat": lambda a, x: torch.cat([*x], a["axis"]),
    "Constant": lambda a, _: a["value"],
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _broadcast(torch.cos),
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Div": _divide,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Elu": lambda a, x: F.elu(x[0], a.get("alpha", 1.0)),
    "Equal": _broadcast(torch.eq),
    "Erf": _broadcast(torch.erf),
    "Exp": _broadcast(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _broadcast(torch.floor),
    "Gather": _gather,
    "GatherElements": lambda a, x: torch.gather(x[0], a.get("axis", 0), x[1].long()),
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "Greater": _broadcast(torch.gt),
    "GreaterOrEqual": _broadcast(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: F.hardswish(x[0]),
    "Identity": _dropout,
    "InstanceNormalization": _instance_norm,
    "IsNaN": _broadcast(torch.isnan),
    "LayerNormalization": _layer_norm,
    "Less": _broadcast(torch.lt),
    "LeakyRelu": lambda a, x: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "LessOrEqual": _broadcast(torch.le),
    "Log": _broadcast(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _matmul,
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _fold(torch.minimum),
    "Mod": _mod,
    "Mul": _broadcast(torch.mul),
    "Neg": _broadcast(torch.neg),
    "Not": _broadcast(torch.logical_not),
    "Or": _broadcast(torch.logical_or),
    "PRelu": lambda _, x: torch.where(x[0] < 0, x[0] * x[1], x[0]),
    "Pad": _pad,
    "Pow": _broadcast(torch.pow),
    "RMSNormalization": _rms_norm,
    "Range": _range,
    "Reciprocal": _broadcast(torch.reciprocal),
    "ReduceL2": _reduce(_l2),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _broadcast(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _broadcast(torch.round),
    "Shape": _shape,
    "Sigmoid": _broadcast(torch.sigmoid),
    "Sign": _broadcast(torch.sign),
    "Sin": _broadcast(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": lambda _, x: F.softplus(x[0]),
    "Split": _split,
    "Sqrt": _broadcast(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _broadcast(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _broadcast(torch.tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Xor": _broadcast(torch.logical_xor),
}
