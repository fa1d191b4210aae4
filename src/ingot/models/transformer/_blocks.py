"""Blocks: attention and MLP, normalized before or after."""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._functions import ACTIVATIONS
from ingot.models.transformer._heads import HeadReader, Heads
from ingot.models.transformer._norms import Norm
from ingot.models.transformer._pieces import Dense, Piece, Product, Softmax
from ingot.models.transformer._probes import MOVES, SCALES, SUMS, Probes, Values, mapped
from ingot.models.transformer._scores import ScoreReader, Scores
from ingot.models.transformer.refusal import NotRecognized
from ingot.models.transformer.spec import Activation

P = TypeVar("P", Dense, Norm, Product, Softmax)
CURVES = SCALES | {"Erf", "Gelu", "Pow", "Relu", "Sigmoid", "Tanh", "Swish"}
_PROBABILITIES = MOVES | {"IsNaN", "Where"}


@dataclass(frozen=True, slots=True)
class Attention:
    """One block's attention."""

    q: Heads
    k: Heads
    v: Heads
    o: Dense
    scores: Scores

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values that differ."""
        return len(np.unique(self.v.columns[:, 0]))

    def named(self, name: str) -> dict[str, Array]:
        """Return its tensors under the name of its block."""
        repeats = len(self.q.columns) // self.kv_heads
        found = self.o.named(f"{name}.o")
        for part, heads, step in (("q", self.q, 1), ("k", self.k, repeats), ("v", self.v, repeats)):
            rows = heads.columns[::step].reshape(-1)
            found |= heads.dense.named(f"{name}.{part}", rows)
        return found


@dataclass(frozen=True, slots=True)
class Mlp:
    """One block's MLP; `up_rows` and `gate_rows` say which outputs of a joint layer are which."""

    up: Dense
    down: Dense
    activation: Activation
    gate: Dense | None = None
    up_rows: Array | None = None
    gate_rows: Array | None = None

    @property
    def inner(self) -> int:
        """Width inside."""
        return int(self.down.matrix.values.shape[1])

    def named(self, name: str) -> dict[str, Array]:
        """Return its tensors under the name of its block."""
        found = self.up.named(f"{name}.up", self.up_rows) | self.down.named(f"{name}.down")
        if self.gate is not None:
            found |= self.gate.named(f"{name}.gate", self.gate_rows)
        return found


@dataclass(frozen=True, slots=True)
class Block:
    """A block; of a post-norm block the norms stand after attention and MLP."""

    attention: Attention
    mlp: Mlp
    attention_norm: Norm | None
    mlp_norm: Norm
    norm_first: bool


