"""Int8 and narrower networks from batch norm statistics alone: no data, no labels, no tokens."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ingot.compress.data_free.fit import check_bits, covariance, first_scales, fit_rows
from ingot.compress.data_free.flops import (
    GENERATIVE_BATCH,
    GENERATIVE_STEPS,
    generative_macs,
    layer_costs,
    moment_macs,
)
from ingot.compress.data_free.inputs import (
    Gaussian,
    Inputs,
    LayerInputs,
    check_inputs,
    norm_statistics,
)
from ingot.compress.data_free.precondition import clipped_mean, equalize_norms
from ingot.compress.data_free.ranges import activation_ranges
from ingot.compress.method import Method
from ingot.compress.quantize._graph import Graph
from ingot.compress.quantize._rounder import Fitted, FittedRounder
from ingot.compress.quantize.moments import (
    Moments,
    measurable,
    rows_to_weight,
    sum_moments,
    weight_rows,
)
from ingot.compress.quantize.placement import place, place_weights
from ingot.compress.quantize.prepare import fold_batch_norms, prepare
from ingot.compress.quantize.qparams import affine
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.core.extras import need
from ingot.data.data import Array, Data
from ingot.models.network import Form, Network, OnnxNetwork

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class DataFree(Method):
    """Quantize a CNN layer by layer without any data, after Horton et al.

    Batch norms remember mean and spread of what passed them in training. From these each layer's
    inputs are drawn; on them its integers, scales and bias are trained, alone, to answer as its
    original does; ranges of activations follow from the same statistics. The result is the same
    kind of file as that of `QuantizeStatic`: ONNX Runtime and OpenVINO run it as integers.

    Weights of 4 to 7 bits are stored in int8, since no engine has kernels for convolutions with
    narrower weights: they take part in a study, or wait for such a kernel, and save no bytes.

    Attributes:
        bits: Bits of weights, 4 to 8.
        activation_bits: 8, or 0 to leave activations in float.
        granularity: `row`: one scale per output channel; `tensor`: one per layer, for the weights
            as they were before their batch norm.
        steps: Training steps per layer; 0 rounds to the nearest, and without `bias_correction`
            nothing is drawn then but ranges.
        rate: Learning rate of weights, in grid steps; falls linearly to 0.
        precondition: Give all channels of a convolution the same range first and let its batch
            norm take that up; matters for `tensor`.
        bias_correction: Let biases take up the mean error of the outputs.
        inputs: What layer inputs are drawn from: `bn`, batch norm statistics; `normal`, N(0, 1) in
            their place, to see what the statistics are worth; `network`, N(0, 1) images that run
            through the network, for networks without batch norms.
        coarse: Share of variance that neighbouring pixels of draws have in common, 0 to 1.
        rows: Examples drawn per layer.
        deviations: Standard deviations that ranges of activations reach to on each side.
        skip: Names of layers that stay in float.

    References:
        Horton et al., Layer-Wise Data-Free CNN Compression, 2022. arXiv:2011.09058; designed after
        the abstract, training on second moments is our own.
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
        2019. arXiv:1906.04721
    """

    bits: int = 8
    activation_bits: int = 8
    granularity: str = "row"
    steps: int = 100
    rate: float = 0.02
    precondition: bool = True
    bias_correction: bool = True
    inputs: Inputs = "bn"
    coarse: float = 0.8
    rows: int = 256
    deviations: float = 6.0
    skip: tuple[str, ...] = ()

    form: ClassVar[Form] = "onnx"

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        check_bits(self.bits)
        check_inputs(self.inputs)
        _check(self.activation_bits in (0, 8), "activation_bits", "8 or 0", self.activation_bits)
        kinds = ("row", "tensor")
        _check(self.granularity in kinds, "granularity", "'row' or 'tensor'", self.granularity)
        _check(0 <= self.coarse < 1, "coarse", "at least 0 and below 1", self.coarse)
        _check(self.steps >= 0, "steps", "0 or more", self.steps)
        for name in ("rate", "rows", "deviations"):
            _check(getattr(self, name) > 0, name, "positive", getattr(self, name))

    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the network with integer layers; `data` is not read.

        Raises:
            RecipeError: The graph holds no batch norm statistics, its input size is not fixed, it
                is quantized already, or nothing in it can be quantized.
        """
        need("torch", extra="compress", what="Compression without data")
        import torch

        assert isinstance(net, OnnxNetwork)
        graph = prepare(net.proto, fold_norms=False)
        statistics = self._statistics(graph)
        if self.precondition:
            equalize_norms(graph)
        factors = fold_batch_norms(graph)
        plan = (place if self.activation_bits else place_weights)(graph, skip=self.skip)
        generator = torch.Generator().manual_seed(run.seed)
        source = LayerInputs(graph, statistics, coarse=self.coarse)
        drawn = LayerInputs(graph, self._ablated(statistics), coarse=self.coarse)
        draws = _Draws(drawn, self.rows, generator)
        if self.steps or self.bias_correction:
            moments = draws.moments(plan.weights, run)
        else:
            moments, statistics = draws.unit_moments(plan.weights), {}
        ranges = activation_ranges(
            source, plan.observed, self.deviations, rows=self.rows, generator=generator
        )
        self._log_costs(graph, moments, source, run)
        rounder = FittedRounder(
            layers=fit_layers(graph, moments, factors, method=self, statistics=statistics, run=run)
        )
        grids = {name: affine(*bounds) for name, bounds in ranges.items()}
        return OnnxNetwork(write_qdq(graph, plan, grids, rounder=rounder, run=run))

    def _statistics(self, graph: Graph) -> dict[str, Gaussian]:
        if self.inputs == "network":
            return {}
        found = norm_statistics(graph)
        if not found:
            raise RecipeError(
                "Compression without data needs the statistics of batch norms; no "
                "BatchNormalization statistics found in the graph: it has none, or they were "
                "folded when it was exported. Export it without folding, use QuantizeStatic with "
                'calibration data instead, or DataFree(inputs="network") and check the result.'
            )
        return found

    def _ablated(self, statistics: Mapping[str, Gaussian]) -> Mapping[str, Gaussian]:
        if self.inputs != "normal":
            return statistics
        return {
            name: Gaussian(np.zeros_like(s.mean), np.ones_like(s.std))
            for name, s in statistics.items()
        }

    def _log_costs(
        self, graph: Graph, layers: Collection[str], source: LayerInputs, run: Run
    ) -> None:
        costs = layer_costs(graph, layers, source.shapes).values()
        macs = [c.macs for c in costs]
        drawing = sum(macs) * self.rows * len(macs) if self.inputs == "network" else 0
        ours = moment_macs(costs, self.steps, self.rows, ROWS_AT_ONCE) + drawing
        whole = generative_macs(macs, GENERATIVE_STEPS, GENERATIVE_BATCH)
        run.log(
            "cost",
            macs_layerwise=float(ours),
            steps_layerwise=float(self.steps),
            macs_generative=float(whole),
            steps_generative=float(GENERATIVE_STEPS),
            batch_generative=float(GENERATIVE_BATCH),
            ratio=whole / max(ours, 1),
        )


