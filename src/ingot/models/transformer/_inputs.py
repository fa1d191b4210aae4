"""Which input holds token ids, which the mask, which the token types: told by what reads them."""

from dataclasses import dataclass

import numpy as np
from onnx import helper

from ingot.data.data import Array
from ingot.models.transformer._graph import Graph
from ingot.models.transformer.refusal import NotRecognized

_FOLLOWED = frozenset(("Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True, slots=True)
class Roles:
    """The inputs of a transformer.

    Attributes:
        ids: Picks rows of the token table.
        mask: 1 for a token, 0 for padding; None if every token counts.
        types: Picks rows of a second table; None if there is none.
        vocab: Rows of the token table.
        type_rows: Rows of the table of types.
        kinds: Numpy type of each input.
        fixed: Batch and length where the graph fixes them, else None.
    """

    ids: str
    mask: str | None
    types: str | None
    vocab: int
    type_rows: int
    kinds: dict[str, np.dtype]
    fixed: tuple[int | None, int | None]

    def feeds(self, real: Array, *, seed: int) -> dict[str, Array]:
        """Return inputs of which `real` `(batch, length)` says what is no padding.

        Ids come from the upper half of the vocabulary: low ids may mean padding.
        """
        rng = np.random.default_rng((7, seed))
        found = {self.ids: rng.integers(self.vocab // 2, self.vocab, real.shape)}
        if self.types is not None:
            found[self.types] = rng.integers(0, self.type_rows, real.shape)
        if self.mask is not None:
            found[self.mask] = real
        return {name: value.astype(self.kinds[name]) for name, value in found.items()}


def find_roles(graph: Graph) -> Roles:
    """Tell the inputs apart.

    Raises:
        NotRecognized: No input picks rows of a table, or one has no known part.
    """
    read = {name for node in graph.nodes for name in node.inputs} & set(graph.inputs)
    rows = {name: _rows_picked(graph, name) for name in graph.inputs if name in read}
    picking = sorted((name for name in rows if rows[name]), key=lambda n: -rows[n])
    if not picking:
        raise NotRecognized(_no_tokens(graph))
    for name in rows:
        _check_shape(graph, name)
    others = [name for name in rows if not rows[name]]
    for name in (*picking[2:], *others[1:]):
        raise NotRecognized(f"input {name!r} is neither token ids, their mask nor their types")
    dims = [graph.inputs[name].dims for name in rows]
    batch, length = (next((d[axis] for d in dims if d[axis]), None) for axis in (0, 1))
    if batch is not None and batch < 2:
        raise NotRecognized(f"the batch axis is fixed at {batch}; export it with a dynamic one")
    kinds = {n: helper.tensor_dtype_to_np_dtype(graph.inputs[n].kind) for n in rows}
    types = picking[1] if len(picking) > 1 else None
    return Roles(
        ids=picking[0],
        mask=others[0] if others else None,
        types=types,
        vocab=rows[picking[0]],
        type_rows=rows[types] if types else 0,
        kinds=kinds,
        fixed=(batch, length),
    )


def _rows_picked(graph: Graph, name: str) -> int:
    """Return the rows of the largest constant table that an input picks from; 0 for none."""
    most, waiting = 0, [name]
    while waiting:
        tensor = waiting.pop()
        for node in graph.readers.get(tensor, ()):
            picks = node.op == "Gather" and node.inputs[1] == tensor
            if picks and graph.is_constant(node.inputs[0]):
                most = max(most, graph.dims(node.inputs[0])[0])
            elif node.op in _FOLLOWED and node.inputs[0] == tensor:
                waiting += node.outputs
    return most


def _check_shape(graph: Graph, name: str) -> None:
    given = graph.inputs[name]
    if len(given.dims) != 2:
        raise NotRecognized(
            f"input {name!r} has {len(given.dims)} axes; ids, masks and types have two, batch and "
            "sequence (cross-attention and features from outside are not known)"
        )


def _no_tokens(graph: Graph) -> str:
    node = next((n for n in graph.nodes if not set(n.inputs).isdisjoint(graph.inputs)), None)
    what = "the graph is constant" if node is None else f"{node.label} reads an input"
    return f"no input picks rows of a table of tokens: {what}"
