"""The sum of embeddings: tables of tokens, of positions and of token types."""

from dataclasses import dataclass, field

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._graph import Node
from ingot.models.transformer._probes import EMBEDDINGS, SCALES, Probes, Trace, Values
from ingot.models.transformer._weights import Matrix
from ingot.models.transformer.refusal import NotRecognized

# Rows may come as integers, or as two halves of bytes, and be widened before they are added.
_ROWS = SCALES | {"DequantizeLinear", "Floor", "GatherElements"}
_MOST = 127


@dataclass(frozen=True, slots=True)
class Embedding:
    """Tables and what they give.

    Attributes:
        tables: `tokens`, `positions`, `types` -> `[rows, hidden]`, float32.
        values: Their sum in every trace, `(batch, length, hidden)`.
        positions: Longest sequence.
        offset: Row of the position of the first token.
        padding_id: A token that takes no place (RoBERTa); -1 for none.
        integers: The table of tokens as integers with one scale per row; None if it is float.
    """

    tables: dict[str, Array]
    values: Values
    positions: int
    offset: int
    padding_id: int
    integers: Matrix | None = None


@dataclass(slots=True)
class _Found:
    """Gathers by what their indices are."""

    gathers: dict[int, str] = field(default_factory=dict)
    offset: int = 0
    constant: Array | None = None


def read_embedding(probes: Probes, longest: int) -> Embedding:
    """Read the embeddings: what enters the first piece.

    Args:
        probes: The traces.
        longest: Tokens that a sequence may have at most.

    Raises:
        NotRecognized: It is no sum of rows of tables.
    """
    if not probes.pieces:
        raise NotRecognized("it has no layers")
    name = probes.pieces[0].inputs[0]
    values = probes.tokens(name)
    found = _classify(probes, name)
    tables: dict[str, Array] = {}
    integers: Matrix | None = None
    for leaf, kind in _leaves(probes, name, found.gathers).items():
        table = _table(probes, leaf, kind, found)
        if kind == "tokens":
            integers = None if kind in tables else _integers(probes, leaf, table, found)
        tables[kind] = tables[kind] + table if kind in tables else table
    if "tokens" not in tables:
        raise NotRecognized(f"{probes.label(name)} adds no rows that the token ids pick")
    _check_sum(probes, name, tables, found.offset)
    probes.explain(name, _ROWS, EMBEDDINGS)
    positions = _positions(probes, tables, found, longest)
    if "positions" in tables:
        tables["positions"] = tables["positions"][: found.offset + positions]
    skipped = _padding_id(probes, found)
    return Embedding(tables, values, positions, found.offset, skipped, integers)


def _classify(probes: Probes, name: str) -> _Found:
    found = _Found()
    for node in probes.graph.ancestors(name):
        if node.op != "Gather" or not probes.graph.is_constant(node.inputs[0]):
            continue
        table = probes.graph.constant(node.inputs[0])
        is_table = table.ndim == 2 and (table.dtype.kind == "f" or table.dtype.itemsize == 1)
        if not is_table and not probes.graph.is_feature(node.outputs[0]):
            continue
        if node.attribute("axis", 0) != 0:
            raise NotRecognized(f"embeddings: {node.label} does not pick rows")
        found.gathers[node.place] = _kind(probes, node, found)
    return found


def _kind(probes: Probes, node: Node, found: _Found) -> str:
    indices = probes[node.inputs[1]]
    roles, real = probes.roles, [s.real() for s in probes.sizes]
    whole = [
        np.broadcast_to(i, r.shape) if i.ndim < 3 else i for i, r in zip(indices, real, strict=True)
    ]
    for kind, source in (("tokens", roles.ids), ("types", roles.types)):
        if source is not None and _equal(whole, probes[source], real):
            _check_picking(probes, node, source)
            return kind
    first = int(whole[0].flat[0])
    places = [np.broadcast_to(np.arange(r.shape[1]) + first, r.shape) for r in real]
    if _equal(whole, places, real):
        found.offset = first
        return "positions"
    if _equal(whole, [np.full(r.shape, first) for r in real], real):
        found.constant = np.array([first])
        return "types"
    raise NotRecognized(
        f"embeddings: {node.label} picks rows neither by token, by type nor by position"
    )


def _check_picking(probes: Probes, node: Node, source: str) -> None:
    """Check that every id, not only those that were tried, picks the row of its number."""
    rows = probes.roles.vocab if source == probes.roles.ids else probes.roles.type_rows
    feeds = probes.roles.feeds(np.ones((1, rows), bool), seed=0)
    feeds[source] = np.arange(rows)[None].astype(feeds[source].dtype)
    index = Trace(probes.graph, (), feeds)[node.inputs[1]].reshape(-1)
    if not np.array_equal(index, np.arange(rows)):
        raise NotRecognized(f"embeddings: {node.label} does not pick the row of each id")


