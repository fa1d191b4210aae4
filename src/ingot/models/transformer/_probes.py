"""What flows through a graph when its pieces give random numbers: how tensors are told apart.

Every piece (norm, layer, product, softmax) answers numbers of its own; what lies between is really
computed. Two tensors that carry the same numbers at several sizes are then the same function of
the same pieces, however the nodes between them are written.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._fused import REPEAT
from ingot.models.transformer._graph import Graph, Node
from ingot.models.transformer._inputs import Roles
from ingot.models.transformer._pieces import Piece
from ingot.models.transformer.refusal import NotRecognized

# Of the largest magnitude: float32 sums of a few terms stay below it, and GELU's two forms, which
# differ by 5e-4, above it.
TOLERANCE = 1e-5
_FEW = 8
_SPREAD = 3.0  # of the random numbers: curves that bend far from zero are told apart too

MOVES = frozenset(
    ("Cast", "Concat", "Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze")
) | frozenset(("Tile", "Transpose", "Unsqueeze", REPEAT))
SUMS = MOVES | {"Add", "Sum"}
SCALES = MOVES | {"Add", "Div", "Mul", "Neg", "Sub"}

EMBEDDINGS = "embeddings"  # the one part that may read ids and types

Values = list[Array]


class Trace:
    """The tensors of a graph for one set of inputs, computed when asked for."""

    def __init__(
        self,
        graph: Graph,
        pieces: Iterable[Piece],
        feeds: Mapping[str, Array],
        *,
        seed: int = 0,
        sizes_of: Callable[[str], tuple[int, ...] | None] | None = None,
    ) -> None:
        """Take the inputs.

        Args:
            graph: The graph.
            pieces: What answers random numbers; nothing is computed behind them.
            feeds: Values of inputs, and of any other tensor that is to be replaced.
            seed: Of the random numbers.
            sizes_of: Knows the sizes of features, which are then not computed to be measured, and
                pieces answer zeros that take no memory: for long sequences.
        """
        self._graph, self._seed, self._sizes_of = graph, seed, sizes_of
        self._pieces = {piece.output: piece for piece in pieces}
        self._values = dict(feeds)

    def __getitem__(self, name: str) -> Array:
        """Return a tensor."""
        waiting = [name]
        while waiting:
            top = waiting[-1]
            missing = [n for n in self._needs(top) if n not in self._values]
            if missing:
                waiting += missing
            else:
                self._compute(waiting.pop())
        return self._values[name]

    def _needs(self, name: str) -> tuple[str, ...]:
        if name in self._values or self._graph.is_constant(name):
            return ()
        piece = self._pieces.get(name)
        if piece is not None:
            return piece.inputs
        if self._known_sizes(name) is not None:
            return ()
        return tuple(
            n for n in self._graph.maker[name].inputs if n and not self._graph.is_constant(n)
        )

    def _known_sizes(self, name: str) -> tuple[int, ...] | None:
        """Return the sizes that a Shape node would measure, if they are known without."""
        node = self._graph.maker[name]
        if self._sizes_of is None or node.op != "Shape":
            return None
        return self._sizes_of(node.inputs[0])

    def _compute(self, name: str) -> None:
        if name in self._values:
            return
        if self._graph.is_constant(name):
            self._values[name] = self._graph.constant(name)
            return
        piece = self._pieces.get(name)
        if piece is not None:
            self._values[name] = self._random(piece)
            return
        node, sizes = self._graph.maker[name], self._known_sizes(name)
        inputs = [self._get(n) if n else None for n in node.inputs if sizes is None]
        if sizes is not None:
            inputs = [np.broadcast_to(np.zeros((), np.float32), sizes)]
        made = self._graph.operators.run(node.proto, inputs)
        self._values |= zip([o for o in node.outputs if o], made, strict=False)

    def _get(self, name: str) -> Array:
        return self._graph.constant(name) if name not in self._values else self._values[name]

    def _random(self, piece: Piece) -> Array:
        shapes = [self._values[n].shape for n in piece.inputs]
        try:
            shape = piece.shape(*shapes)
        except ValueError as error:
            raise NotRecognized(f"{piece.nodes[0].label} does not fit its inputs") from error
        if self._sizes_of is not None:
            return np.broadcast_to(np.zeros((), np.float32), shape)
        rng = np.random.default_rng((self._seed, piece.nodes[-1].place))
        found: Array = rng.normal(0, _SPREAD, shape).astype(np.float32)
        return found


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many sequences a trace has, how long they are, and where each ends."""

    length: int
    ends: tuple[int, ...]

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self.ends)

    def real(self) -> Array:
        """Return which tokens are no padding, `(batch, length)`."""
        found: Array = np.arange(self.length) < np.array(self.ends)[:, None]
        return found


