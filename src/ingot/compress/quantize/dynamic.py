"""Dynamic int8: weights on a fixed grid, activations on a new one at every call."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper

from ingot.compress.method import Method
from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize.placement import (
    Plan,
    check_operators,
    check_table_bits,
    place_weights,
)
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.qparams import sqnr_db, weight_grid
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.run import Run
from ingot.data.data import Data
from ingot.models.network import Form, Network, OnnxNetwork

DYNAMIC = ("Gemm", "MatMul")


@dataclass(frozen=True)
class QuantizeDynamic(Method):
    """Run linear layers as int8, measuring the range of their input at every call: no calibration.

    Attributes:
        per_channel: One weight scale per output channel instead of one per layer.
        operators: ONNX operator types that run as integers, of `Gemm` and `MatMul`.
        skip: Names of layers or embedding tables that stay in float.
        embeddings: Bits of embedding tables: 8, 4, or 0 to leave them in float.
    """

    per_channel: bool = True
    operators: tuple[str, ...] = DYNAMIC
    skip: tuple[str, ...] = ()
    embeddings: int = 8

    form: ClassVar[Form] = "onnx"
    # DynamicQuantizeLinear and MatMulInteger are fused into integer kernels only there.
    engines: ClassVar[frozenset[str]] = frozenset({"onnxruntime"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        check_operators(self.operators, DYNAMIC)
        check_table_bits(self.embeddings)

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with integer linear layers.

        Raises:
            RecipeError: There is nothing to quantize, the network is quantized already, a name in
                `skip` is unknown, or weights are not finite.
        """
        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto)
        plan = place_weights(
            graph, operators=self.operators, skip=self.skip, embeddings=bool(self.embeddings)
        )
        nodes: list[onnx.NodeProto] = []
        measured: set[str] = set()
        for node in graph.nodes:
            if node.name in plan.weights:
                nodes += self._integer_layer(graph, node, measured, run)
            else:
                nodes.append(node)
        graph.replace_nodes(nodes)
        return OnnxNetwork(
            write_qdq(graph, Plan(tables=plan.tables), {}, table_bits=self.embeddings or 8, run=run)
        )

    def _integer_layer(
        self, graph: Graph, node: onnx.NodeProto, measured: set[str], run: Run
    ) -> list[onnx.NodeProto]:
        """Write x W as s_x s_w (x_q - z_x) W_q; a tensor is measured once."""
        x, name, out = node.input[0], node.name, node.output[0]
        weight = graph.value(node.input[1])
        assert weight is not None
        grid = weight_grid(weight, weight.ndim - 1 if self.per_channel else None)
        integers = grid.quantize(weight)
        stored = graph.add_weight(f"{name}_weight_int8", integers)
        zero = graph.add_weight(f"{name}_weight_zero_point", grid.zero_point)
        scale = graph.add_weight(f"{name}_weight_scale", grid.scale)
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        product = f"{out}_product" if bias else out
        inputs = [f"{x}_uint8", stored, f"{x}_uint8_zero_point", zero]
        made = [
            helper.make_node("MatMulInteger", inputs, [f"{out}_int32"], name),
            helper.make_node("Cast", [f"{out}_int32"], [f"{out}_sum"], f"{name}_cast", to=1),
            helper.make_node("Mul", [f"{x}_uint8_scale", scale], [f"{out}_scale"], f"{name}_scale"),
            helper.make_node("Mul", [f"{out}_sum", f"{out}_scale"], [product], f"{name}_restore"),
        ]
        if bias:
            made.append(helper.make_node("Add", [product, bias], [out], f"{name}_bias"))
        if x not in measured:
            measured.add(x)
            outputs = [f"{x}_uint8", f"{x}_uint8_scale", f"{x}_uint8_zero_point"]
            made.insert(0, helper.make_node("DynamicQuantizeLinear", [x], outputs, f"{x}_measure"))
        run.log(
            name,
            operator=node.op_type,
            scale=float(np.mean(grid.scale)),
            weight_sqnr_db=sqnr_db(weight, grid.dequantize(integers)),
        )
        return made
