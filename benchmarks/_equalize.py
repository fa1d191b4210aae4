"""Equalization and rotation, measured: what they save when one scale serves a whole layer.

ResNet-20 on CIFAR-10, as published and with rows of its weights scaled by log-uniform factors that
the next layer takes back through the ReLU (the same function, hard to quantize); a face detector
with depthwise convolutions and a judge of speech quality, as published; MiniLM on STS-B;
a decoder of random weights whose residual stream has one loud channel.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import _minilm
import _nets
import _small_models
import numpy as np
from _vision import _jpeg, _npz
from scipy.stats import spearmanr

from ingot.compress.method import Method
from ingot.compress.quantize.equalize import Equalize
from ingot.compress.quantize.rotate import Rotate
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.data.data import Data, Split, Task
from ingot.evaluate.compare import predict_split
from ingot.evaluate.metrics import cosine_rows
from ingot.models.load import load_model
from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig, Session
from ingot.runtime.engines import open_session
from ingot.runtime.feeds import feeds_at

ENGINE = EngineConfig("onnxruntime", threads=1)
LEAST, MOST = 0.05, 20.0  # factors of planted rows
IMAGES, PAIRS = 2000, 300
FORMS: dict[str, Method] = {
    "W8 per tensor": QuantizeWeights(granularity="tensor"),
    "W8A8 per tensor": QuantizeStatic(per_channel=False),
    "W8A8 per channel": QuantizeStatic(),
}
TEXT_FORMS: dict[str, Method] = {
    "W4 row": QuantizeWeights(bits=4),
    "W4 per tensor": QuantizeWeights(bits=4, granularity="tensor"),
    "W8A8": QuantizeStatic(),
    "W8A8 min-max": QuantizeStatic(observer="min-max"),
}
ROTATIONS: dict[str, tuple[Method, ...]] = {
    "": (),
    "Rotate": (Rotate(),),
    "Rotate online": (Rotate(online=True),),
}


def measure(shared: Path, work: Path) -> list[dict]:
    """Return one row per network, form and method in front of it."""
    work.mkdir(parents=True, exist_ok=True)
    return [
        *_resnet20(shared, work),
        *_detectors(shared, work),
        *_minilm_rows(shared, work),
        *_decoder_rows(work),
    ]


def _resnet20(shared: Path, work: Path) -> Iterator[dict]:
    folder = shared / "cifar10"
    data = Data({"calibration": _npz(folder / "train_lossless.npz", take=256)}, Task.NONE, "")
    images = _jpeg(folder)  # sorted by class
    test = images.take(range(0, len(images), max(1, len(images) // IMAGES)))
    planted = work / "resnet20_planted.npz"
    _plant_rows(folder / "resnet20.npz", planted)
    for name, path in (("as published", folder / "resnet20.npz"), ("rows scaled", planted)):
        model = load_model("_nets:resnet20", weights=path, name="resnet20", root=work / "store",
                           example={"image": np.zeros((2, 3, 32, 32), np.float32)})  # fmt: skip
        yield _accuracy(name, "fp32", "", model, test)
        for form, method in FORMS.items():
            for label, before in (("", ()), ("Equalize", (Equalize(),))):
                small = Recipe((*before, method)).apply(model, data, root=work / "store")
                yield _accuracy(name, form, label, small, test)


def _detectors(shared: Path, work: Path) -> Iterator[dict]:
    """Measure two published networks without labels: how far int8 answers are from fp32."""
    for load in (_small_models.face_detector, _small_models.dnsmos):
        model, data = load(shared, work)
        test = data.split("test")
        truth = predict_split(model, ENGINE, test).reshape(len(test), -1)
        for form, method in FORMS.items():
            for label, before in (("", ()), ("Equalize", (Equalize(),))):
                small = Recipe((*before, method)).apply(model, data, root=work / "store")
                found = predict_split(small, ENGINE, test).reshape(len(test), -1)
                yield _row(load.__name__, form, label, _closeness(truth, found))


def _plant_rows(source: Path, target: Path) -> None:
    """Scale the batch norm after each block's first convolution; divide what reads it."""
    rng = np.random.default_rng(0)
    with np.load(source) as found:
        arrays = {name: found[name] for name in found.files}
    for name in [n for n in arrays if n.endswith(".bn1.weight") and n.startswith("layer")]:
        block = name.removesuffix(".bn1.weight")
        factor = np.exp(rng.uniform(np.log(LEAST), np.log(MOST), len(arrays[name])))
        for part in ("weight", "bias"):
            arrays[f"{block}.bn1.{part}"] = (arrays[f"{block}.bn1.{part}"] * factor).astype("f4")
        weight = arrays[f"{block}.conv2.weight"]
        arrays[f"{block}.conv2.weight"] = (weight / factor[:, None, None]).astype("f4")
    np.savez(target, allow_pickle=False, **arrays)


