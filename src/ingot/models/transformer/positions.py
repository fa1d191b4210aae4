"""How many tokens a sequence may have: where a table ends that is read place by place."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ingot.data.data import Array
from ingot.models.external import is_external, size_bytes, take_in
from ingot.models.onnx_format import read_skeleton
from ingot.models.transformer._graph import Graph, Node
from ingot.models.transformer._operators import FAILURES
from ingot.models.transformer._probes import Trace
from ingot.models.transformer.refusal import NotRecognized

_SHORT = 3
_SMALL_BYTES = 1 << 20  # of weights in other files: indices are read, tables and layers are not


def longest_sequence(path: Path, feeds: Callable[[int], Mapping[str, Array]]) -> int | None:
    """Return the tokens of the longest sequence; None where no table of positions is found.

    A table of positions is one whose last row read is one further for a token more. The network
    itself is not run.

    Args:
        path: The `.onnx` file of a transformer.
        feeds: Inputs of one sequence, by its number of tokens.

    Raises:
        ModelError: The file is missing or broken.
    """
    proto = read_skeleton(path)
    for tensor in proto.graph.initializer:
        if is_external(tensor) and size_bytes(tensor) <= _SMALL_BYTES:
            take_in(tensor, path.parent)
    try:
        graph = Graph(proto)
    except (NotRecognized, *FAILURES):
        return None
    ends = (_end(graph, node, feeds) for node in graph.nodes if _picks_by_size(graph, node))
    return min((end for end in ends if end is not None), default=None)


def _picks_by_size(graph: Graph, node: Node) -> bool:
    """Say whether a node takes rows of a table, by something that no layer has computed."""
    return (
        node.op == "Gather"
        and graph.is_constant(node.inputs[0])
        and not graph.is_constant(node.inputs[1])
        and not graph.is_feature(node.inputs[1])
    )


def _end(graph: Graph, node: Node, feeds: Callable[[int], Mapping[str, Array]]) -> int | None:
    table, index = node.inputs
    try:
        last, further = (
            int(_trace(graph, feeds(length), length)[index].max())
            for length in (_SHORT, _SHORT + 1)
        )
    except (NotRecognized, *FAILURES):
        return None
    if further != last + 1:
        return None
    axis: int = node.attribute("axis", 0)
    return graph.dims(table)[axis] - 1 - last + _SHORT


def _trace(graph: Graph, feeds: Mapping[str, Array], length: int) -> Trace:
    # A feature is measured by what it is in every transformer, so that none is computed.
    return Trace(
        graph, (), feeds, sizes_of=lambda name: (1, length, 1) if graph.is_feature(name) else None
    )
