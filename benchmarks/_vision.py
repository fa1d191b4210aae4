"""Networks without text: ResNet-20 on real images, and three shapes with random weights."""

import io
import zipfile
from pathlib import Path

import _peers
import numpy as np
from _minilm import exact, ratio_claim
from _results import Claim, Section
from _runners import final, ours, peer, race, table_rows, torch_peer

from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.data.data import Data, Split, Task
from ingot.evaluate.compare import predict_split
from ingot.evaluate.metrics import METRICS
from ingot.evaluate.quality import quality
from ingot.models.load import load_model
from ingot.models.model import Model
from ingot.runtime.cold_start import footprint
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import physical_cores

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POINTS = 0.005
_WITHOUT_DYNAMIC = tuple(name for name in _peers.PREPARED if name != "ort-dynamic")


def resnet50(shared: Path, work: Path) -> Section:
    """Race the ResNet-50 shape at batch 1 and 16, and weigh its files."""
    del shared
    return _shape("ResNet-50 shape", "resnet50_shape", work, batches=(1, 16), claim=True)


def mobilenet(shared: Path, work: Path) -> Section:
    """Race the MobileNetV2 shape at batch 1."""
    del shared
    return _shape("MobileNetV2 shape", "mobilenet_v2_shape", work, batches=(1,), claim=False)


def gpt2(shared: Path, work: Path) -> Section:
    """Race the prefill of a decoder of GPT-2-small's shape, one row of 128 tokens."""
    del shared
    rng = np.random.default_rng(0)
    tokens = {"input_ids": rng.integers(0, 50257, (8, 128))}
    model = load_model("_nets:gpt2_shape", example={"input_ids": tokens["input_ids"][:2]},
                       name="gpt2", root=work / "store")  # fmt: skip
    what = "GPT-2-small shape, batch 1 x 128"
    return _race_net(what, "gpt2_shape", model, inputs=tokens, batch=1, work=work)[0]


def resnet20(shared: Path, work: Path) -> Section:
    """Measure accuracy of ResNet-20 in int8, ours and the peers', on 5,000 and on 500 images."""
    folder = shared / "cifar10"
    model = load_model("_nets:resnet20", weights=folder / "resnet20.npz", name="resnet20",
                       example={"image": np.zeros((2, 3, 32, 32), np.float32)},
                       root=work / "store")  # fmt: skip
    jpeg, exact_images = _jpeg(folder), _npz(folder / "test_lossless.npz")
    calibration = _npz(folder / "train_lossless.npz", take=500)
    data = Data({"calibration": calibration}, Task.CLASSIFICATION, "")
    small = Recipe((QuantizeStatic(),)).apply(model, data, root=work / "store")
    rows = [{"image": image[None]} for image in calibration.inputs["image"]]
    sets = {"5,000 JPEG": jpeg, "500 pixel-exact": exact_images}
    table, found = [], {}
    for label, split in sets.items():
        for name, before, after in _answers(model, small, rows, split, work):
            row = found[label, name] = quality(METRICS["accuracy"], before, after, split.targets)
            table.append(_points(f"ResNet-20, CIFAR-10, {label}", name, row))
    drop, small_set = found["5,000 JPEG", "ingot"].drop, found["500 pixel-exact", "ingot"].drop
    claim = Claim(
        "ResNet-20 int8: accuracy lost on 5,000 JPEG images, exact paired",
        *(100 * drop.value, 100 * drop.low, 100 * drop.high, "points", drop.n),
        target="upper bound <= 0.5 points",
        met=drop.high <= POINTS,
        note=f"500 pixel-exact images: {100 * small_set.value:.2f} "
        f"[{100 * small_set.low:.2f}, {100 * small_set.high:.2f}], too few to decide",
    )
    return Section([claim], {"quality": table})


def _answers(model: Model, small: Model, rows: list, split: Split, work: Path):
    threads = physical_cores()
    before = predict_split(model, EngineConfig("onnxruntime", threads=threads), split)
    for name, engine in (("ingot", "openvino"), ("ingot-on-ort", "onnxruntime")):
        yield name, before, predict_split(small, EngineConfig(engine, threads=threads), split)
    for name in ("ort-static", "openvino-nncf"):
        path = _peers.prepare(name, model.onnx_path, rows, work / "resnet20", transformer=False)
        answer = _peers.open_peer(name, path, threads, {})
        images = split.inputs["image"]
        batches = (images[i : i + 50] for i in range(0, len(images), 50))
        outs = [np.array(answer({"image": part})[0]) for part in batches]
        yield name, before, np.concatenate(outs)


