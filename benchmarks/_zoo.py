"""The networks of the contest, each with its data and the one claim that everybody must keep."""

import subprocess
import sys
from pathlib import Path

import _nets
import _small_models
import _vision
import numpy as np
from _contest import Network
from _stsb import stsb

from ingot.data.data import Data, Split
from ingot.data.splits import make_data
from ingot.models.load import load_model
from ingot.models.model import Model


def minilm(shared: Path, work: Path) -> tuple[Model, Data]:
    """Return MiniLM and STS-B: dev and half of test judge; training rows share no sentence."""
    model = load_model(_nets.minilm_folder(), name="minilm", root=work / "store")
    return model, stsb(model, shared, work, training=True)


def sst2(shared: Path, work: Path) -> tuple[Model, Data]:
    """Return the sentiment encoder that is trained from nothing, here if it is not yet."""
    from tokenizers import Tokenizer

    from ingot_workloads.sst2_encoder.data import load

    trained = work.parent / "sst2_trained"
    if not (trained / "weights.safetensors").exists():
        module = "ingot_workloads.sst2_encoder.train"
        command = [
            sys.executable,
            "-m",
            module,
            "--data",
            str(shared / "sst2"),
            "--out",
            str(trained),
        ]
        subprocess.run(command, check=True)
    model = load_model(
        "ingot_workloads.sst2_encoder.model:sst2_encoder",
        weights=trained / "weights.safetensors", tokenizer=trained / "tokenizer.json",
        name="sst2", root=work / "store",
    )  # fmt: skip
    return model, load(shared / "sst2", Tokenizer.from_file(str(trained / "tokenizer.json")))


def cifar(name: str):
    """Return a loader of ResNet-20 or -32: 5,000 JPEG images judge, training images calibrate."""

    def load(shared: Path, work: Path) -> tuple[Model, Data]:
        folder = shared / "cifar10"
        model = load_model(f"_nets:{name}", weights=folder / f"{name}.npz", name=name,
                           example={"image": np.zeros((2, 3, 32, 32), np.float32)},
                           root=work / "store")  # fmt: skip
        splits = {
            "calibration": _vision._npz(folder / "train_lossless.npz", take=500),
            "test": _vision._jpeg(folder),
        }
        return model, make_data(splits, task="classification", name="cifar10")

    return load


def shape(factory: str, example: str = "image"):
    """Return a loader of a network with random weights and random inputs: for latency only."""

    def load(shared: Path, work: Path) -> tuple[Model, Data]:
        del shared
        rng = np.random.default_rng(0)
        if example == "image":
            inputs = {"image": rng.standard_normal((64, 3, 224, 224)).astype(np.float32)}
        else:
            inputs = {"input_ids": rng.integers(0, 50257, (48, 128))}
        first = {name: array[:2] for name, array in inputs.items()}
        model = load_model(f"_nets:{factory}", example=first, name=factory, root=work / "store")
        parts = {"calibration": slice(0, 16), "test": slice(16, None)}
        splits = {n: Split({k: a[p] for k, a in inputs.items()}) for n, p in parts.items()}
        return model, make_data(splits, task="none", name=factory)

    return load


LABELS, ALIKE = "accuracy relative drop <= 0.5 %", "r2 >= 0.98"
# Random weights give nearly the same answer to everything: what differs, r2, would be noise alone.
RANDOM = "cosine >= 0.95"
NETWORKS = {
    "minilm": Network("MiniLM, 1 x 128", minilm, "spearman relative drop <= 0.5 %", (1, 128),
                      minutes=2, limit_min=6, is_text=True, buckets=(16, 32, 64, 128)),
    "sst2": Network("SST-2 encoder, 1 x 32", sst2, LABELS, (1, 32), minutes=1,
                    is_text=True, buckets=(32,)),
    "resnet20": Network("ResNet-20", cifar("resnet20"), LABELS, limit_min=2),
    "resnet32": Network("ResNet-32", cifar("resnet32"), LABELS),
    "silero": Network("Silero VAD", _small_models.silero_vad, ALIKE, limit_min=2),
    "dnsmos": Network("DNSMOS", _small_models.dnsmos, ALIKE),
    "magika": Network("Magika", _small_models.magika, ALIKE),
    "face": Network("Face detector", _small_models.face_detector, ALIKE),
    "resnet50": Network("ResNet-50 shape", shape("resnet50_shape"), RANDOM),
    "mobilenet": Network("MobileNetV2 shape", shape("mobilenet_v2_shape"), RANDOM),
    "gpt2": Network("GPT-2-small shape, 1 x 128", shape("gpt2_shape", "input_ids"), RANDOM,
                    is_text=True),
}  # fmt: skip
