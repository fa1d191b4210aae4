"""Static int8: weights and activations on fixed grids, found by calibration."""

from dataclasses import dataclass
from typing import ClassVar

from ingot.compress.method import Method
from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize._rounder import make_rounder
from ingot.compress.quantize.calibrate import calibrate
from ingot.compress.quantize.observers import make_observer
from ingot.compress.quantize.placement import (
    OPERATORS,
    Plan,
    check_operators,
    check_table_bits,
    place,
)
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.qparams import affine, symmetric
from ingot.compress.quantize.rounding import Rounding, check_rounding
from ingot.compress.quantize.smooth import smooth_inputs
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Data
from ingot.models.network import Form, Network, OnnxNetwork


@dataclass(frozen=True)
class QuantizeStatic(Method):
    """Run convolutions and linear layers as int8, with ranges of activations found by calibration.

    The result is one ONNX file with quantize/dequantize pairs that ONNX Runtime and OpenVINO both
    turn into integer kernels: int8 weights, uint8 activations.

    Attributes:
        observer: Rule for activation ranges: `min-max`, `channel-min-max`, `moving-average`,
            `histogram`, `percentile`, `mse`, `entropy`.
        per_channel: One weight scale per output channel instead of one per layer.
        operators: ONNX operator types that may run as integers.
        skip: Names of layers or embedding tables that stay in float.
        attention: Also quantize the products of queries and keys.
        embeddings: Bits of embedding tables: 8, 4, or 0 to leave them in float.
        smooth: Strength, 0 to 1, with which outliers move from the inputs of linear layers into
            their weights; None leaves them.
        rounding: How weights are rounded: `nearest`, `gptq` (each column makes up for what the
            ones before it lost), or `learned` (AdaRound; slow).
        bias_correction: Let biases take up the mean error that rounding leaves in the outputs.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, 2018. arXiv:1712.05877
    """

    observer: str = "histogram"
    per_channel: bool = True
    operators: tuple[str, ...] = OPERATORS
    skip: tuple[str, ...] = ()
    attention: bool = False
    embeddings: int = 8
    smooth: float | None = None
    rounding: Rounding = "nearest"
    bias_correction: bool = False

    form: ClassVar[Form] = "onnx"
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        make_observer(self.observer)
        check_operators(self.operators)
        check_table_bits(self.embeddings)
        check_rounding(self.rounding)
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise RecipeError(
                f"smooth must be between 0 and 1, or None; got {self.smooth}. Try 0.5."
            )

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with integer layers.

        Raises:
            RecipeError: Nothing can be quantized, the network is quantized already, a name in
                `skip` is unknown, or a tensor is not finite on the calibration data.
        """
        assert isinstance(net, OnnxNetwork)
        split = data.split("calibration")
        graph = prepare(net.proto)
        plan = self._place(graph)
        if self.smooth is not None:
            smooth_inputs(graph, plan, split, strength=self.smooth, progress=run.progress)
            plan = self._place(graph)
        ranges = calibrate(
            graph.proto,
            split,
            plan.observed,
            make=lambda: make_observer(self.observer),
            progress=run.progress,
        )
        grids = {
            name: symmetric(*bounds) if name in plan.signed else affine(*bounds)
            for name, bounds in ranges.items()
        }
        rounder = make_rounder(
            graph,
            plan.weights,
            split,
            how=self.rounding,
            bias_correction=self.bias_correction,
            progress=run.progress,
        )
        return OnnxNetwork(
            write_qdq(
                graph,
                plan,
                grids,
                per_channel=self.per_channel,
                rounder=rounder,
                table_bits=self.embeddings or 8,
                run=run,
            )
        )

    def _place(self, graph: Graph) -> Plan:
        return place(
            graph,
            operators=self.operators,
            skip=self.skip,
            attention=self.attention,
            embeddings=bool(self.embeddings),
        )
