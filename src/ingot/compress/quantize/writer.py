"""The one writer of integer models: float graph + grids + plan -> ONNX with Q/DQ pairs."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from ingot.compress.quantize._graph import Graph, attributes
from ingot.compress.quantize._rounder import Rounder
from ingot.compress.quantize.groups import Granularity, pack_rows, unpack_rows
from ingot.compress.quantize.nearest import round_nearest, round_table
from ingot.compress.quantize.placement import Plan
from ingot.compress.quantize.qparams import QParams, sqnr_db
from ingot.compress.run import Run
from ingot.data.data import Array

BIAS_LIMIT = float(1 << 30)  # leaves the int32 accumulator room for the sum itself


def write_qdq(
    graph: Graph,
    plan: Plan,
    grids: Mapping[str, QParams],
    *,
    per_channel: bool = True,
    rounder: Rounder | None = None,
    table_bits: int = 8,
    run: Run | None = None,
) -> onnx.ModelProto:
    """Put quantize/dequantize pairs on the planned edges and store the planned weights as int8.

    Weights become int8 constants followed by DequantizeLinear on their channel axis; biases of Conv
    and Gemm become int32 on the grid `s_activation * s_weight`; activations get a QuantizeLinear
    and a DequantizeLinear on every planned edge; embedding tables become int8 or
    int4, one scale per row.

    Args:
        graph: A prepared graph; it is edited.
        plan: What to quantize.
        grids: A grid for every tensor in `plan.observed`, from whatever source.
        per_channel: One weight scale per output channel instead of one per layer.
        rounder: Decides up or down for each weight; to the nearest if not given.
        table_bits: 8 or 4: how embedding tables are stored.
        run: Where scale and weight SQNR of each layer are logged.

    Returns:
        The graph's model.
    """
    writer = _Writer(
        graph, plan, grids, run or Run(), per_channel=per_channel, rounder=rounder or Rounder()
    )
    for name in plan.weights:
        writer.quantize_layer(name)
    for table in plan.tables:
        writer.quantize_table(table, table_bits)
    writer.quantize_edges()
    writer.finish()
    return graph.proto


class _Writer:
    """Nodes to insert, collected first so that look-ups stay valid while layers are rewritten."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        grids: Mapping[str, QParams],
        run: Run,
        *,
        per_channel: bool,
        rounder: Rounder,
    ) -> None:
        self.graph, self.plan, self.grids, self.run = graph, plan, grids, run
        self.per_channel, self.rounder = per_channel, rounder
        self.by_name = graph.by_name
        self.before: dict[str, list[onnx.NodeProto]] = {}
        self.after: dict[str, list[onnx.NodeProto]] = {}
        self.at_start: list[onnx.NodeProto] = []

    def quantize_layer(self, name: str) -> None:
        node = self.by_name[name]
        position, axis = self.plan.weights[name]
        source = node.input[position]
        weight = self.graph.value(source)
        assert weight is not None
        x = self.grids[self.plan.root(node.input[0])] if node.input[0] in self.plan.edges else None
        bias = bias_of(self.graph, node)
        floor: Array | float = 0.0
        if bias is not None and x is not None:
            needed = np.abs(bias) / (float(x.scale) * BIAS_LIMIT)
            floor = needed if self.per_channel else needed.max()
        grid = self.rounder.grid(node, weight, axis if self.per_channel else None, floor)
        integers = self.rounder.integers(self.graph, node, weight, grid)
        restored = grid.dequantize(integers)
        shift = self.rounder.shift(self.graph, node, weight, restored)
        if shift is not None:
            bias = add_to_bias(self.graph, node, shift)
        node.input[position] = self._dequantized(name, f"{name}_{source}", integers, grid)
        if bias is not None and x is not None:
            scale = (grid.scale * x.scale).astype(np.float32)
            bias_axis = 0 if self.per_channel else None
            steps = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
            on_grid = QParams(scale, np.zeros(scale.shape, np.int32), "int32", bias_axis)
            node.input[2] = self._dequantized(name, f"{name}_{node.input[2]}", steps, on_grid)
        self.run.log(
            name,
            operator=node.op_type,
            scale=float(np.mean(grid.scale)),
            activation_scale=float(x.scale) if x is not None else 0.0,
            weight_sqnr_db=sqnr_db(weight, restored),
        )

    def quantize_edges(self) -> None:
        for tensor in sorted(self.plan.edges):
            root = self.plan.root(tensor)
            grid = self.grids[root]
            maker = self.graph.maker.get(tensor)
            pair = self._pair(tensor, root, grid)
            if maker is None:
                self.at_start += pair
            else:
                self.after.setdefault(maker.name, []).extend(pair)
            self._rewire(tensor, pair[-1].output[0], maker)

    def quantize_table(self, name: str, bits: int) -> None:
        """Gather integers and their scales row by row: only the rows that are read are widened."""
        table = self.graph.value(name)
        assert table is not None
        if bits == 4 and table.shape[1] % 2 == 0:
            rounded = round_nearest(table, 4, Granularity("row"))
            stored = self.graph.add_weight(f"{name}_int4", pack_rows(rounded.integers))
        else:
            rounded = round_table(table)
            stored = self.graph.add_weight(f"{name}_int8", rounded.integers)
        scales = self.graph.add_weight(f"{name}_scale", rounded.scale.astype(np.float32))
        packed = stored.endswith("_int4")
        for node, _ in self.graph.readers[name]:
            out = node.output[0]
            rows, widened, steps = f"{out}_rows", f"{out}_widened", f"{out}_steps"
            gather = helper.make_node(
                "Gather", [scales, node.input[1]], [steps], f"{out}_scales", axis=0
            )
            widen = (
                unpack_rows(self.graph, out, rows, widened)
                if packed
                else [helper.make_node("Cast", [rows], [widened], f"{out}_cast", to=1)]
            )
            restore = helper.make_node("Mul", [widened, steps], [out], f"{out}_restore")
            self.after.setdefault(node.name, []).extend([*widen, gather, restore])
            node.input[0], node.output[0] = stored, rows
        self.run.log(
            name,
            operator="Gather",
            scale=float(np.mean(rounded.scale)),
            weight_sqnr_db=rounded.sqnr_db,
        )

    def finish(self) -> None:
        nodes = list(self.at_start)
        for node in self.graph.nodes:
            nodes += [*self.before.get(node.name, ()), node, *self.after.get(node.name, ())]
        self.graph.replace_nodes(nodes)
        self.graph.drop_unused_weights()

    def _dequantized(self, layer: str, name: str, integers: Array, grid: QParams) -> str:
        options = {} if grid.axis is None else {"axis": grid.axis}
        inputs = [
            self.graph.add_weight(f"{name}_quantized", integers),
            self.graph.add_weight(f"{name}_scale", grid.scale),
            self.graph.add_weight(f"{name}_zero_point", grid.zero_point),
        ]
        node = helper.make_node(
            "DequantizeLinear", inputs, [f"{name}_restored"], f"{name}_dequantize", **options
        )
        self.before.setdefault(layer, []).append(node)
        return f"{name}_restored"

    def _pair(self, tensor: str, root: str, grid: QParams) -> list[onnx.NodeProto]:
        numbers = [
            self.graph.add_weight(f"{root}_scale", grid.scale),
            self.graph.add_weight(f"{root}_zero_point", grid.zero_point),
        ]
        steps, restored = f"{tensor}_quantized", f"{tensor}_restored"
        return [
            helper.make_node("QuantizeLinear", [tensor, *numbers], [steps], f"{tensor}_quantize"),
            helper.make_node(
                "DequantizeLinear", [steps, *numbers], [restored], f"{tensor}_dequantize"
            ),
        ]

    def _rewire(self, tensor: str, restored: str, maker: onnx.NodeProto | None) -> None:
        for reader, position in self.plan.edges[tensor]:
            if reader:
                self.by_name[reader].input[position] = restored
        if ("", 0) in self.plan.edges[tensor] and maker is not None:
            self._keep_output_name(tensor, maker)

    def _keep_output_name(self, tensor: str, maker: onnx.NodeProto) -> None:
        """Let the dequantized tensor carry the name that the graph's output has."""
        raw, restored = f"{tensor}_float", f"{tensor}_restored"
        for i, name in enumerate(maker.output):
            if name == tensor:
                maker.output[i] = raw
        inserted = [n for group in (*self.before.values(), *self.after.values()) for n in group]
        for node in [*self.by_name.values(), *inserted]:
            for i, name in enumerate(node.input):
                if name == tensor:
                    node.input[i] = raw if node.op_type == "QuantizeLinear" else tensor
                elif name == restored:
                    node.input[i] = tensor
            if restored in node.output:
                node.output[0] = tensor


