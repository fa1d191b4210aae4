"""Single steps of post-training compression, each measured on its own."""

import time
from dataclasses import replace
from pathlib import Path

import _peers
import _zoo
import numpy as np
import torch
from _contest import PeerSession
from _minilm import exact
from _results import Claim, Section

from ingot.compress.distill.layers import DistillLayers
from ingot.compress.method import Method
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeGroups, QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.data.data import Data, Split
from ingot.evaluate.compare import compare, predict_split
from ingot.evaluate.diagnose import first_difference, node_errors
from ingot.evaluate.metrics import METRICS, cosine_rows
from ingot.evaluate.quality import quality
from ingot.models.feeds import feeds_for
from ingot.models.load import load_model
from ingot.models.model import Model
from ingot.models.store import open_model
from ingot.runtime.buckets import run_rows
from ingot.runtime.cold_start import footprint
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.machine import physical_cores
from ingot.runtime.measure import Candidate
from ingot.search.optimize import optimize
from ingot.search.sensitivity import layer_sensitivity
from ingot.search.trial import Trial

OBSERVERS = (
    "min-max", "moving-average", "histogram", "percentile", "mse", "entropy", "channel-min-max",
)  # fmt: skip
ORT = EngineConfig("onnxruntime", threads=physical_cores())
OPENVINO = EngineConfig("openvino", "fp32", physical_cores())
DROP = "spearman drop <= 0.005"


def fooled(shared: Path, work: Path) -> Section:
    """Hand the static form that ONNX Runtime makes by default to Ingot: caught, named, repaired."""
    model, data = _zoo.minilm(shared, work)
    split = data.split("calibration")
    rows = [{n: a[i : i + 1] for n, a in split.inputs.items()} for i in range(64)]
    path = _peers.prepare("ort-static", model.onnx_path, rows, work / "peers", transformer=True)
    bad = load_model(path, name="ort-static", root=work / "store")
    proof = compare(model, bad, data, require=[DROP], config=ORT, measure_speed=False)
    before, after = Candidate("fp32", model, ORT), Candidate("static", bad, ORT)
    errors = node_errors(before, after, data.split("test"))
    first = first_difference(errors, 0.3)
    trials = (Trial(Recipe(), ORT), Trial(Recipe((QuantizeStatic(),)), ORT))
    mended = optimize(model, data, require=[DROP], shapes=[(1, 128)], trials=trials,
                      out=work / "mended", fresh=True)  # fmt: skip
    row, kept = proof.find("spearman"), mended.chosen
    static = mended.outcomes[1]
    return Section([
        Claim(
            "ONNX Runtime's static default on MiniLM is refused: Spearman lost",
            *(100 * v for v in (row.drop.value, row.drop.low, row.drop.high)), "points", row.drop.n,
            "the claim on 0.5 points fails", met=not proof.passed,
            note=f"{100 * row.baseline.value:.1f} falls to {100 * row.candidate.value:.1f}; first "
            f"node that differs: {first}",
        ),
        Claim(
            "the same network, in int8 on ONNX Runtime again, keeps the claim: Spearman lost",
            *(100 * v for v in _drop(static)), "points", row.drop.n, "<= 0.5 points",
            met=bool(static.passed), note=kept.trial.label if kept else "nothing held",
        ),
    ])  # fmt: skip


def _drop(outcome: object) -> tuple[float, float, float]:
    drop = outcome.evidence.find("spearman").drop
    return drop.value, drop.low, drop.high


