"""Encoders on the native engine beside every peer: latency, instruction sets, quality, start."""

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import _peers
import _zoo
import numpy as np
from _contest import PeerSession, _calibration_rows
from _results import Claim, Section
from _rungs import _as_given, _by_length, _ratio
from _runners import Race, final, ours, peer, race, torch_peer

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.data.data import Data, Split
from ingot.evaluate.compare import predict_split
from ingot.evaluate.metrics import METRICS
from ingot.evaluate.quality import quality
from ingot.models.feeds import feeds_for
from ingot.models.load import load_model
from ingot.models.model import Model
from ingot.runtime.cold_start import cold_start, footprint
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import compile_ahead, open_session
from ingot.runtime.feeds import feeds_at
from ingot.runtime.machine import physical_cores

FILES = ("ort-dynamic", "openvino-bf16", "openvino-nncf")
MINILM = {(1, 128): 2.0, (1, 32): 2.0, (32, 128): 1.6}
# What oneDNN, and OpenVINO with it, is told not to go beyond; our cap of the same instructions.
CAPS = {
    "avx512-vnni-bf16": "AVX512_CORE_BF16",
    "avx512-vnni": "AVX512_CORE_VNNI",
    "avx512": "AVX512_CORE",
    "avx2": "AVX2",
}


@dataclass(frozen=True)
class Encoder:
    """A network of the race: its float file, its form in eight bits, and rows to calibrate by."""

    name: str
    model: Model
    small: Model
    rows: list[dict]

    def entries(self, work: Path, threads: int) -> list[dict]:
        """Return ours and the peers that run a file."""
        paths = {
            name: _peers.prepare(
                name, self.model.onnx_path, self.rows, work / "peers", transformer=True
            )
            for name in FILES
        }
        paths["openvino-nncf-fixed"] = paths["openvino-nncf"]
        config = EngineConfig("native", threads=threads)
        in_bf16 = EngineConfig("native", "bf16", threads)
        mine = [ours("ingot", self.small, config), ours("ingot-bf16", self.model, in_bf16)]
        return [*mine, *(peer(n, p) for n, p in paths.items())]


@dataclass(frozen=True)
class Contest:
    """A race of everybody, and the final of ours with the two best peers."""

    first: Race
    last: Race

    def rows(self) -> list[list]:
        """Return runner, ms and the ratio to ours; who missed the final has the first race's."""
        rows = []
        for name in sorted(self.first.rounds, key=self.first.typical):
            is_last = name in self.last.rounds
            run = self.last if is_last else self.first
            value, low, high = run.ratio(name, "ingot")
            ends = f"[{low:.2f}, {high:.2f}]" if is_last else "(not in the final)"
            ratio = "1" if name == "ingot" else f"{value:.2f} {ends}"
            rows.append([name, f"{run.typical(name):.3g}", ratio])
        failed = self.first.failed.items()
        return [*rows, *([n, "does not run", why.splitlines()[0][:80]] for n, why in failed)]


def minilm(shared: Path, work: Path) -> Section:
    """Race MiniLM, unmodified, on two threads and on one."""
    encoder, section = _minilm(shared, work)[0], Section()
    for threads in (physical_cores(), 1):
        for (batch, length), target in MINILM.items():
            only = threads == physical_cores()
            extra = _peers.TORCH if only and batch == 1 and length == 128 else ()
            run = _race(encoder, (batch, length), work, threads=threads, torch=extra)
            _record(section, encoder, (batch, length), run, threads=threads, target=target)
    return section


def bert_shapes(shared: Path, work: Path) -> Section:
    """Race the shapes of BERT-base and RoBERTa-base with random weights."""
    del shared
    section, threads = Section(), physical_cores()
    for name, factory in (("BERT-base shape", "bert"), ("RoBERTa-base shape", "roberta")):
        encoder = _shape(name, f"_nets:{factory}_base_shape", work / factory)
        for shape in ((1, 128), (32, 128)) if factory == "bert" else ((1, 128),):
            run = _race(encoder, shape, work / factory, threads=threads)
            target = 1.5 if shape == (1, 128) else None
            _record(section, encoder, shape, run, threads=threads, target=target)
    return section


def sets(shared: Path, work: Path) -> Section:
    """Race MiniLM with both sides held to the same instructions."""
    encoder, section = _minilm(shared, work)[0], Section()
    for mine, theirs in CAPS.items():
        with _environment(INGOT_NATIVE_ISA=mine, ONEDNN_MAX_CPU_ISA=theirs,
                          DNNL_MAX_CPU_ISA=theirs):  # fmt: skip
            run = _race(
                encoder,
                (1, 128),
                work,
                threads=physical_cores(),
                folder=work / mine,
                only=("ingot", "openvino"),
            ).last  # ONNX Runtime's own kernels know no cap
        best = run.best_peers()[0]
        value, low, high = run.ratio(best, "ingot")
        section.rows.setdefault("sets", []).append([
            mine, "1 x 128", f"{run.typical('ingot'):.3g}", f"{best} {run.typical(best):.3g}",
            f"{value:.2f} [{low:.2f}, {high:.2f}]",
        ])  # fmt: skip
        if mine == "avx512-vnni":
            section.claims.append(Claim(
                "MiniLM 1 x 128, both sides held to AVX512-VNNI: best peer / ours", value, low,
                high, "x", len(run.rounds["ingot"]), ">= 1.2", met=low >= 1.2,
                note=f"{best} {run.typical(best):.3g} ms, ours {run.typical('ingot'):.3g} ms",
            ))  # fmt: skip
    return section


