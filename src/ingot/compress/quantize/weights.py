"""Weight-only: small files, float arithmetic, or 4-bit weights that engines run as they are."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper

from ingot.compress.method import Method
from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.groups import (
    Granularity,
    group_scales,
    limits_of,
    round_groups,
    store_groups,
)
from ingot.compress.quantize.moments import Moments, layer_moments
from ingot.compress.quantize.nearest import Rounded, round_nearest
from ingot.compress.quantize.placement import (
    LINEAR,
    Plan,
    check_operators,
    check_table_bits,
    place_weights,
)
from ingot.compress.quantize.prepare import LEAST_OPSET, prepare
from ingot.compress.quantize.qparams import sqnr_db
from ingot.compress.quantize.room import check_room
from ingot.compress.quantize.rounding import Rounding, check_rounding, output_error
from ingot.compress.quantize.smooth import scale_for_weights
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.run import Run
from ingot.data.data import Array, Data
from ingot.models.network import Form, Network, OnnxNetwork

GROUPED_OPSET = 21  # DequantizeLinear in blocks, and 4-bit integers


@dataclass(frozen=True)
class QuantizeWeights(Method):
    """Store weights as int8 or int4 and leave activations in float: no data are needed.

    In 8 bits, one scale per row: a quarter of the file; OpenVINO widens the integers inside its
    kernels, ONNX Runtime once while loading. In 4 bits, linear layers are stored in groups that
    ONNX Runtime (MatMulNBits) and OpenVINO multiply as they are; convolutions stay at 8 bits.
    A model whose weights lie beside its graph is read and written one layer at a time.

    Attributes:
        bits: 8 or 4.
        granularity: What shares a scale: `tensor`, `row`, `rows:N` (N rows) or `k:N` (N inputs of
            a row). `k:N` needs `bits=4`; in 4 bits, layers that N does not divide take `row`.
        operators: ONNX operator types whose weights are stored as integers.
        skip: Names of layers or embedding tables that stay in float.
        embeddings: Bits of embedding tables: 8, 4, or 0 to leave them in float.

    References:
        Yao et al., ZeroQuant, 2022. arXiv:2206.01861
    """

    bits: int = 8
    granularity: str = "row"
    operators: tuple[str, ...] = LINEAR
    skip: tuple[str, ...] = ()
    embeddings: int = 8

    form: ClassVar[Form] = "onnx"
    streams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        check_operators(self.operators, LINEAR)
        limits_of(self.bits)
        Granularity.parse(self.granularity)
        check_table_bits(self.embeddings)

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with integer weights.

        Raises:
            RecipeError: There is nothing to quantize, the network is quantized already, a name in
                `skip` is unknown, or weights are not finite.
            IngotError: The weights lie on disk and the disk is too full for the new ones.
        """
        assert isinstance(net, OnnxNetwork)
        if net.files is not None:
            check_room(net, bits=self.bits, table_bits=self.embeddings)
        opset = GROUPED_OPSET if self._groups else LEAST_OPSET
        graph = prepare(net.proto, opset=opset, files=net.files)
        plan = place_weights(
            graph, operators=self.operators, skip=self.skip, embeddings=bool(self.embeddings)
        )
        if self._groups:
            plan = store_layers(graph, plan, self.bits, self.granularity, run=run)
        proto = write_qdq(
            graph,
            plan,
            {},
            per_channel=self.granularity != "tensor",
            table_bits=self.embeddings or 8,
            run=run,
        )
        return OnnxNetwork(proto, net.files)

    @property
    def _groups(self) -> bool:
        return self.bits == 4 or self.granularity not in ("tensor", "row")