def sizes(shared: Path, work: Path) -> Section:
    """Weigh whole files with weights in 8 and 4 bits, and say what their answers lose."""
    model, data = _zoo.minilm(shared, work)
    split, before = data.split("test"), predict_split(model, ORT, data.split("test"))
    forms: tuple[tuple[str, Method, float], ...] = (
        ("weights in 8 bits", QuantizeWeights(), 3.8),
        ("int8, static", QuantizeStatic(attention=True), 3.8),
        ("int8, static, tables in 4 bits", QuantizeStatic(attention=True, embeddings=4), 3.8),
        ("weights in 4 bits, k:32, GPTQ, tables in 4", QuantizeGroups(embeddings=4), 6.5),
        ("weights in 4 bits, row, GPTQ, tables in 4",
         QuantizeGroups(granularity="row", embeddings=4), 6.5),
    )  # fmt: skip
    claims, table = [], []
    for label, method, target in forms:
        small = Recipe((method,)).apply(model, data, root=work / "store")
        row = quality(METRICS["spearman"], before, predict_split(small, ORT, split), split.targets)
        ratio = footprint(model) / footprint(small)
        lost = f"{100 * row.drop.value:.2f} [{100 * row.drop.low:.2f}, {100 * row.drop.high:.2f}]"
        table.append(["MiniLM", label, f"{footprint(small) / 1e6:.2f}", f"{ratio:.2f}",
                      f"{100 * row.candidate.value:.2f}", lost])  # fmt: skip
        claims.append(exact(f"MiniLM, {label}: whole file, fp32 / small", ratio, "x",
                            f">= {target}", met=ratio >= target,
                            note=f"Spearman x 100 lost: {lost}"))  # fmt: skip
    net, inputs = _zoo.shape("resnet50_shape")(shared, work)
    small = Recipe((QuantizeStatic(),)).apply(net, inputs, root=work / "store")
    ratio = footprint(net) / footprint(small)
    claims.append(exact("ResNet-50 shape, int8: whole file, fp32 / int8", ratio, "x", ">= 3.8",
                        met=ratio >= 3.8))  # fmt: skip
    return Section(claims, {"sizes": table})


def start(shared: Path, work: Path) -> Section:
    """Search for the shortest time from process start to first answer."""
    model, data = _zoo.minilm(shared, work)
    result = optimize(model, data, require=[DROP], goal="cold_start", shapes=[(1, 16)],
                      out=work / "cold", fresh=True)  # fmt: skip
    cost = result.chosen.cost
    return Section([Claim(
        "MiniLM under the goal cold_start: process start to first answer", cost.value, cost.low,
        cost.high, "s", cost.n, "<= 0.3 s", met=cost.high <= 0.3,
        note=f"{result.chosen.trial.label}; range of {cost.n} fresh processes",
    )])  # fmt: skip