def _accuracy(name: str, form: str, label: str, model: Model, test: Split) -> dict:
    answers = predict_split(model, ENGINE, test)
    value = float(np.mean(answers.argmax(axis=1) == test.targets))
    return _row(f"ResNet-20, {name}", form, label, {"accuracy": value, "n": len(test)})


def _minilm_rows(shared: Path, work: Path) -> Iterator[dict]:
    model, _, data = _minilm.prepare(shared, work)
    test = data.split("test").take(range(PAIRS))
    truth = predict_split(model, ENGINE, Split(test.inputs))
    yield _row("MiniLM, STS-B", "fp32", "", {"spearman": _spearman(truth, test)})
    plain: dict[str, Model] = {}
    for form, label, small in _forms(model, data, work):
        found = predict_split(small, ENGINE, Split(test.inputs))
        facts = _closeness(truth, found) | {"spearman": _spearman(found, test)}
        if label == "Rotate online" and form.startswith("W8A8"):
            facts |= _slower(plain[form], small)
        plain.setdefault(form, small)
        yield _row("MiniLM, STS-B", form, label, facts)


def _decoder_rows(work: Path) -> Iterator[dict]:
    tokens = np.random.default_rng(0).integers(0, 500, (96, 32))
    data = Data({"calibration": Split({"input_ids": tokens[:32]})}, Task.NONE, "")
    test = Split({"input_ids": tokens[32:]})
    for name in ("quiet", "loud"):
        model = load_model(f"_equalize:{name}_decoder", name=name, root=work / "store",
                           example={"input_ids": tokens[:2]})  # fmt: skip
        truth = predict_split(model, ENGINE, test)
        for form, label, small in _forms(model, data, work):
            found = predict_split(small, ENGINE, test)
            yield _row(f"decoder, {name} stream", form, label, _closeness(truth, found))


def _forms(model: Model, data: Data, work: Path) -> Iterator[tuple[str, str, Model]]:
    for form, method in TEXT_FORMS.items():
        for label, before in ROTATIONS.items():
            yield form, label, Recipe((*before, method)).apply(model, data, root=work / "store")


def _closeness(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return cosines, and the error as a share of what differs between answers."""
    cosine, spread = cosine_rows(truth, found), truth - truth.mean(axis=0)
    return {
        "cosine": float(cosine.mean()),
        "worst_cosine": float(cosine.min()),
        "relative_error": float(np.linalg.norm(found - truth) / np.linalg.norm(spread)),
    }


def _slower(plain: Model, rotated: Model) -> dict[str, float]:
    """Return the latency at batch 1 x 128 over that of the plain form, calls taking turns."""
    found = {}
    for engine in ("onnxruntime", "openvino"):
        config, feeds = EngineConfig(engine, threads=1), feeds_at(plain, 1, 128)
        sessions = [open_session(model, config) for model in (plain, rotated)]
        times = [[_seconds(session, feeds) for session in sessions] for _ in range(25)][5:]
        base, ours = np.median(times, axis=0)
        found[f"latency_ratio_{engine}"] = float(ours / base)
        for session in sessions:
            session.close()
    return found


def _seconds(session: Session, feeds: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def _spearman(vectors: np.ndarray, test: Split) -> float:
    return float(spearmanr(cosine_rows(vectors[0::2], vectors[1::2]), test.targets).statistic)


def _row(network: str, form: str, before: str, facts: dict) -> dict:
    return {"network": network, "form": form, "before": before, **facts}


def quiet_decoder():
    """Return a small pre-norm decoder with random weights."""
    import torch

    torch.manual_seed(0)
    return _nets.Gpt2Shape(layers=4, width=192, heads=6, vocab=500)


def loud_decoder():
    """Return the same decoder with one channel of its stream forty times as loud as the rest."""
    import torch

    net = quiet_decoder()
    with torch.no_grad():
        net.tokens.weight[:, 17] += 40.0
    return net