@dataclass(slots=True)
class BlockReader:
    """Reads one block after another.

    Attributes:
        probes: The traces.
        heads: Reads what products of attention read.
        scores: Reads what is between scores and softmax.
        stream: What enters the next block, in every trace.
        embedding_norm: The norm of the embeddings, once it is known to be one.
        blocks: What was read.
    """

    probes: Probes
    heads: HeadReader
    scores: ScoreReader
    stream: Values
    embedding_norm: Norm | None = None
    blocks: list[Block] = field(default_factory=list)

    def read_all(self) -> None:
        """Read blocks as long as there is attention left.

        Raises:
            NotRecognized: A node does not fit into a block.
        """
        while any(isinstance(piece, Softmax) for piece in self.probes.unused()):
            self._read(f"block {len(self.blocks)}")
        if not self.blocks:
            raise NotRecognized("no softmax is left that attention could use: it has no blocks")

    def _read(self, where: str) -> None:
        norms = self._norms_before(where)
        inner = self.stream if not norms else self.probes.tokens(norms[-1].output)
        attention = self._attention(inner, where)
        stream, norms = self._residual(attention.o, norms, where)
        middle = self._expect(Norm, where, "the norm after attention")
        if not self.probes.same(middle.inputs[0], stream):
            raise NotRecognized(
                f"{where}: {middle.nodes[0].label} does not read the sum of attention and its input"
            )
        self._use(middle, middle.inputs[0], SUMS, where)
        normed = self.probes.tokens(middle.output)
        mlp = self._mlp(normed, where)
        down = self.probes.tokens(mlp.down.output)
        sums = {False: mapped(np.add, normed, down), True: mapped(np.add, stream, down)}
        norm_first = self._order(sums, where)
        self.stream = sums[norm_first]
        if norm_first:
            block = Block(attention, mlp, norms[-1] if norms else None, middle, True)
        else:
            block = self._post_norm(attention, mlp, middle, norms, where)
        self.blocks.append(block)

    def _post_norm(
        self, attention: Attention, mlp: Mlp, middle: Norm, norms: list[Norm], where: str
    ) -> Block:
        last = self._expect(Norm, where, "the norm after the MLP")
        if norms or not self.probes.same(last.inputs[0], self.stream):
            raise NotRecognized(f"{where}: {last.nodes[0].label} is not the norm after the MLP")
        self._use(last, last.inputs[0], SUMS, where)
        self.stream = self.probes.tokens(last.output)
        return Block(attention, mlp, middle, last, False)

    def _norms_before(self, where: str) -> list[Norm]:
        """Take the norms that read the stream: none, one, or, of the embeddings too, two."""
        found: list[Norm] = []
        values = self.stream
        while isinstance(piece := self.probes.unused()[0], Norm):
            if not self.probes.same(piece.inputs[0], values) or len(found) == 2:
                raise NotRecognized(
                    f"{where}: {piece.nodes[0].label} does not read what enters the block"
                )
            self._use(piece, piece.inputs[0], SUMS, where)
            values = self.probes.tokens(piece.output)
            found.append(piece)
        if len(found) == 2:
            if self.blocks:
                raise NotRecognized(f"{where}: {found[1].nodes[0].label} is a second norm in a row")
            self.embedding_norm = found.pop(0)
            self.stream = self.probes.tokens(self.embedding_norm.output)
        return found

    def _residual(self, o: Dense, norms: list[Norm], where: str) -> tuple[Values, list[Norm]]:
        """Return the stream after attention; a lone norm before block 0 may be the embeddings'."""
        added = self.probes.tokens(o.output)
        stream = mapped(np.add, self.stream, added)
        if self.blocks or not norms or self.embedding_norm is not None:
            return stream, norms
        following = self.probes.unused()[0]
        if self.probes.same(following.inputs[0], stream):
            return stream, norms
        self.embedding_norm = norms[0]
        self.stream = self.probes.tokens(norms[0].output)
        return mapped(np.add, self.stream, added), []

    def _order(self, sums: dict[bool, Values], where: str) -> bool:
        """Return whether the block is pre-norm: which sum goes on."""
        unused = self.probes.unused()
        names = [p.inputs[0] for p in unused[:1]] or list(self.probes.graph.outputs)
        for norm_first in (False, True):
            if any(self.probes.same(name, sums[norm_first]) for name in names):
                return norm_first
        if self.blocks:
            return self.blocks[-1].norm_first
        return not (unused and isinstance(unused[0], Norm))

    def _attention(self, inner: Values, where: str) -> Attention:
        probes, group = self.probes, self._readers(inner)
        where = f"{where}, attention"
        for dense in group:
            probes.take(dense)
        product = self._expect(Product, where, "the product of queries and keys")
        q = self.heads.read(product.inputs[0], group, turned=False, where=f"{where}, queries")
        k = self.heads.read(product.inputs[1], group, turned=True, where=f"{where}, keys")
        probes.take(product)
        softmax = self._expect(Softmax, where, "the softmax of the scores")
        scores = self.scores.read(product, softmax, len(q.columns), where)
        probes.take(softmax)
        mix = self._expect(Product, where, "the product of probabilities and values")
        shares = [a.reshape(b.shape) if a.size == b.size else a for a, b in
                  zip(probes[mix.inputs[0]], probes[softmax.output], strict=True)]  # fmt: skip
        if not all(
            np.array_equal(a, b) for a, b in zip(shares, probes[softmax.output], strict=True)
        ):
            raise NotRecognized(f"{where}: {mix.nodes[0].label} does not read the softmax")
        probes.explain(mix.inputs[0], _PROBABILITIES, where)
        v = self.heads.read(mix.inputs[1], group, turned=False, where=f"{where}, values")
        probes.take(mix)
        o = self._output(mix, len(q.columns), where)
        return self._checked(Attention(q, k, v, o, scores), group, where)

    def _output(self, mix: Product, heads: int, where: str) -> Dense:
        dense = self._expect(Dense, where, "the layer after attention")
        joined = []
        for value, size in zip(self.probes[mix.output], self.probes.sizes, strict=True):
            parts = value.reshape(size.batch, heads, size.length, -1)
            joined.append(parts.transpose(0, 2, 1, 3).reshape(size.batch, size.length, -1))
        if not self.probes.same(dense.inputs[0], joined):
            raise NotRecognized(f"{where}: {dense.nodes[0].label} does not read the joined heads")
        self._use(dense, dense.inputs[0], MOVES, where)
        return dense

    def _checked(self, found: Attention, group: list[Dense], where: str) -> Attention:
        """Check what all three must agree on."""
        q, k, v = found.q, found.k, found.v
        repeats = len(q.columns) // found.kv_heads
        shared = all(
            np.array_equal(np.repeat(h.columns[::repeats], repeats, axis=0), h.columns)
            for h in (k, v)
        )
        alike = q.rotary_dim == k.rotary_dim and not v.rotary_dim
        alike &= abs(q.base - k.base) <= 1e-4 * q.base  # each was found and checked by itself
        if not shared or not alike or v.scale != 1 or q.columns.shape != k.columns.shape:
            raise NotRecognized(f"{where}: queries, keys and values are not cut and rotated alike")
        used = {heads.dense.output for heads in (q, k, v)}
        extra = next((d for d in group if d.output not in used), None)
        if extra is not None:
            raise NotRecognized(f"{where}: {extra.nodes[0].label} gives no queries, keys or values")
        return found

    def _readers(self, values: Values) -> list[Dense]:
        """Return the layers that read a tensor and are not accounted for."""
        found: list[Dense] = []
        for piece in self.probes.unused():
            if isinstance(piece, Dense) and self.probes.same(piece.inputs[0], values):
                self.probes.explain(piece.inputs[0], SUMS, "block input")
                found.append(piece)
        return found

    def _mlp(self, normed: Values, where: str) -> Mlp:
        where, group = f"{where}, MLP", self._readers(normed)
        if not 1 <= len(group) <= 2:
            first = self.probes.unused()
            label = first[0].nodes[0].label if first else "the output"
            raise NotRecognized(
                f"{where}: {len(group)} layers read its norm, not one or two; {label} comes next"
            )
        for dense in group:
            self.probes.take(dense)
        down = self._expect(Dense, where, "the layer down")
        found = self._match(group, down)
        if found is None:
            raise NotRecognized(self._misfit(down.inputs[0], where))
        self._use(down, down.inputs[0], CURVES, where)
        return found

    def _match(self, group: list[Dense], down: Dense) -> Mlp | None:
        """Try every activation, gated or not."""
        values = [self.probes.tokens(dense.output) for dense in group]
        if len(group) == 1:
            for name, curve in ACTIVATIONS.items():
                if self.probes.same(down.inputs[0], mapped(curve, values[0])):
                    return Mlp(group[0], down, name)
            half = values[0][0].shape[-1] // 2
            values = [
                [v[..., part] for v in values[0]] for part in (slice(half), slice(half, None))
            ]
            rows = [np.arange(half), np.arange(half, 2 * half)]
            group = group * 2
        else:
            rows = [np.arange(v[0].shape[-1]) for v in values]
        if values[0][0].shape != values[1][0].shape:
            return None
        for gate, up in ((0, 1), (1, 0)):
            for name, curve in ACTIVATIONS.items():
                product = mapped(lambda g, u, c=curve: c(g) * u, values[gate], values[up])
                if self.probes.same(down.inputs[0], product):
                    return Mlp(group[up], down, name, group[gate], rows[up], rows[gate])
        return None

    def _misfit(self, name: str, where: str) -> str:
        region = self.probes.region(name)
        node = next((n for n in region if n.op not in CURVES), None)
        if node is not None:
            return f"{where}: the activation between up and down is {node.label}"
        label = region[0].label if region else "missing"
        return (
            f"{where}: the activation between up and down, which begins with {label}, is none of "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )

    def _expect(self, kind: type[P], where: str, what: str) -> P:
        """Return the next piece, which must be of a kind."""
        unused = self.probes.unused()
        if unused and isinstance(unused[0], kind):
            return unused[0]
        label = unused[0].nodes[0].label if unused else "the end of the graph"
        raise NotRecognized(f"{where}: {label} stands where {what} was expected")

    def _use(self, piece: Piece, name: str, allowed: frozenset[str], where: str) -> None:
        self.probes.explain(name, allowed, where)
        self.probes.take(piece)