class Probes:
    """Traces at several sizes, and which nodes have been explained so far."""

    def __init__(self, graph: Graph, pieces: list[Piece], roles: Roles, sizes: list[Sizes]) -> None:
        """Start traces; the last one has padding if the graph takes a mask."""
        self.graph, self.pieces, self.roles, self.sizes = graph, pieces, roles, sizes
        self.traces = [
            Trace(graph, pieces, roles.feeds(s.real(), seed=at), seed=at)
            for at, s in enumerate(sizes)
        ]
        self._used: set[str] = set()
        self._explained: set[int] = set()
        self._sources: dict[str, frozenset[str]] = {}

    def far(self, length: int, replaced: Mapping[str, Array]) -> Trace:
        """Return a trace of one sequence of the longest kind, in which some tensors are given."""
        feeds = self.roles.feeds(np.ones((1, length), bool), seed=0)
        return Trace(
            self.graph,
            self.pieces,
            feeds | dict(replaced),
            sizes_of=lambda name: (
                self._sizes(name, length) if self.graph.is_feature(name) else None
            ),
        )

    def _sizes(self, name: str, length: int) -> tuple[int, ...] | None:
        """Return the sizes of a tensor for one long sequence, if they follow batch and length."""
        found = []
        for dims in zip(*(value.shape for value in self[name]), strict=True):
            for power in ((0, 0), (1, 0), (0, 1), (1, 1)):
                units = [s.batch ** power[0] * s.length ** power[1] for s in self.sizes]
                shares = {dim / unit for dim, unit in zip(dims, units, strict=True)}
                if len(shares) == 1 and (share := shares.pop()).is_integer():
                    found.append(int(share) * length ** power[1])
                    break
            else:
                return None
        return tuple(found)

    def beside(self, name: str) -> tuple[object, ...]:
        """Return what the nodes between the pieces and a tensor read that is no feature.

        Sizes and factors count by their value, masks and angles by their name: two masks may be
        equal on short sequences only.
        """
        found: list[object] = []
        for node in self.region(name):
            for read in (n for n in node.inputs if n and not self.graph.is_feature(n)):
                values = self[read]
                small = all(value.ndim < 2 and value.size <= _FEW for value in values)
                found.append(tuple(v.tobytes() for v in values) if small else read)
        return tuple(found)

    def __getitem__(self, name: str) -> Values:
        """Return a tensor in every trace."""
        return [trace[name] for trace in self.traces]

    def tokens(self, name: str) -> Values:
        """Return a tensor of token features in every trace, `(batch, length, width)`."""
        found = []
        for value, size in zip(self[name], self.sizes, strict=True):
            rows = size.batch * size.length
            if value.ndim not in (2, 3) or value.size % rows:
                raise NotRecognized(
                    f"{self.label(name)} gives {list(value.shape)}, no row for each token"
                )
            found.append(value.reshape(size.batch, size.length, -1))
        return found

    def same(self, name: str, values: Values) -> bool:
        """Whether a tensor carries these numbers, up to its division into axes and padding."""
        for mine, value, size in zip(self[name], values, self.sizes, strict=True):
            if mine.size != value.size:
                return False
            mine = mine.reshape(value.shape)
            if value.shape[:2] == (size.batch, size.length):
                mine, value = mine[size.real()], value[size.real()]
            if not close(mine, value):
                return False
        return True

    def take(self, piece: Piece) -> None:
        """Account for a piece."""
        self._used.add(piece.output)
        self._explained.update(node.place for node in piece.nodes)

    def unused(self) -> list[Piece]:
        """Return the pieces that are not accounted for, in order."""
        return [piece for piece in self.pieces if piece.output not in self._used]

    def label(self, name: str) -> str:
        """Return the node that makes a tensor, or the input, in words."""
        node = self.graph.maker.get(name)
        return f"input {name!r}" if node is None else node.label

    def sources(self, name: str) -> frozenset[str]:
        """Return the outputs of the pieces that a tensor is made from."""
        if name not in self._sources:
            ends = {piece.output for piece in self.pieces}
            if name in ends:
                return frozenset({name})
            made = self.region(name)
            read = {n for node in made for n in node.inputs} | {name}
            self._sources[name] = frozenset(read & ends)
        return self._sources[name]

    def region(self, name: str) -> list[Node]:
        """Return the nodes between the pieces and a tensor that compute features."""
        ends = {piece.output for piece in self.pieces}
        if name in ends:
            return []
        makers = self.graph.ancestors(name, stop=ends)
        return [n for n in makers if any(self.graph.is_feature(o) for o in n.outputs)]

    def explain(self, name: str, allowed: frozenset[str], where: str) -> None:
        """Account for the nodes between the pieces and a tensor.

        Raises:
            NotRecognized: One of them is an operator that has no place there.
        """
        for node in self.region(name):
            if node.place in self._explained:
                continue
            if node.op not in allowed:
                raise NotRecognized(f"{where}: {node.label} has no place there")
            self._check_reads(node, where)
            self._explained.add(node.place)

    def _check_reads(self, node: Node, where: str) -> None:
        """Check that ids and types enter by the embeddings alone."""
        picking = {self.roles.ids, self.roles.types}
        for name in node.inputs:
            beside = name and not self.graph.is_feature(name)
            if beside and where != EMBEDDINGS and not picking.isdisjoint(self.graph.reads(name)):
                raise NotRecognized(
                    f"{where}: {node.label} depends on token ids or types, not on the mask"
                )

    def check_all(self) -> None:
        """Check that nothing of the graph is left over.

        Raises:
            NotRecognized: A node computes features that nobody accounted for.
        """
        for node in self.graph.ancestors(self.graph.outputs[0]):
            feature = any(self.graph.is_feature(name) for name in node.outputs)
            if feature and node.place not in self._explained:
                raise NotRecognized(f"{node.label} belongs to no part of a transformer")


def close(mine: Array, value: Array, tolerance: float = TOLERANCE) -> bool:
    """Whether two arrays are equal up to rounding."""
    if mine.shape != value.shape:
        return False
    scale = float(np.abs(value).max(initial=0)) or 1.0
    with np.errstate(all="ignore"):
        return bool((np.abs(mine - value) <= tolerance * scale).all())


def mapped(function: Callable[..., Array], *values: Values) -> Values:
    """Apply a function trace by trace."""
    return [function(*one) for one in zip(*values, strict=True)]