@dataclass(frozen=True)
class QuantizeGroups(Method):
    """Store linear layers in 4 bits, rounded and scaled so that their outputs keep.

    Calibration rows say which inputs matter. `gptq` rounds column after column and lets the rest
    make up for the loss; `awq` first scales up the inputs that carry the largest activations.

    Attributes:
        bits: 4 or 8.
        granularity: What shares a scale, as in `QuantizeWeights`.
        rounding: `nearest`, `gptq`, or `learned` (AdaRound; slow).
        awq: Whether to scale input channels before rounding.
        skip: Names of layers or embedding tables that stay in float.
        embeddings: Bits of embedding tables: 8, 4, or 0 to leave them in float.

    References:
        Frantar et al., GPTQ, 2023. arXiv:2210.17323
        Lin et al., AWQ, 2024. arXiv:2306.00978
    """

    bits: int = 4
    granularity: str = "k:32"
    rounding: Rounding = "gptq"
    awq: bool = False
    skip: tuple[str, ...] = ()
    embeddings: int = 8

    form: ClassVar[Form] = "onnx"
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        limits_of(self.bits)
        Granularity.parse(self.granularity)
        check_rounding(self.rounding)
        check_table_bits(self.embeddings)

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with integer weights.

        Raises:
            RecipeError: There is nothing to quantize, the network is quantized already, a name in
                `skip` is unknown, or activations are not finite.
        """
        assert isinstance(net, OnnxNetwork)
        split = data.split("calibration")
        graph = prepare(net.proto, opset=GROUPED_OPSET)
        plan = place_weights(graph, skip=self.skip, embeddings=bool(self.embeddings))
        linear = grouped_layers(graph, plan)
        moments = layer_moments(graph, linear, split, progress=run.progress)
        if self.awq:
            parts = Granularity.parse(self.granularity)
            scale_for_weights(graph, moments, bits=self.bits, granularity=parts)
            moments = layer_moments(graph, linear, split, progress=run.progress)
        plan = store_layers(
            graph, plan, self.bits, self.granularity, moments=moments, how=self.rounding, run=run
        )
        return OnnxNetwork(write_qdq(graph, plan, {}, table_bits=self.embeddings or 8, run=run))


def grouped_layers(graph: Graph, plan: Plan) -> list[str]:
    """Return the planned layers that can be stored in groups: products with a matrix."""
    return [
        name
        for name in plan.weights
        if graph.by_name[name].op_type != "Conv"
        and len(graph.weights[graph.by_name[name].input[1]].dims) == 2
    ]


def store_layers(
    graph: Graph,
    plan: Plan,
    bits: int,
    granularity: str,
    *,
    moments: dict[str, Moments] | None = None,
    how: Rounding = "nearest",
    run: Run,
) -> Plan:
    """Store every linear layer in groups; return the plan of what is left.

    Args:
        graph: A prepared graph; edited.
        plan: Which layers.
        bits: 4 or 8.
        granularity: What shares a scale.
        moments: Moments of the inputs, by layer, for what is not rounded to the nearest.
        how: Rule of rounding.
        run: Where each layer's SQNR and output error are logged.
    """
    parts, layers = Granularity.parse(granularity), grouped_layers(graph, plan)
    for done, name in enumerate(layers):
        run.progress.step(f"rounding {name}", done, len(layers))
        node = graph.by_name[name]
        stored = graph.value(node.input[1])
        assert stored is not None
        known = (moments or {}).get(name)
        if known is None:
            rounded = round_nearest(stored.T, bits, fitting(parts, stored.T))
            facts: dict[str, float] = {}
        else:
            rounded, facts = _round_learned(stored.T, bits, parts, known.hessian[0], how)
        del stored  # a weight on disk is unmapped before the next one is read
        run.log(
            name,
            operator=node.op_type,
            scale=float(rounded.scale.mean()),
            weight_sqnr_db=rounded.sqnr_db,
            **facts,
        )
        node.input[1] = store_groups(graph, name, rounded.integers, rounded.scale, bits)
    split_gemms(graph, layers)
    rest = {name: where for name, where in plan.weights.items() if name not in layers}
    return Plan(rest, tables=plan.tables)


def _round_learned(
    stored: Array, bits: int, parts: Granularity, hessian: Array, how: Rounding
) -> tuple[Rounded, dict[str, float]]:
    """Round by what the calibration rows say; return the share of the output that is lost, too."""
    weight = np.ascontiguousarray(stored)
    scale = group_scales(weight, bits, fitting(parts, weight), np.diag(hessian))
    integers = round_groups(weight, scale, bits, hessian=hessian, how=how)
    restored = integers * scale
    lost = output_error(weight, restored, hessian)
    return Rounded(integers, scale, sqnr_db(weight, restored)), {"output_error": lost}


def fitting(parts: Granularity, weight: Array) -> Granularity:
    """Return the granularity, or `row` where its size does not divide `(rows, inputs)`."""
    size = weight.shape[0] if parts.kind == "rows" else weight.shape[1]
    return Granularity("row") if parts.size and size % parts.size else parts


def split_gemms(graph: Graph, layers: list[str]) -> None:
    """Write Gemm as a product and a sum: the packed kernels know only products."""
    graph.index()
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type != "Gemm" or node.name not in layers:
            nodes.append(node)
            continue
        bias = node.input[2] if len(node.input) > 2 else ""
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", node.input[:2], [product], node.name))
        if bias:
            add = helper.make_node("Add", [product, bias], [node.output[0]], f"{node.name}_bias")
            nodes.append(add)
    graph.replace_nodes(nodes)
    graph.drop_unused_weights()
