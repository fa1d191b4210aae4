"""SmoothQuant, folded: the gains of norms take what makes activations hard to round."""

from dataclasses import dataclass
from typing import ClassVar

from ingot.compress.method import Method
from ingot.compress.quantize.placement import LINEAR, place_weights
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.smooth import smooth_inputs
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Data
from ingot.models.network import Form, Network, OnnxNetwork


@dataclass(frozen=True)
class Smooth(Method):
    """Move outliers of activations into the weights that read them; answers stay, nothing is added.

    Input channel j of the linear layers behind a norm is divided by
    `f_j = max|X_j|^a / max|W_j|^(1-a)`, by the norm's own gain and shift, and their weights are
    multiplied by it. Put it in front of a quantizer whose activations share a scale per token: a
    few loud channels no longer take all its steps. It finds work in pre-norm networks (GPT-2,
    Llama, ModernBERT); in post-norm ones (BERT) the residual stream reads the norms as well.

    Attributes:
        strength: `a`, above 0 and at most 1: how much moves into the weights.
        skip: Names of layers that stay as they are.

    References:
        Xiao et al., SmoothQuant, 2023, equation 4. arXiv:2211.10438
    """

    strength: float = 0.5
    skip: tuple[str, ...] = ()

    form: ClassVar[Form] = "onnx"
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        if not 0 < self.strength <= 1:
            raise RecipeError(
                f"strength must be above 0 and at most 1; got {self.strength}. Try 0.5."
            )

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with smoothed norms.

        Raises:
            RecipeError: No linear layer stands alone behind a norm, or a name in `skip` is unknown.
        """
        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto)
        plan = place_weights(graph, operators=LINEAR, skip=self.skip, embeddings=False)
        done = smooth_inputs(
            graph,
            plan,
            data.split("calibration"),
            strength=self.strength,
            insert=False,
            progress=run.progress,
        )
        if not done:
            raise RecipeError(
                "Smooth must find a norm that only linear layers read; got none. Post-norm "
                "networks have none: leave this method out, or use quantize-static with `smooth`."
            )
        for name, factor in done.items():
            run.log(name, least=float(factor.min()), most=float(factor.max()))
        return OnnxNetwork(graph.proto)
