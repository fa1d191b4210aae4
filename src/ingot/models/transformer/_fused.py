"""The one-node form of attention (ONNX opset 23), written out as products and a softmax."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ingot.data.data import Array
from ingot.models.transformer.refusal import NotRecognized

DOMAIN = "ingot"
_PARTS = ("sizes", "k", "turned", "v", "scores", "masked", "shares")
REPEAT, MASK = f"{DOMAIN}::RepeatHeads", f"{DOMAIN}::MaskScores"


def written_out(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes with each Attention replaced by what it stands for.

    Raises:
        NotRecognized: An Attention reads a cache, caps its scores or has its heads side by side.
    """
    found: list[onnx.NodeProto] = []
    for node in nodes:
        is_fused = node.op_type == "Attention" and node.domain in ("", "ai.onnx")
        found += _write_out(node) if is_fused else [node]
    return found


def _write_out(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    odd = [n for n in ("q_num_heads", "kv_num_heads", "softcap") if options.get(n)]
    odd += [name for name in node.output[1:] if name] + [name for name in node.input[4:] if name]
    if odd:
        label = f"Attention (node {node.name or node.output[0]!r})"
        raise NotRecognized(f"{label} uses {odd[0]!r}, which is not known")
    q, k, v, *mask = [name for name in node.input if name]
    out, name = node.output[0], node.name
    parts = {key: f"{out}.{key}" for key in _PARTS}
    facts = {key: options[key] for key in ("scale", "is_causal") if key in options}
    facts["domain"] = DOMAIN
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [  # attributes are of many types
        ("Shape", [q], parts["sizes"], {}),
        ("RepeatHeads", [k, parts["sizes"]], parts["k"], {"domain": DOMAIN}),
        ("Transpose", [parts["k"]], parts["turned"], {"perm": [0, 1, 3, 2]}),
        ("MatMul", [q, parts["turned"]], parts["scores"], {}),
        ("MaskScores", [parts["scores"], parts["sizes"], *mask], parts["masked"], facts),
        ("Softmax", [parts["masked"]], parts["shares"], {"axis": -1}),
        ("RepeatHeads", [v, parts["sizes"]], parts["v"], {"domain": DOMAIN}),
        ("MatMul", [parts["shares"], parts["v"]], out, {}),
    ]
    return [
        helper.make_node(operator, inputs, [made], name or f"Attention_{out}", **rest)
        for operator, inputs, made, rest in steps
    ]


def run_own(node: onnx.NodeProto, inputs: list[Array]) -> Array:
    """Compute an operator of this file.

    Raises:
        ValueError: It is none of them.
    """
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "RepeatHeads":
        value, sizes = inputs
        return np.repeat(value, int(sizes[1]) // value.shape[1], axis=1)
    if node.op_type == "MaskScores":
        return _masked(options, *inputs)
    raise ValueError(f"no operator {node.op_type!r} is known here")


def _masked(options: dict[str, float], scores: Array, sizes: Array, *mask: Array) -> Array:
    found: Array = scores * np.float32(options.get("scale", float(sizes[-1]) ** -0.5))
    for one in mask:
        found = found + (np.where(one, 0, -np.inf) if one.dtype == bool else one)
    if options.get("is_causal", 0):
        found = np.where(np.tri(*scores.shape[-2:]) > 0, found, -np.inf)
    return found.astype(scores.dtype)