def fit_layers(
    graph: Graph,
    moments: Mapping[str, Moments],
    factors: Mapping[str, Array],
    *,
    method: DataFree,
    statistics: Mapping[str, Gaussian],
    run: Run,
) -> dict[str, Fitted]:
    """Train every layer whose input moments are known, each alone.

    Args:
        graph: A prepared graph, batch norms folded; it is read only.
        moments: Of the inputs of layers, wherever they come from.
        factors: Convolution -> what its batch norm multiplied each output by.
        method: The settings.
        statistics: Of the outputs of batch norms, to be held against what the draws give.
        run: Where each layer's errors are logged, and `std_ratio`: the standard deviation that
            the draws give its outputs over the one its batch norm remembers (geometric mean).
    """
    fitted, top = {}, 2 ** (method.bits - 1) - 1
    for done, (name, known) in enumerate(moments.items()):
        run.progress.step(f"training {name}", done, len(moments))
        node = graph.by_name[name]
        weight = graph.value(node.input[1])
        assert weight is not None
        rows = weight_rows(graph, node, weight).astype(np.float64)
        cov = covariance(known.hessian, known.mean)
        factor = factors.get(name, np.ones(rows.shape[0] * rows.shape[1])).reshape(rows.shape[:2])
        scale = first_scales(rows, factor, cov, (-top, top), method.granularity)
        fit = fit_rows(rows, scale, cov, limits=(-top, top), steps=method.steps, rate=method.rate)
        shift = None
        if method.bias_correction:
            gap = rows - fit.integers * fit.scale
            shift = np.einsum("goi,gi->go", gap, known.mean).reshape(-1)
        integers = rows_to_weight(node, fit.integers, weight.shape)
        fitted[name] = Fitted(integers, fit.scale.reshape(-1), shift)
        facts = {"error_rounded": fit.rounded, "error_trained": fit.trained}
        if node.output[0] in statistics:
            facts["std_ratio"] = _std_ratio(rows, cov, statistics[node.output[0]].std)
        run.log(name, bits=float(method.bits), **facts)
    return fitted