def throughput(shared: Path, work: Path) -> Section:
    """Run every sentence of the STS-B rows as fast as possible, ours and the best peer's."""
    model, data = _zoo.minilm(shared, work)
    split = data.split("test")
    feeds = feeds_for(model.signature, split.inputs)
    best = open_model(work.parent / "minilm" / "best" / "model")
    rows = [{n: a[i : i + 1] for n, a in feeds.items()} for i in range(64)]
    path = _peers.prepare("openvino-nncf", model.onnx_path, rows, work / "peers", transformer=True)
    nncf = PeerSession(
        _peers.open_peer("openvino-nncf", path, physical_cores(), {}), model.signature
    )
    plain = Recipe((QuantizeStatic(attention=True),)).apply(model, data, root=work / "store")
    bf16 = EngineConfig("openvino", "bf16", physical_cores())
    beside = replace(bf16, streams=physical_cores())
    ways = {
        "ingot, chosen artefact, sorted, a stream per core": (
            open_session(best, beside),
            _by_length,
        ),
        "ingot, all six layers, sorted, a stream per core": (
            open_session(plain, beside),
            _by_length,
        ),
        "ingot, all six layers, sorted": (open_session(plain, bf16), _by_length),
        "openvino-nncf, sorted": (nncf, _by_length),
        "openvino-nncf, as given, padded to the longest of 32": (nncf, _as_given),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(8):
        for name in np.random.default_rng(turn).permutation(list(ways)):
            session, run = ways[name]
            begin = time.perf_counter()
            run(session, feeds)
            times[name].append(time.perf_counter() - begin)
    count = len(next(iter(feeds.values())))
    speed = {name: count / np.array(t[1:]) for name, t in times.items()}
    ours, _, _, sorted_peer, naive = (speed[name] for name in ways)
    table = [[name, f"{np.median(v):.0f} [{v.min():.0f}, {v.max():.0f}]"]
             for name, v in speed.items()]  # fmt: skip
    return Section([
        _ratio("Sentences/s at STS-B lengths, ours / best peer batched naively", ours, naive, 2.0),
        _ratio("Sentences/s at STS-B lengths, both sorted by length", ours, sorted_peer, 1.2),
    ], {"throughput": table})  # fmt: skip


def _by_length(session: object, feeds: dict) -> None:
    run_rows(session, feeds, batch_rows=32, sort_by_length=True)


def _as_given(session: object, feeds: dict) -> None:
    for i in range(0, len(feeds["attention_mask"]), 32):
        batch = {n: a[i : i + 32] for n, a in feeds.items()}
        longest = int(batch["attention_mask"].sum(axis=1).max())
        session.run({n: np.ascontiguousarray(a[:, :longest]) for n, a in batch.items()})


def _ratio(claim: str, a: np.ndarray, b: np.ndarray, target: float) -> Claim:
    """Return the claim on the median ratio within a turn, with the range that holds 95 % of it."""
    ratios = np.sort(a / b)
    low, high = ratios[0], ratios[-1]  # of seven: 98 % for the median
    return Claim(claim, float(np.median(ratios)), float(low), float(high), "x", len(ratios),
                 f">= {target}", met=bool(low >= target))  # fmt: skip


def ladder(shared: Path, work: Path) -> Section:
    """Judge every observer on ResNet-20 and -32, on 5,000 JPEG images, exactly paired."""
    claims, table = [], []
    for name in ("resnet20", "resnet32"):
        model, data = _zoo.cifar(name)(shared, work)
        split = data.split("test")
        before = predict_split(model, OPENVINO, split)
        drops = {}
        for observer in OBSERVERS:
            small = Recipe((QuantizeStatic(observer=observer),)).apply(
                model, data, root=work / "store"
            )
            row = quality(
                METRICS["accuracy"], before, predict_split(small, OPENVINO, split), split.targets
            )
            drops[observer] = row.drop
            table.append([name, observer, *_points(row)])
        best = min(drops, key=lambda o: drops[o].high)
        drop = drops[best]
        claims.append(Claim(
            f"{name}: accuracy lost in static int8 with the best observer, exact paired",
            *(100 * v for v in (drop.value, drop.low, drop.high)), "points", drop.n,
            "upper bound <= 0.5 points", met=drop.high <= 0.005, note=f"observer: {best}",
        ))  # fmt: skip
    return Section(claims, {"observers": table})


def _points(row: object) -> list[str]:
    drop = row.drop
    ends = f"{100 * drop.value:.2f} [{100 * drop.low:.2f}, {100 * drop.high:.2f}]"
    return [f"{100 * row.baseline.value:.2f}", f"{100 * row.candidate.value:.2f}", ends]


def planted(shared: Path, work: Path) -> Section:
    """Spoil two layers of ResNet-20 for one scale per layer; the ranking must find them."""
    model, data = _spoiled(shared, work)
    split = data.split("test")
    before = predict_split(model, OPENVINO, split)
    method = QuantizeStatic(per_channel=False)
    rows = layer_sensitivity(model, data.split("calibration"), method)
    worst = tuple(row.layer for row in rows[:2])
    found = {}
    for label, skip in (("all layers", ()), ("two layers in float", worst)):
        form = QuantizeStatic(per_channel=False, skip=skip)
        small = Recipe((form,)).apply(model, data, root=work / "store")
        after = predict_split(small, OPENVINO, split)
        found[label] = quality(METRICS["accuracy"], before, after, split.targets)
    whole, rest = (found[k].drop for k in ("all layers", "two layers in float"))
    share = 1 - rest.value / whole.value
    low = 1 - rest.high / whole.low if whole.low > 0 else 0.0
    return Section([Claim(
        "ResNet-20 with a planted drop: share recovered by leaving the two worst layers in float",
        share, low, min(1 - rest.low / whole.high, 1.0), "share", whole.n, ">= 0.5",
        met=low >= 0.5,
        note=f"lost {100 * whole.value:.1f} points, then {100 * rest.value:.1f}; named: "
        + ", ".join(worst),
    )])  # fmt: skip


def _spoiled(shared: Path, work: Path) -> tuple[Model, Data]:
    """Return ResNet-20 with the channels between two convolutions scaled by 0.05 to 20.

    ReLU lets positive factors through, so the answers in float stay as they are.
    """
    import _nets
    from safetensors.torch import save_file

    with np.load(shared / "cifar10" / "resnet20.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files}
    _nets.resnet20().load_state_dict(state)
    rng = np.random.default_rng(0)
    block = "layer2.1"
    factor = torch.from_numpy(np.exp(rng.uniform(np.log(0.05), np.log(20), 32))).float()
    for part in ("weight", "bias"):
        state[f"{block}.bn1.{part}"] *= factor
    state[f"{block}.conv2.weight"] /= factor[None, :, None, None]
    path = work / "spoiled.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    example = {"image": np.zeros((2, 3, 32, 32), np.float32)}
    model = load_model("_nets:resnet20", weights=path, name="spoiled", example=example,
                       root=work / "store")  # fmt: skip
    return model, _zoo.cifar("resnet20")(shared, work)[1]


def zeroquant(shared: Path, work: Path) -> Section:
    """Hold ZeroQuant's gates on MiniLM: 8 bits free, distillation closes the gap of 4 bits."""
    model, data = _zoo.minilm(shared, work)
    split = data.split("test")
    some = Split({n: a[:1200] for n, a in split.inputs.items()})
    truth = _embeddings(model, some)
    before = predict_split(model, ORT, split)
    forms: dict[str, Method] = {
        "W4, nearest": QuantizeWeights(bits=4),
        "W4, GPTQ": QuantizeGroups(granularity="row"),
        "W4, layer by layer": DistillLayers(granularity="row"),
        "W4, layer by layer, originals' inputs": DistillLayers(granularity="row",
                                                               error_aware=False),
        "W4, layer by layer, random tokens": DistillLayers(granularity="row", random_tokens=True),
    }  # fmt: skip
    error, table, memory = {}, [], 0.0
    for name, method in forms.items():
        run, begin = Run(), time.monotonic()
        small = Recipe((method,)).apply(model, data, run=run, root=work / "store")
        took = time.monotonic() - begin
        row = quality(METRICS["spearman"], before, predict_split(small, ORT, split), split.targets)
        error[name] = 1 - float(cosine_rows(_embeddings(small, some), truth).mean())
        memory = max([memory, *(f["trained_bytes"] for _, f in run.records
                                if "trained_bytes" in f)])  # fmt: skip
        table.append([name, f"{1 - error[name]:.4f}", f"{100 * row.candidate.value:.2f}",
                      f"{took:.0f}"])  # fmt: skip
    gap = error["W4, nearest"]
    learnt = 1 - error["W4, layer by layer"] / gap
    random = 1 - error["W4, layer by layer, random tokens"] / gap
    dynamic = _dynamic_drop(model, data, work, before)
    block = sum(t.size for t in _block_weights(model)) * 4
    return Section([
        Claim("MiniLM W8A8, a scale per row and token: Spearman lost, paired",
              *(100 * v for v in (dynamic.value, dynamic.low, dynamic.high)), "points", dynamic.n,
              "upper bound <= 0.3 points", met=dynamic.high <= 0.003),
        exact("Layer-by-layer distillation: share of the W4 gap (1 - cosine) closed", learnt,
              "share", ">= 0.6", met=learnt >= 0.6, note="weights in 4 bits, a scale per row"),
        exact("The same from random tokens", random, "share", ">= 0.25", met=random >= 0.25),
        exact("Trained at once: bytes over those of a block", memory / block, "blocks",
              "<= 2 and Adam's two moments", met=memory <= 4 * block * 1.05,
              note="counted from sizes, not measured; without gradients and activations"),
    ], {"zeroquant": table})  # fmt: skip


def _dynamic_drop(model: Model, data: Data, work: Path, before: np.ndarray) -> object:
    from ingot.compress.quantize.dynamic import QuantizeDynamic

    small = Recipe((QuantizeDynamic(),)).apply(model, data, root=work / "store")
    split = data.split("test")
    return quality(
        METRICS["spearman"], before, predict_split(small, ORT, split), split.targets
    ).drop


def _block_weights(model: Model) -> list[np.ndarray]:
    from onnx import numpy_helper

    from ingot.compress.quantize.prepare import prepare
    from ingot.models.blocks import block_graph, find_blocks
    from ingot.models.onnx_format import read_onnx

    graph = prepare(read_onnx(model.onnx_path))
    part = block_graph(graph.proto, find_blocks(graph.proto)[1])
    return [numpy_helper.to_array(w) for w in part.graph.initializer]


def _embeddings(model: Model, split: Split) -> np.ndarray:
    session = open_session(model, ORT)
    feeds = feeds_for(model.signature, split.inputs)
    return run_rows(session, feeds, batch_rows=32, sort_by_length=True)[
        model.signature.outputs[0].name
    ]