def _equal(mine: Values, theirs: Values, real: Values) -> bool:
    return all(
        a.shape == b.shape and bool((a[r] == b[r]).all())
        for a, b, r in zip(mine, theirs, real, strict=True)
    )


def _leaves(probes: Probes, name: str, gathers: dict[int, str]) -> dict[str, str]:
    """Split a sum into its terms: tensor -> what its rows are picked by."""
    leaves: dict[str, str] = {}
    waiting = [name]
    while waiting:
        tensor = waiting.pop()
        made = probes.graph.ancestors(tensor)
        kinds = {gathers[node.place] for node in made if node.place in gathers}
        if len(kinds) == 1:
            leaves[tensor] = kinds.pop()
            continue
        node = probes.graph.maker.get(tensor)
        if not kinds or node is None or node.op not in ("Add", "Cast", "Reshape", "Unsqueeze"):
            raise NotRecognized(f"embeddings: {probes.label(tensor)} is no sum of rows of tables")
        waiting += node.inputs if node.op == "Add" else node.inputs[:1]
    return leaves


def _table(probes: Probes, leaf: str, kind: str, found: _Found) -> Array:
    """Return a term for every row that could be picked."""
    graph = probes.graph
    picking = [node for node in graph.ancestors(leaf) if node.place in found.gathers]
    rows = min(graph.dims(node.inputs[0])[0] for node in picking)
    which = np.arange(rows) if kind != "types" or found.constant is None else found.constant
    feeds = probes.roles.feeds(np.ones((1, which.size), bool), seed=0)
    feeds |= {node.inputs[1]: which[None].astype(np.int64) for node in picking}
    value, count = Trace(graph, (), feeds)[leaf], which.size
    return np.ascontiguousarray(value.reshape(count, -1), np.float32)


def _integers(probes: Probes, leaf: str, table: Array, found: _Found) -> Matrix | None:
    """Return a table as the integers that it is widened from, if its scales are gathered too."""
    graph = probes.graph
    picking = [node for node in graph.ancestors(leaf) if node.place in found.gathers]
    stored = [graph.constant(node.inputs[0]) for node in picking]
    scales = [s for s in stored if s.dtype.kind == "f" and s.shape == (len(table), 1)]
    if len(scales) != 1 or len(stored) != 2:
        return None
    scale = scales[0].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(np.where(scale != 0, table / scale, 0))
    if np.abs(codes).max(initial=0) > _MOST or not np.array_equal(codes * scale, table):
        return None
    return Matrix(codes.astype(np.int8), scale)


def _check_sum(probes: Probes, name: str, tables: dict[str, Array], offset: int) -> None:
    expected = []
    for trace, size in zip(probes.traces, probes.sizes, strict=True):
        total = tables["tokens"][trace[probes.roles.ids]]
        if "positions" in tables:
            total = total + tables["positions"][offset : offset + size.length]
        if "types" in tables:
            types = trace[probes.roles.types] if probes.roles.types else np.zeros((1, 1), np.int64)
            total = total + tables["types"][types]
        expected.append(total)
    if not probes.same(name, expected):
        raise NotRecognized(f"embeddings: {probes.label(name)} is more than a sum of rows")


def _positions(probes: Probes, tables: dict[str, Array], found: _Found, longest: int) -> int:
    """Return the longest sequence, up to which positions pick row after row."""
    if probes.roles.fixed[1] is not None:
        longest = min(longest, probes.roles.fixed[1])
    if "positions" not in tables:
        return longest
    longest = min(longest, len(tables["positions"]) - found.offset)
    for node in probes.graph.nodes:
        if found.gathers.get(node.place) == "positions":
            index = probes.far(longest, {})[node.inputs[1]].reshape(-1)
            if not np.array_equal(index, np.arange(longest) + found.offset):
                raise NotRecognized(f"embeddings: {node.label} does not pick row after row")
    return longest


def _padding_id(probes: Probes, found: _Found) -> int:
    """Return the token that positions, counted from the ids, do not count; -1 if none.

    Raises:
        NotRecognized: There are several, or positions follow the ids in another way.
    """
    graph, roles = probes.graph, probes.roles
    node = next((n for n in graph.nodes if found.gathers.get(n.place) == "positions"), None)
    if node is None or roles.ids not in graph.reads(node.inputs[1]):
        return -1
    feeds = roles.feeds(np.ones((1, roles.vocab), bool), seed=0)
    feeds[roles.ids] = np.arange(roles.vocab)[None].astype(roles.kinds[roles.ids])
    index = np.asarray(Trace(graph, (), feeds)[node.inputs[1]]).reshape(-1)
    skipped = np.flatnonzero(index == found.offset - 1)
    if len(skipped) > 1 or not len(skipped):
        raise NotRecognized(f"embeddings: {node.label} counts positions by the ids in its own way")
    counted = np.delete(index, skipped)
    if not (counted == np.arange(len(counted)) + found.offset).all():
        raise NotRecognized(f"embeddings: {node.label} counts positions by the ids in its own way")
    return int(skipped[0])
