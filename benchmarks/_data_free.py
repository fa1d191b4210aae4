"""Compression without data, measured: `measure(shared, work)` returns claim rows.

Settings are frozen on ResNet-20 and training images; ResNet-32 is reported as it comes.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from _results import Claim
from _vision import _jpeg, _npz

from ingot.compress.data_free.data_free import DataFree, fit_layers
from ingot.compress.data_free.inputs import LayerInputs, norm_statistics
from ingot.compress.data_free.precondition import equalize_norms
from ingot.compress.quantize._rounder import FittedRounder
from ingot.compress.quantize.calibrate import activations, calibrate
from ingot.compress.quantize.moments import layer_moments
from ingot.compress.quantize.observers import make_observer
from ingot.compress.quantize.placement import place
from ingot.compress.quantize.prepare import fold_batch_norms, foldable_norms, prepare
from ingot.compress.quantize.qparams import affine
from ingot.compress.quantize.writer import write_qdq
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.data.data import Data, Split, Task
from ingot.evaluate.compare import predict_split
from ingot.evaluate.metrics import METRICS
from ingot.evaluate.quality import quality
from ingot.models.load import load_model
from ingot.models.model import Lineage, Model
from ingot.models.onnx_format import read_onnx
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import physical_cores

NETWORKS = ("resnet20", "resnet32")
CALIBRATION = 256
PLAIN = {"steps": 0, "bias_correction": False}
STRESS = (0.05, 20.0)


def measure(shared: Path, work: Path, *, images: int | None = None) -> list[dict]:
    """Return claim rows for ResNet-20 and ResNet-32 on CIFAR-10.

    Args:
        shared: Folder of the data, which holds `cifar10`.
        work: Where models are stored.
        images: How many of the 5,000 JPEG test images; all if not given.
    """
    folder = shared / "cifar10"
    test = _jpeg(folder)
    if images is not None:  # classes come one after the other: take them evenly
        test = test.take(np.linspace(0, test.rows - 1, images).astype(int).tolist())
    claims = []
    for name in NETWORKS:
        claims += _Bench(name, folder, work, test).claims()
    return [asdict(claim) for claim in claims]


class _Bench:
    """One network: its arms and what they answer."""

    def __init__(self, name: str, folder: Path, work: Path, test: Split) -> None:
        self.name, self.test, self.root = name, test, work / "store"
        self.model = load_model(f"_nets:{name}", weights=folder / f"{name}.npz", name=name,
                                example={"image": np.zeros((2, 3, 32, 32), np.float32)},
                                root=self.root)  # fmt: skip
        self.real = Split(
            {"image": _npz(folder / "train_lossless.npz", CALIBRATION).inputs["image"]}
        )
        self.truth = self._answers(self.model)

    def claims(self) -> list[Claim]:
        return [*self._eight_bits(), *self._fewer_bits(5), *self._fewer_bits(4), *self._stress(),
                self._cost(), self._statistics()]  # fmt: skip

    def _eight_bits(self) -> list[Claim]:
        arms = {
            "RTN per tensor": DataFree(granularity="tensor", precondition=False, **PLAIN),
            "RTN per row": DataFree(**PLAIN),
            "data-free": DataFree(),
        }
        drops = {arm: self._drop(self._answers(self._made(m))) for arm, m in arms.items()}
        ours = drops["data-free"]
        claim = self._points("W8A8 without data: accuracy lost", ours, 0.5)
        claim.peers = {arm: 100 * d.value for arm, d in drops.items()}
        return [claim]

    def _fewer_bits(self, bits: int) -> list[Claim]:
        arms = {
            "RTN": DataFree(bits=bits, **PLAIN),
            "data-free": DataFree(bits=bits),
            "N(0, 1) in place of norms": DataFree(bits=bits, inputs="normal"),
            "N(0, 1) images": DataFree(bits=bits, inputs="network"),
        }
        answers = {arm: self._answers(self._made(m)) for arm, m in arms.items()}
        answers[f"{CALIBRATION} real images"] = self._answers(self._real(bits))
        lost = {arm: 100 * self._drop(a).value for arm, a in answers.items()}
        right = {arm: self._right(a) for arm, a in answers.items()}
        plain, ours = right["RTN"], right["data-free"]
        bound, fake = right[f"{CALIBRATION} real images"], right["N(0, 1) in place of norms"]
        what = f"{self.name} W{bits}A8"
        share = _interval(lambda i: _share(plain[i], ours[i], bound[i]), len(ours))
        gain = _interval(lambda i: 100 * float((ours[i] - fake[i]).mean()), len(ours))
        note = "points lost to fp32, same images: " + ", ".join(
            f"{arm} {value:.2f}" for arm, value in lost.items()
        )
        return [
            Claim(f"{what}: share of the gap from RTN to real data that is closed without any",
                  *share, "", len(ours), ">= 0.6", share[0] >= 0.6 and share[1] >= 0.6, lost, note),
            Claim(f"{what}: batch norm statistics against N(0, 1) in their place", *gain, "points",
                  len(ours), ">= 2 at W4A8", gain[1] >= 2, {},
                  "" if gain[0] >= 2 else "the statistics matter less than the spatial model"),
        ]  # fmt: skip

    def _stress(self) -> list[Claim]:
        stressed = store_model(_stressed(read_onnx(self.model.onnx_path)),
                               lineage=Lineage("onnx"), name=f"{self.name}-stressed",
                               root=self.root)  # fmt: skip
        per_tensor = DataFree(granularity="tensor", **PLAIN)
        naive = DataFree(granularity="tensor", precondition=False, **PLAIN)
        same = float(np.abs(self._answers(stressed) - self.truth).max())
        collapsed = self._drop(self._answers(self._made(naive, stressed)))
        healed = self._right(self._answers(self._made(per_tensor, stressed)))
        calm = self._right(self._answers(self._made(per_tensor)))
        back = 100 * float(calm.mean() - healed.mean())
        kept = self._preserved(stressed)
        return [
            Claim(f"{self.name}: preconditioning changes no logit by more than", kept, kept, kept,
                  "", len(healed), "<= 1e-4", kept <= 1e-4, {},
                  f"on the stressed network, whose own logits differ by {same:.1e}"),
            Claim(f"{self.name} stressed, naive per-tensor W8: accuracy lost",
                  *(100 * v for v in (collapsed.value, collapsed.low, collapsed.high)), "points",
                  collapsed.n, ">= 20 points", collapsed.low >= 0.2),
            Claim(f"{self.name} stressed, preconditioned: accuracy lost to the unstressed network",
                  back, back, back, "points", len(healed), "<= 0.3 points", back <= 0.3),
        ]  # fmt: skip

    def _cost(self) -> Claim:
        run = Run()
        self._made(DataFree(bits=4), run=run)
        cost = dict(run.records)["cost"]
        note = (
            f"{cost['steps_layerwise']:.0f} steps per layer against "
            f"{cost['steps_generative']:.0f} steps of {cost['batch_generative']:.0f} images"
        )
        what = f"{self.name}: operations of generative retraining over ours"
        ratio = cost["ratio"]
        return Claim(what, ratio, ratio, ratio, "x", 1, ">= 14", ratio >= 14, {}, note)

    def _statistics(self) -> Claim:
        """Hold drawn layer inputs against real ones; real data are used for this report only."""
        import torch

        graph = prepare(read_onnx(self.model.onnx_path), fold_norms=False)
        statistics = norm_statistics(graph)
        fold_batch_norms(graph)
        names = sorted({graph.by_name[n].input[0] for n in place(graph).weights} - {"image"})
        source, generator = LayerInputs(graph, statistics, coarse=0.8), torch.Generator()
        generator.manual_seed(0)
        seen = activations(graph.proto, self.real.take(list(range(64))), names, Run().progress)
        parts = [[_moments(values[name]) for name in names] for values in seen]
        gaps = []
        for i, name in enumerate(names):
            true = np.mean([part[i] for part in parts], axis=0)
            drawn = _moments(source.sample([name], 64, generator)[name].numpy())
            gaps.append(np.abs(drawn - true).mean(axis=1) / np.abs(true).mean(axis=1))
        (mean, var), worst = np.median(gaps, axis=0), np.max(gaps, axis=0)
        what = f"{self.name}: drawn layer inputs against real ones, relative error of means"
        note = f"median of layers; variances {var:.2f}; worst {worst[0]:.2f} and {worst[1]:.2f}"
        return Claim(what, mean, mean, mean, "", len(names), "printed", True, {}, note)

    def _made(self, method: DataFree, model: Model | None = None, run: Run | None = None) -> Model:
        nothing = Data({}, Task.CLASSIFICATION, "")
        return Recipe((method,)).apply(model or self.model, nothing, root=self.root, run=run)

    def _real(self, bits: int) -> Model:
        """Train the same way on real images: moments and ranges both come from them."""
        graph = prepare(read_onnx(self.model.onnx_path), fold_norms=False)
        factors = fold_batch_norms(graph)
        plan, run = place(graph), Run()
        ranges = calibrate(graph.proto, self.real, plan.observed,
                           make=lambda: make_observer("histogram"))  # fmt: skip
        moments = layer_moments(graph, plan.weights, self.real)
        layers = fit_layers(graph, moments, factors, method=DataFree(bits=bits), statistics={},
                            run=run)  # fmt: skip
        grids = {name: affine(*bounds) for name, bounds in ranges.items()}
        proto = write_qdq(graph, plan, grids, rounder=FittedRounder(layers=layers))
        name = f"{self.name}-real-{bits}"
        return store_model(proto, lineage=Lineage("onnx"), name=name, root=self.root)

    def _preserved(self, model: Model) -> float:
        graph = prepare(read_onnx(model.onnx_path), fold_norms=False)
        equalize_norms(graph)
        after = store_model(graph.proto, lineage=Lineage("onnx"), name="equal", root=self.root)
        return float(np.abs(self._answers(after) - self._answers(model)).max())

    def _answers(self, model: Model) -> np.ndarray:
        engine = EngineConfig("onnxruntime", threads=physical_cores())
        return predict_split(model, engine, self.test)

    def _drop(self, answers: np.ndarray) -> object:
        return quality(METRICS["accuracy"], self.truth, answers, self.test.targets).drop

    def _right(self, answers: np.ndarray) -> np.ndarray:
        return (answers.argmax(1) == self.test.targets).astype(float)

    def _points(self, what: str, drop: object, most: float) -> Claim:
        fp32 = 100 * self._right(self.truth).mean()
        return Claim(f"{self.name} {what}", *(100 * v for v in (drop.value, drop.low, drop.high)),
                     "points", drop.n, f"<= {most} points", 100 * drop.high <= most, {},
                     f"fp32 {fp32:.2f} %")  # fmt: skip


def _moments(x: np.ndarray) -> np.ndarray:
    """Return means and variances of the channels, `(2, channels)`."""
    axes = tuple(i for i in range(x.ndim) if i != 1)
    return np.stack([x.mean(axis=axes), x.var(axis=axes)])


def _share(plain: np.ndarray, ours: np.ndarray, bound: np.ndarray) -> float:
    gap = bound.mean() - plain.mean()
    return float((ours.mean() - plain.mean()) / gap) if gap > 0 else float("nan")


def _interval(statistic: object, rows: int, draws: int = 2000) -> tuple[float, float, float]:
    """Return a statistic of paired images and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(rows, size=rows)) for _ in range(draws)]
    return (statistic(np.arange(rows)), *np.nanpercentile(found, (2.5, 97.5)).tolist())


def _stressed(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Multiply output channels of convolutions; their batch norms take it up."""
    graph = prepare(proto, fold_norms=False)
    rng = np.random.default_rng(seed)
    for conv, norm in foldable_norms(graph):
        weight, mean, var = (graph.value(n) for n in (conv.input[1], *norm.input[3:5]))
        s = np.exp(rng.uniform(*np.log(STRESS), len(weight)))
        wide = (weight * s.reshape(-1, 1, 1, 1)).astype(np.float32)
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        graph.add_weight(conv.input[1], wide)
        graph.add_weight(norm.input[3], (mean * s).astype(np.float32))
        after = np.maximum((var.astype(np.float64) + epsilon) * s**2 - epsilon, 0)
        graph.add_weight(norm.input[4], after.astype(np.float32))
    return graph.proto