def stsb(shared: Path, work: Path) -> Section:
    """Run every sentence of the STS-B rows, and say what eight bits cost."""
    encoder, data = _minilm(shared, work)
    split, threads = data.split("test"), physical_cores()
    feeds = feeds_for(encoder.model.signature, split.inputs)
    path = _peers.prepare(
        "openvino-nncf", encoder.model.onnx_path, encoder.rows, work / "peers", transformer=True
    )
    nncf = PeerSession(
        _peers.open_peer("openvino-nncf", path, threads, {}), encoder.model.signature
    )
    session = open_session(encoder.small, EngineConfig("native", threads=threads))
    ways = {"ours": (session, _by_length), "sorted": (nncf, _by_length), "naive": (nncf, _as_given)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(8):
        for name in np.random.default_rng(turn).permutation(list(ways)):
            begin = time.perf_counter()
            ways[name][1](ways[name][0], feeds)
            times[name].append(time.perf_counter() - begin)
    count = len(next(iter(feeds.values())))
    speed = {name: count / np.array(t[1:]) for name, t in times.items()}
    before, after = (
        predict_split(m, c, split)
        for m, c in (
            (encoder.model, EngineConfig("onnxruntime", threads=threads)),
            (encoder.small, EngineConfig("native", threads=threads)),
        )
    )
    row = quality(METRICS["spearman"], before, after, split.targets)
    lost = row.drop
    section = Section([
        _ratio("MiniLM, six layers, sentences/s at STS-B lengths, ours / NNCF batched naively",
               speed["ours"], speed["naive"], 2.0),
        _ratio("the same, both sorted by length", speed["ours"], speed["sorted"], 1.2),
        Claim("MiniLM on the native engine: Spearman lost", 100 * lost.value, 100 * lost.low,
              100 * lost.high, "points", lost.n, "upper bound <= 0.5 points",
              met=100 * lost.high <= 0.5),
    ])  # fmt: skip
    section.rows["quality"] = [[
        "MiniLM", "weights in 8 bits, native", f"{100 * row.candidate.value:.2f}",
        f"{100 * lost.value:.2f} [{100 * lost.low:.2f}, {100 * lost.high:.2f}]",
        f"{footprint(encoder.small) / 1e6:.1f}", f"{np.median(speed['ours']):.0f}",
    ]]  # fmt: skip
    return section


def start(shared: Path, work: Path) -> Section:
    """Start fresh processes that answer once, from the packed form."""
    encoder = _minilm(shared, work)[0]
    config = EngineConfig("native", threads=physical_cores())
    compile_ahead(encoder.small, config)
    found = cold_start(encoder.small, config, runs=8)
    low, high = min(found.seconds), max(found.seconds)
    return Section([Claim(
        "MiniLM on the native engine: process start to first embedding", found.median_s, low, high,
        "s", 8, "<= 0.3 s", met=high <= 0.3,
        note="range of 8 fresh processes; digest of the artefact and of the packed form checked",
    )])  # fmt: skip


def _minilm(shared: Path, work: Path) -> tuple[Encoder, Data]:
    model, data = _zoo.minilm(shared, work)
    small = Recipe((QuantizeWeights(),)).apply(model, root=work / "store")
    rows = _calibration_rows(model, data.split("calibration"))
    return Encoder("MiniLM", model, small, rows), data


def _shape(name: str, factory: str, work: Path) -> Encoder:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 30000, (16, 128))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    example = {n: a[:2] for n, a in inputs.items()}
    model = load_model(factory, example=example, name=name.split()[0], root=work / "store")
    small = Recipe((QuantizeWeights(),)).apply(model, root=work / "store")
    return Encoder(name, model, small, _calibration_rows(model, Split(inputs)))


def _race(
    encoder: Encoder,
    shape: tuple[int, int],
    work: Path,
    *,
    threads: int,
    torch: tuple[str, ...] = (),
    folder: Path | None = None,
    only: tuple[str, ...] = ("",),
) -> Contest:
    """Race everybody, or whose name begins so; then the best two peers in five processes."""
    entries = [e for e in encoder.entries(work, threads) if e["name"].startswith(only)]
    entries += [torch_peer(name, "minilm") for name in torch]
    feeds = feeds_at(encoder.model, *shape)
    folder, big = folder or work / f"{shape[0]}x{shape[1]}_{threads}", shape[0] > 1
    run = race(entries, feeds, folder, threads=threads, processes=2, rounds=4 if big else 15,
               calls=1 if big else 4)  # fmt: skip
    last = final(run, entries, feeds, folder / "final", threads=threads, processes=5,
                 rounds=6 if big else 30, calls=1 if big else 4, openings=2)  # fmt: skip
    return Contest(run, last)


def _record(
    section: Section,
    encoder: Encoder,
    shape: tuple[int, int],
    contest: Contest,
    *,
    threads: int,
    target: float | None,
) -> None:
    what, last = f"{shape[0]} x {shape[1]}", contest.last
    best = last.best_peers()[0]
    section.rows.setdefault("race", []).extend(
        [encoder.name, what, threads, *row] for row in contest.rows()
    )
    value, low, high = last.ratio(best, "ingot")
    if target is None or threads != physical_cores():
        return
    section.claims.append(Claim(
        f"{encoder.name}, {what}: best peer / ours", value, low, high, "x",
        len(last.rounds["ingot"]), f">= {target:g}", met=low >= target,
        peers={n: round(contest.first.typical(n), 4) for n in contest.first.rounds},
        note=f"{best} {last.typical(best):.3g} ms, ours {last.typical('ingot'):.3g} ms",
    ))  # fmt: skip


@contextmanager
def _environment(**names: str):
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
