"""The four-layer student on the native engine: beside the whole network's peers and its own."""

import time
from pathlib import Path

import _peers
import _zoo
import numpy as np
from _contest import _calibration_rows
from _encoders import FILES
from _minilm import exact
from _results import Claim, Section
from _runners import Race, ours, peer, race

from ingot.compress.depth.drop_layers import DropLayers
from ingot.compress.distill.distill import Distill
from ingot.compress.method import Method
from ingot.compress.quantize.weights import QuantizeGroups, QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.data.data import Data
from ingot.evaluate.compare import predict_split
from ingot.evaluate.metrics import METRICS
from ingot.evaluate.quality import quality
from ingot.models.feeds import feeds_for
from ingot.models.model import Model
from ingot.models.store import copy_folder, open_model
from ingot.runtime.buckets import run_rows
from ingot.runtime.cold_start import footprint
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.feeds import feeds_at
from ingot.runtime.machine import physical_cores

KEPT, MINUTES = (0, 1, 3, 5), 5.0
FORMS: tuple[tuple[str, str, Method], ...] = (
    ("ingot", "weights in 8 bits, tables in 4", QuantizeWeights(embeddings=4)),
    ("ingot-int4", "weights in 4 bits, k:32, GPTQ, tables in 4", QuantizeGroups(embeddings=4)),
)
SIDES = {"whole": "the whole network", "student": "the same student"}
ASKED = {"whole": 3.0, "student": 1.8}
RELATIVE_LOSS = 0.005


def student(shared: Path, work: Path) -> Section:
    """Distil four of MiniLM's six layers, store them as integers, and race both sizes' peers."""
    model, data = _zoo.minilm(shared, work)
    float_student = _student(model, data, work)
    small = {
        name: Recipe((method,)).apply(float_student, data, root=work / "store")
        for name, _, method in FORMS
    }
    rows = _calibration_rows(model, data.split("calibration"))
    config = EngineConfig("native", threads=physical_cores())
    entries = [ours(name, form, config) for name, form in small.items()]
    for side, source in (("whole", model), ("student", float_student)):
        folder = work / ("peers" if side == "whole" else "student_peers")
        for name in FILES:
            path = _peers.prepare(name, source.onnx_path, rows, folder, transformer=True)
            entries.append(peer(f"{name}@{side}", path))
            if name == "openvino-nncf":
                entries.append(peer(f"openvino-nncf-fixed@{side}", path))
    run = race(entries, feeds_at(model, 1, 128), work / "student", threads=physical_cores(),
               processes=5, rounds=20, calls=4)  # fmt: skip
    section = Section([_ratio_claim(run, side) for side in SIDES])
    section.claims.append(_latency_claim(run))
    _judge(section, model, small, data)
    section.rows["race"] = _race_rows(run)
    return section


def _student(model: Model, data: Data, work: Path) -> Model:
    """Return the float student; it is trained once and kept."""
    folder = work / "student_float"
    if not folder.exists():
        recipe = Recipe((DropLayers(kept=KEPT), Distill(minutes=MINUTES, epochs=8)))
        copy_folder(recipe.apply(model, data, root=work / "store"), folder)
    return open_model(folder)


def _ratio_claim(run: Race, side: str) -> Claim:
    best = next(name for name in run.best_peers() if name.endswith(f"@{side}"))
    value, low, high = run.ratio(best, "ingot")
    return Claim(
        f"MiniLM, four layers, 1 x 128: best peer on {SIDES[side]} / ours", value, low, high, "x",
        len(run.rounds["ingot"]), f">= {ASKED[side]:g}", met=low >= ASKED[side],
        peers={n: round(run.typical(n), 4) for n in run.rounds},
        note=f"{best.partition('@')[0]} {run.typical(best):.3g} ms, "
        f"ours {run.typical('ingot'):.3g} ms",
    )  # fmt: skip


def _latency_claim(run: Race) -> Claim:
    times = np.sort([np.median(t) for t in run.rounds["ingot"]])
    return Claim("MiniLM, four layers, 1 x 128: latency", run.typical("ingot"), float(times[0]),
                 float(times[-1]), "ms", len(times), "<= 0.8 ms (stretch)",
                 met=bool(times[-1] <= 0.8), note="range over the processes' medians")  # fmt: skip


def _race_rows(run: Race) -> list[list]:
    rows = []
    for name in sorted(run.rounds, key=run.typical):
        value, low, high = run.ratio(name, "ingot")
        ratio = "1" if name == "ingot" else f"{value:.2f} [{low:.2f}, {high:.2f}]"
        runner, _, side = name.partition("@")
        network = "MiniLM" if side == "whole" else "MiniLM, four layers"
        rows.append(
            [network, "1 x 128", physical_cores(), runner, f"{run.typical(name):.2f}", ratio]
        )
    return rows


def _judge(section: Section, model: Model, small: dict[str, Model], data: Data) -> None:
    split, threads = data.split("test"), physical_cores()
    before = predict_split(model, EngineConfig("onnxruntime", threads=threads), split)
    for name, label, _ in FORMS:
        form, config = small[name], EngineConfig("native", threads=threads)
        after = predict_split(form, config, split)
        row = quality(METRICS["spearman"], before, after, split.targets)
        speed = _sentences_per_second(form, split)
        lost, whole = row.drop, 100 * row.baseline.value
        section.rows.setdefault("quality", []).append([
            "MiniLM, four layers", f"{label}, native", f"{100 * row.candidate.value:.2f}",
            f"{100 * lost.value:.2f} [{100 * lost.low:.2f}, {100 * lost.high:.2f}]",
            f"{footprint(form) / 1e6:.1f}", f"{np.median(speed):.0f}",
        ])  # fmt: skip
        what = f"MiniLM, four layers, {label}"
        section.claims += [
            Claim(f"{what}: Spearman x 100 lost", 100 * lost.value, 100 * lost.low,
                  100 * lost.high, "points", lost.n,
                  f"upper bound <= {RELATIVE_LOSS:.1%} of {whole:.2f}",
                  met=100 * lost.high <= RELATIVE_LOSS * whole),
            exact(f"{what}: whole artefact", footprint(form) / 1e6, "MB", "<= 12 MB",
                   met=footprint(form) <= 12e6),
            Claim(f"{what}: sentences/s at STS-B lengths", float(np.median(speed)),
                  float(speed[0]), float(speed[-1]), "1/s", len(speed), ">= 10000 (stretch)",
                  met=bool(speed[0] >= 10_000)),
        ]  # fmt: skip


def _sentences_per_second(form: Model, split: object) -> np.ndarray:
    feeds = feeds_for(form.signature, split.inputs)
    session = open_session(form, EngineConfig("native", threads=physical_cores()))
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        run_rows(session, feeds, batch_rows=32, sort_by_length=True)
        times.append(time.perf_counter() - begin)
    session.close()
    return np.sort(len(next(iter(feeds.values()))) / np.array(times[1:]))
