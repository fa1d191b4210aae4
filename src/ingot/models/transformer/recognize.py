"""From an ONNX graph to what the native engine needs: a spec and named tensors.

The graph is matched by structure. Pieces with weights are found in it; each is made to answer
random numbers of its own, and what lies between them is computed and compared with what a
transformer would compute there. No name of a model, node or tensor is looked at.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnx

from ingot.data.data import Array
from ingot.models.external import ExternalData
from ingot.models.transformer._blocks import Block, BlockReader
from ingot.models.transformer._embedding import Embedding, read_embedding
from ingot.models.transformer._graph import Graph
from ingot.models.transformer._heads import HeadReader
from ingot.models.transformer._inputs import Roles, find_roles
from ingot.models.transformer._norms import Norm
from ingot.models.transformer._operators import FAILURES
from ingot.models.transformer._pieces import find_pieces
from ingot.models.transformer._probes import Probes, Sizes
from ingot.models.transformer._scores import ScoreReader
from ingot.models.transformer._tail import Tail, TailReader
from ingot.models.transformer._weights import Matrix
from ingot.models.transformer.refusal import NotRecognized
from ingot.models.transformer.spec import Position, TransformerSpec

LONGEST = 2048
_LENGTHS = (33, 12, 6)
_SHORT = 5


@dataclass(frozen=True, slots=True)
class Inputs:
    """Names of what the graph takes and gives.

    Attributes:
        ids: Token ids, `(batch, sequence)`.
        mask: 1 for a token, 0 for padding behind the tokens; None if every token counts. What the
            network makes of padding before or between tokens is not looked at.
        types: Token types; None if there are none to give.
        output: The answer.
    """

    ids: str
    mask: str | None
    types: str | None
    output: str


@dataclass(frozen=True, slots=True)
class Recognized:
    """A transformer taken apart.

    Attributes:
        spec: Its sizes and choices.
        tensors: Its weights, by the names that `spec.py` lists.
        inputs: What its inputs and output are called.
        notes: What was left out because it does not change the network's answers in float.
    """

    spec: TransformerSpec
    tensors: dict[str, Array]
    inputs: Inputs
    notes: tuple[str, ...] = ()


def recognize(
    proto: onnx.ModelProto,
    *,
    files: ExternalData | None = None,
    longest: int = LONGEST,
) -> Recognized:
    """Take a graph apart.

    Args:
        proto: A checked graph; not changed.
        files: Its large weights, if they are on disk.
        longest: Tokens that a sequence may have; fewer where a table of positions ends earlier.
            Masks and angles are checked up to here, in memory that grows with its square.

    Raises:
        NotRecognized: It is no transformer of a known kind; the message names the first misfit.
    """
    try:
        return _recognize(Graph(proto, files), longest)
    except NotRecognized:
        raise
    except (
        FAILURES
    ) as error:  # sizes that do not fit one another, of a graph that is something else
        raise NotRecognized(f"what it computes does not fit a transformer ({error})") from error


def _recognize(graph: Graph, longest: int) -> Recognized:
    if len(graph.outputs) != 1:
        names = ", ".join(repr(name) for name in graph.names)
        raise NotRecognized(f"it gives {len(graph.outputs)} outputs, {names}, where one is known")
    roles = find_roles(graph)
    probes, embedding = _probe(graph, roles, longest)
    positions = embedding.positions
    heads, scores = HeadReader(probes, positions), ScoreReader(probes, positions)
    reader = BlockReader(probes, heads, scores, embedding.values)
    reader.read_all()
    tail = TailReader(probes, reader.stream).read(norm_first=reader.blocks[-1].norm_first)
    probes.check_all()
    spec, tensors = _assemble(embedding, reader, tail)
    spec, tensors = _vocabulary_head(spec, tensors)
    inputs = Inputs(roles.ids, roles.mask, roles.types, graph.names[0])
    notes = ("ranges of quantized activations were left out",) if graph.rounded else ()
    return Recognized(spec, tensors, inputs, notes)


def _probe(graph: Graph, roles: Roles, longest: int) -> tuple[Probes, Embedding]:
    """Start traces, the longer the better; short tables of positions allow only short ones."""
    pieces = find_pieces(graph)
    batch, length = roles.fixed
    lengths = (length,) if length else [min(long, longest) for long in _LENGTHS]
    for at, long in enumerate(lengths):
        short = length or min(_SHORT, longest)
        sizes = [Sizes(short, (short,) * (batch or 2)), Sizes(long, (long,) * (batch or 3))]
        if roles.mask is not None:
            sizes.append(Sizes(long, _ends(batch or 4, long)))
        probes = Probes(graph, pieces, roles, sizes)
        try:
            return probes, read_embedding(probes, longest)
        except NotRecognized:
            if at == len(lengths) - 1:
                raise
    raise AssertionError("the last length either fits or raises")


def _ends(batch: int, length: int) -> tuple[int, ...]:
    """Return where the rows of a padded batch end: each elsewhere, so that none uses another's."""
    spread = (max(1, length - 2), 1, length, max(1, length // 2))
    return tuple(spread[row] if row < 4 else max(1, length - row) for row in range(batch))


def _assemble(
    embedding: Embedding, reader: BlockReader, tail: Tail
) -> tuple[TransformerSpec, dict[str, Array]]:
    first, tensors = reader.blocks[0], {}
    for name, table in embedding.tables.items():
        tensors[f"embed.{name}"] = table
    if embedding.integers is not None and embedding.integers.scale is not None:
        tensors["embed.tokens"] = embedding.integers.values
        tensors["embed.tokens_scale"] = embedding.integers.scale
    if reader.embedding_norm is not None:
        tensors |= reader.embedding_norm.named("embed.norm")
    for at, block in enumerate(reader.blocks):
        tensors |= _block_tensors(block, f"layers.{at}")
    relative = first.attention.scores.relative
    if relative is not None:
        tensors["relative"] = relative
    tensors |= tail.tensors
    shared = _shared([_block_facts(block) for block in reader.blocks])
    norms = [reader.embedding_norm, *tail.norms]
    norms += [n for b in reader.blocks for n in (b.attention_norm, b.mlp_norm)]
    facts = shared | _norm_facts([n for n in norms if n is not None]) | tail.facts
    hidden = embedding.tables["tokens"].shape[1]
    spec = TransformerSpec(
        layers=len(reader.blocks),
        hidden=hidden,
        vocab=len(embedding.tables["tokens"]),
        positions=embedding.positions,
        token_types=len(embedding.tables.get("types", ())),
        position=_position(reader.blocks, embedding),
        position_offset=embedding.offset,
        padding_id=embedding.padding_id,
        embedding_norm=reader.embedding_norm is not None,
        first_attention_norm=first.attention_norm is not None,
        rotary_bases=_rotary_bases(reader.blocks),
        windows=_windows(reader.blocks),
        **facts,
    )
    return spec, tensors


def _block_tensors(block: Block, name: str) -> dict[str, Array]:
    found = block.attention.named(name) | block.mlp.named(name)
    if block.attention_norm is not None:
        found |= block.attention_norm.named(f"{name}.attention_norm")
    return found | block.mlp_norm.named(f"{name}.mlp_norm")


def _block_facts(block: Block) -> dict[str, Any]:  # fields of the spec are of many types
    attention = block.attention
    scale = attention.scores.scale * attention.q.scale * attention.k.scale
    usual = attention.q.columns.shape[1] ** -0.5
    return {
        "heads": len(attention.q.columns),
        "kv_heads": attention.kv_heads,
        "head_dim": attention.q.columns.shape[1],
        "inner": block.mlp.inner,
        "activation": block.mlp.activation,
        "gated": block.mlp.gate is not None,
        "norm_first": block.norm_first,
        "causal": attention.scores.causal,
        "attention_scale": usual if abs(scale / usual - 1) < 1e-4 else float(f"{scale:.5g}"),
        "rotary_dim": attention.q.rotary_dim,
    }


def _shared(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what all blocks have in common.

    Raises:
        NotRecognized: A block differs from the first.
    """
    for at, one in enumerate(facts):
        name = next((name for name in one if one[name] != facts[0][name]), None)
        if name is not None:
            raise NotRecognized(
                f"block {at}: its {name} is {one[name]}, that of block 0 is {facts[0][name]}"
            )
    return facts[0]


def _norm_facts(norms: list[Norm]) -> dict[str, Any]:
    odd = next(
        (n for n in norms if (n.style, n.epsilon) != (norms[0].style, norms[0].epsilon)), None
    )
    if odd is not None:
        raise NotRecognized(
            f"{odd.nodes[-1].label} has another epsilon or kind than the first norm"
        )
    return {"norm": norms[0].style, "epsilon": norms[0].epsilon}


def _position(blocks: list[Block], embedding: Embedding) -> Position:
    tables = [block.attention.scores.relative for block in blocks]
    if any((t is None) != (tables[0] is None) for t in tables) or any(
        t is not None and tables[0] is not None and not np.array_equal(t, tables[0]) for t in tables
    ):
        raise NotRecognized("blocks differ in the bias of their scores")
    rotary = blocks[0].attention.q.rotary_dim > 0
    if rotary and (tables[0] is not None or "positions" in embedding.tables):
        raise NotRecognized("queries are rotated and positions enter in another way too")
    if rotary:
        return "rotary"
    if tables[0] is not None:
        return "relative"
    return "absolute" if "positions" in embedding.tables else "none"


def _rotary_bases(blocks: list[Block]) -> tuple[float, ...]:
    if not blocks[0].attention.q.rotary_dim:
        return ()
    return tuple(block.attention.q.base for block in blocks)


def _windows(blocks: list[Block]) -> tuple[int, ...]:
    found = tuple(block.attention.scores.window for block in blocks)
    return found if any(found) else ()


def _vocabulary_head(
    spec: TransformerSpec, tensors: dict[str, Array]
) -> tuple[TransformerSpec, dict[str, Array]]:
    """Call a causal network's one layer after the tokens what it is: scores of the vocabulary."""
    weight = tensors.get("head.0.weight")
    plain = spec.causal and spec.pool == "tokens" and spec.head == ("none",) and not spec.normalize
    if not plain or weight is None or len(weight) != spec.vocab or "head.0.bias" in tensors:
        return spec, tensors
    kept = {n: t for n, t in tensors.items() if not n.startswith("head.0.")}
    table = Matrix(tensors["embed.tokens"], tensors.get("embed.tokens_scale"))
    if not table.equals(Matrix(weight, tensors.get("head.0.weight_scale"))):
        kept["lm_head.weight"] = weight
        if "head.0.weight_scale" in tensors:
            kept["lm_head.weight_scale"] = tensors["head.0.weight_scale"]
    facts = {f.name: getattr(spec, f.name) for f in fields(spec)}
    return TransformerSpec(**(facts | {"head": (), "vocab_head": True})), kept