@dataclass(frozen=True, slots=True)
class _Draws:
    """Input moments of layers, from draws; layers are drawn one after the other."""

    source: LayerInputs
    rows: int
    generator: "torch.Generator"

    def moments(self, layers: Collection[str], run: Run) -> dict[str, Moments]:
        graph, found = self.source.graph, {}
        flat = [n for n in layers if _is_flat(graph, n)]
        for done, name in enumerate(measurable(graph, flat)):
            run.progress.step(f"drawing inputs of {name}", done, len(flat))
            tensor = graph.by_name[name].input[0]
            known = sum_moments(graph, [name], self._batches(tensor))[name]
            found[name] = self._with_exact_mean(name, tensor, known)
        return found

    def unit_moments(self, layers: Collection[str]) -> dict[str, Moments]:
        """Return E[x] = 0 and E[x x^T] = I: all that rounding to the nearest may use."""
        graph, found = self.source.graph, {}
        for name in measurable(graph, [n for n in layers if _is_flat(graph, n)]):
            node = graph.by_name[name]
            weight = graph.value(node.input[1])
            assert weight is not None
            groups, _, inputs = weight_rows(graph, node, weight).shape
            eye = np.broadcast_to(np.eye(inputs, dtype=np.float32), (groups, inputs, inputs))
            found[name] = Moments(eye, np.zeros((groups, inputs)), 1)
        return found

    def _batches(self, tensor: str) -> Iterator[Mapping[str, Array]]:
        for start in range(0, self.rows, ROWS_AT_ONCE):
            rows = min(ROWS_AT_ONCE, self.rows - start)
            drawn = self.source.sample([tensor], rows, self.generator)
            yield {tensor: drawn[tensor].numpy()}

    def _with_exact_mean(self, name: str, tensor: str, known: Moments) -> Moments:
        """Move the draws to the mean that is known in closed form, padding included."""
        mean = clipped_mean(self.source.graph, self.source.statistics, tensor)
        if mean is None:
            return known
        shape = self.source.shapes[tensor]
        image = np.broadcast_to(mean.reshape(1, -1, *[1] * (len(shape) - 2)), shape)
        exact = sum_moments(self.source.graph, [name], [{tensor: image.astype(np.float32)}])
        centre, drawn = exact[name].mean, known.mean
        outer = np.einsum("gi,gj->gij", centre, centre) - np.einsum("gi,gj->gij", drawn, drawn)
        return Moments(known.second + outer * known.count, centre * known.count, known.count)


def _is_flat(graph: Graph, name: str) -> bool:
    node = graph.by_name[name]
    return node.op_type == "Conv" or len(graph.weights[node.input[1]].dims) == 2


def _std_ratio(rows: Array, cov: Array, std: Array) -> float:
    drawn = np.sqrt(np.einsum("goi,gij,goj->go", rows, cov, rows)).reshape(-1)
    usable = (drawn > 0) & (std > 0)
    if not usable.any():
        return 1.0
    return float(np.exp(np.log(drawn[usable] / std[usable]).mean()))


def _check(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {rule}; got {value!r}. Leave it out for the default.")
