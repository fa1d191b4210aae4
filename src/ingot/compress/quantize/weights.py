"""Weight-only int8: small files, float arithmetic."""

from dataclasses import dataclass
from typing import ClassVar

from ingot.compress.method import Method
from ingot.compress.quantize.placement import LINEAR, check_operators, place_weights
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.run import Run
from ingot.data.data import Data
from ingot.models.network import Form, Network, OnnxNetwork


@dataclass(frozen=True)
class QuantizeWeights(Method):
    """Store weights as int8 and compute in float: a quarter of the file, no calibration.

    OpenVINO keeps the integers in memory and widens them inside its kernels; ONNX Runtime widens
    them once while loading.

    Attributes:
        per_channel: One scale per output channel instead of one per layer.
        operators: ONNX operator types whose weights are stored as integers.
        skip: Names of layers or embedding tables that stay in float.
        embeddings: Also store embedding tables as int8.
    """

    per_channel: bool = True
    operators: tuple[str, ...] = LINEAR
    skip: tuple[str, ...] = ()
    embeddings: bool = True

    form: ClassVar[Form] = "onnx"

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        check_operators(self.operators, LINEAR)

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with int8 weights.

        Raises:
            RecipeError: There is nothing to quantize, the network is quantized already, a name in
                `skip` is unknown, or weights are not finite.
        """
        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto)
        plan = place_weights(
            graph, operators=self.operators, skip=self.skip, embeddings=self.embeddings
        )
        return OnnxNetwork(write_qdq(graph, plan, {}, per_channel=self.per_channel, run=run))