def bias_of(graph: Graph, node: onnx.NodeProto) -> Array | None:
    """Return the constant bias that is an input of this Conv or Gemm, if there is one."""
    if node.op_type == "MatMul" or len(node.input) < 3 or attributes(node).get("beta", 1.0) != 1:
        return None
    value = graph.value(node.input[2]) if node.input[2] else None
    return value if value is not None and value.ndim == 1 else None


def add_to_bias(graph: Graph, node: onnx.NodeProto, shift: Array) -> Array | None:
    """Add to the bias of a layer, its own or that of the Add after it; return its own.

    A convolution without a bias gets one. A product without any is left as it is.
    """
    own = bias_of(graph, node)
    if own is None and node.op_type == "MatMul":
        _add_after(graph, node, shift)
        return None
    if own is None and (node.op_type != "Conv" or len(node.input) > 2):
        return None
    changed = (shift if own is None else own + shift).astype(np.float32)
    name = graph.add_weight(f"{node.output[0]}_corrected_bias", changed)
    if own is None:
        node.input.append(name)
    else:
        node.input[2] = name
    return changed


def _add_after(graph: Graph, node: onnx.NodeProto, shift: Array) -> None:
    readers = graph.readers.get(node.output[0], ())
    if len(readers) != 1 or readers[0][0].op_type != "Add" or node.output[0] in graph.outputs:
        return
    reader, position = readers[0]
    value = graph.value(reader.input[1 - position])
    if value is not None and value.shape == shift.shape:
        name = f"{node.output[0]}_corrected_bias"
        reader.input[1 - position] = graph.add_weight(name, (value + shift).astype(np.float32))
