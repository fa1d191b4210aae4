"""Repeated blocks of a graph: the layers of a transformer, the residual blocks of a CNN.

Found by structure, not by name. A *cut* is a tensor through which everything computed so far must
pass; between two cuts lies a segment; segments that repeat, shape by shape, are blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

# What reads only sizes, or turns the caller's inputs into masks and positions, is beside the path.
_STARTS = frozenset({"Conv", "ConvTranspose", "Gemm", "LayerNormalization", "MatMul"})
_LONGEST = 24  # segments per block


@dataclass(frozen=True, slots=True)
class Block:
    """One repetition.

    Attributes:
        start: Tensor that enters it.
        end: Tensor that leaves it; the same shape as `start`.
        nodes: Names of its nodes.
        run: Which run of equal blocks it belongs to, from 0.
    """

    start: str
    end: str
    nodes: tuple[str, ...]
    run: int


@dataclass(frozen=True, slots=True)
class _Segment:
    start: str
    end: str
    nodes: tuple[str, ...]
    shape: tuple[str, ...]


def find_blocks(proto: onnx.ModelProto) -> tuple[Block, ...]:
    """Return every block that has at least one equal neighbour, in order.

    Args:
        proto: A float graph whose nodes have unique names, in topological order.
    """
    segments = _segments(proto)
    shapes = [s.shape for s in segments]
    blocks: list[Block] = []
    at = run = 0
    while at < len(segments):
        period, times = _best_run(shapes, at)
        if times < 2:
            at += 1
            continue
        for i in range(times):
            part = segments[at + i * period : at + (i + 1) * period]
            nodes = tuple(name for segment in part for name in segment.nodes)
            blocks.append(Block(part[0].start, part[-1].end, nodes, run))
        at, run = at + period * times, run + 1
    return tuple(blocks)


def drop_blocks(proto: onnx.ModelProto, dropped: Sequence[Block]) -> onnx.ModelProto:
    """Return a copy of the graph in which what entered a dropped block leaves it unchanged."""
    small = onnx.ModelProto()
    small.CopyFrom(proto)
    goes_to = {block.end: block.start for block in dropped}

    def source(name: str) -> str:
        while name in goes_to:
            name = goes_to[name]
        return name

    gone = {name for block in dropped for name in block.nodes}
    kept = [node for node in small.graph.node if node.name not in gone]
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = source(name)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del small.graph.node[:]
    small.graph.node.extend(kept)
    _drop_unread(small)
    return small


def block_graph(proto: onnx.ModelProto, block: Block) -> onnx.ModelProto:
    """Return the graph of one block: it takes `block.start` and what comes from beside the path.

    Only the block's own weights are copied.
    """
    wanted = set(block.nodes)
    nodes = [node for node in proto.graph.node if node.name in wanted]
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name}
    weights = [w for w in proto.graph.initializer if w.name in read]
    inputs = sorted(read - made - {w.name for w in weights})
    graph = onnx.helper.make_graph(
        nodes,
        "block",
        [onnx.helper.make_empty_tensor_value_info(name) for name in inputs],
        [onnx.helper.make_empty_tensor_value_info(block.end)],
        weights,
    )
    return onnx.helper.make_model(graph, opset_imports=proto.opset_import)


def _drop_unread(proto: onnx.ModelProto) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {o.name for o in proto.graph.output}
    nodes = []
    for node in reversed(proto.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            needed.update(node.input)
    weights = [
        onnx.TensorProto.FromString(w.SerializeToString())
        for w in proto.graph.initializer
        if w.name in needed
    ]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(reversed(nodes))
    proto.graph.initializer.extend(weights)


def _segments(proto: onnx.ModelProto) -> list[_Segment]:
    nodes, weights = (
        list(proto.graph.node),
        {w.name: tuple(w.dims) for w in proto.graph.initializer},
    )
    on_path = _on_path(nodes, weights)
    last_read = {name: i for i, node in enumerate(nodes) for name in node.input}
    last_read |= {o.name: len(nodes) for o in proto.graph.output}
    live: set[str] = set()
    found, begun, start = [], 0, ""
    for i, node in enumerate(nodes):
        live |= {name for name in node.output if name in on_path}
        live = {name for name in live if last_read.get(name, -1) > i}
        if len(live) != 1 or (cut := next(iter(live))) == start:
            continue
        part = [n for n in nodes[begun : i + 1] if not on_path.isdisjoint(n.output)]
        if start:
            shape = tuple(sorted(_describe(n, weights) for n in part))
            found.append(_Segment(start, cut, tuple(n.name for n in part), shape))
        begun, start = i + 1, cut
    return found


def _on_path(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the tensors that hold features: those that come from a layer or an embedding."""
    found: set[str] = set()
    for node in nodes:
        if node.op_type in ("Shape", "Size"):
            continue
        begins = node.op_type in _STARTS and any(name in weights for name in node.input)
        begins |= node.op_type == "Gather" and len(weights.get(node.input[0], ())) == 2
        if begins or not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _describe(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]]) -> str:
    options = sorted(
        a.SerializeToString().hex() for a in node.attribute if a.type != onnx.AttributeProto.TENSOR
    )
    shapes = [weights[name] for name in node.input if name in weights]
    return f"{node.op_type} {shapes} {options}"


def _best_run(shapes: Sequence[tuple[str, ...]], at: int) -> tuple[int, int]:
    """Return the period and the number of repetitions that cover most from here."""
    best = (1, 1)
    for period in range(1, min(_LONGEST, (len(shapes) - at) // 2) + 1):
        pattern, times = shapes[at : at + period], 1
        while shapes[at + times * period : at + (times + 1) * period] == pattern:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best