def _shape(
    label: str, factory: str, work: Path, *, batches: tuple[int, ...], claim: bool
) -> Section:
    rng = np.random.default_rng(0)
    images = {"image": rng.standard_normal((16, 3, 224, 224)).astype(np.float32)}
    model = load_model(f"_nets:{factory}", example={"image": images["image"][:2]},
                       name=factory, root=work / "store")  # fmt: skip
    section = Section()
    for batch in batches:
        what = f"{label} batch {batch}"
        part, small = _race_net(
            what, factory, model, inputs=images, batch=batch, work=work, claim=claim
        )
        section.claims += part.claims
        section.rows.setdefault("peers", []).extend(part.rows["peers"])
    if claim:
        ratio = footprint(model) / footprint(small)
        section.claims.append(
            exact(f"{label}: whole file, fp32 / int8", ratio, "x", ">= 3.8", met=ratio >= 3.8)
        )
    return section


def _race_net(
    what: str, factory: str, model: Model, *, inputs: dict, batch: int, work: Path, claim=False
) -> tuple[Section, Model]:
    data = Data({"calibration": Split(inputs)}, Task.NONE, "")
    threads, is_text = physical_cores(), "input_ids" in inputs
    small = Recipe((QuantizeStatic(),)).apply(model, data, root=work / "store")
    rows = [{n: a[i : i + 1] for n, a in inputs.items()} for i in range(8)]
    rest = "bf16" if is_text else "fp32"
    entries = [ours("ingot", small, EngineConfig("openvino", rest, threads))]
    entries += [ours("ingot-on-ort", small, EngineConfig("onnxruntime", threads=threads))]
    slow = batch > 1 or is_text
    # ONNX Runtime's dynamic convolutions take seconds per batch: one row at batch 1 says enough
    for name in _peers.PREPARED if batch == 1 else _WITHOUT_DYNAMIC:
        path = _peers.prepare(name, model.onnx_path, rows, work / factory, transformer=is_text)
        entries.append(peer(name, path))
    if batch == 1:  # torch compiles for half a minute per shape and process
        entries += [torch_peer(name, factory) for name in _peers.TORCH]
    feeds = {n: np.ascontiguousarray(a[:batch]) for n, a in inputs.items()}
    folder = work / f"{factory}_{batch}"
    run = race(entries, feeds, folder, threads=threads, processes=3, rounds=6 if slow else 10,
               calls=1 if slow else 2, warmup=2, openings=1 if slow else 2)  # fmt: skip
    table = {"peers": table_rows(what, run, [entry["name"] for entry in entries])}
    if not claim:
        return Section([], table), small
    last = final(run, entries, feeds, folder / "final", threads=threads, rounds=12 if slow else 40,
                 calls=1 if slow else 2, openings=4)  # fmt: skip
    return Section([ratio_claim(what, run, last)], table), small


def _npz(path: Path, take: int | None = None) -> Split:
    with np.load(path) as arrays:
        images, labels = arrays["images"][:take], arrays["labels"][:take]
    return Split({"image": _normal(images)}, labels.astype(np.int64))


def _jpeg(folder: Path) -> Split:
    from PIL import Image

    lines = (folder / "test_jpeg.csv").read_text().splitlines()[1:]
    names, labels = zip(*(line.split(",")[:2] for line in lines), strict=True)
    with zipfile.ZipFile(folder / "test_jpeg.zip") as archive:
        images = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    return Split({"image": _normal(np.stack(images))}, np.array(labels, np.int64))


def _normal(images: np.ndarray) -> np.ndarray:
    scaled = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _points(what: str, name: str, row: object) -> list:
    drop = row.drop
    shown = f"{100 * drop.value:.2f} [{100 * drop.low:.2f}, {100 * drop.high:.2f}]"
    return [
        what,
        name,
        f"{100 * row.baseline.value:.2f}",
        f"{100 * row.candidate.value:.2f}",
        shown,
    ]
