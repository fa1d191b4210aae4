"""One network: what `optimize` finds for it, beside every peer, at equal proven quality."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import _peers
import numpy as np
from _results import Claim, Section
from _runners import ours, peer, race

from ingot.data.data import Array, Data, Split
from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.compare import predict_split
from ingot.evaluate.evidence import Comparison
from ingot.evaluate.metrics import METRICS, cosine_rows
from ingot.evaluate.quality import quality
from ingot.models.feeds import feeds_for
from ingot.models.model import Model, Signature
from ingot.runtime.buckets import run_rows
from ingot.runtime.cold_start import cold_start, footprint, peak_rss
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import physical_cores
from ingot.search.job import Shape
from ingot.search.optimize import optimize
from ingot.search.result import Result

HERE = Path(__file__).parent
PEERS = (*_peers.PREPARED, "openvino-nncf-fixed")
STARTS = 3
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network of the contest.

    Attributes:
        name: As tables write it.
        load: Returns the float model and its data; gets the shared data and a work folder.
        claim: What every candidate and every peer must keep.
        shape: Request that latency is measured at.
        minutes: Training that `optimize` may spend.
        limit_min: Minutes that it may take in all, where that was asked for.
        is_text: Whether peers are told that it is a transformer.
        wanted_ms: Latency that was asked for, if any.
    """

    name: str
    load: Callable[[Path, Path], tuple[Model, Data]]
    claim: str
    shape: Shape = (1, None)
    minutes: float = 0.0
    limit_min: float = 0.0
    is_text: bool = False
    buckets: tuple[int, ...] = ()
    leave_out: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)


class PeerSession:
    """A peer's artefact behind the door that rows are run through."""

    def __init__(self, answer: _peers.Answer, signature: Signature) -> None:
        self.answer, self.signature = answer, signature
        self.config = EngineConfig()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        found = self.answer({n: np.ascontiguousarray(a) for n, a in feeds.items()})
        return {s.name: np.array(found[i]) for i, s in enumerate(self.signature.outputs)}


def contest(network: Network, shared: Path, work: Path) -> Section:
    """Search, judge the peers by the same claim, race, and weigh."""
    work.mkdir(parents=True, exist_ok=True)
    model, data = network.load(shared, work)
    start = time.monotonic()
    result = optimize(
        model, data, require=[network.claim], shapes=[network.shape], minutes=network.minutes,
        buckets=network.buckets, out=work / "best", fresh=True, **network.options,
    )  # fmt: skip
    minutes = (time.monotonic() - start) / 60
    section = Section()
    section.rows["rungs"] = [_rung(network.name, outcome) for outcome in result.outcomes]
    section.rows["words"] = [[network.name, note] for note in result.notes[:8]]
    if network.limit_min:
        section.claims.append(Claim(
            f"{network.name}: minutes to a proven artefact", minutes, minutes, minutes, "min", 1,
            f"<= {network.limit_min:g} min", met=minutes <= network.limit_min,
            note=f"{len(result.outcomes)} candidates, of which {network.minutes:g} min training; "
            + result.summary,
        ))  # fmt: skip
    if result.chosen is None or result.model is None:
        section.claims.append(_nothing_held(network, result))
        return section
    judged = _judge_peers(network, model, data, work)
    _race(network, result, judged, (model, data), section=section, work=work)
    return section


def _judge_peers(network: Network, model: Model, data: Data, work: Path) -> dict[str, dict]:
    """Return, by peer: its file and what its answers lose, or why there is none."""
    split, found = data.split("test"), {}
    before = predict_split(model, EngineConfig("onnxruntime", threads=physical_cores()), split)
    rows = _calibration_rows(model, data.split("calibration"))
    claim = parse_claim(network.claim)
    for name in PEERS:
        if name in network.leave_out:
            continue
        try:
            path = _peers.prepare(
                name.removesuffix("-fixed"), model.onnx_path, rows, work / "peers",
                transformer=network.is_text,
            )  # fmt: skip
            free = name.removesuffix("-fixed")
            if free != name and free in found:  # the same file, compiled for one shape
                found[name] = found[free]
                continue
            session = PeerSession(
                _peers.open_peer(free, path, physical_cores(), {}), model.signature
            )
            feeds = feeds_for(model.signature, split.inputs)
            after = run_rows(session, feeds, batch_rows=32, sort_by_length=True)
            answers = after[model.signature.outputs[0].name]
            if split.rows_per_example == 2:
                answers = cosine_rows(answers[0::2], answers[1::2])
            row = quality(METRICS[claim.metric], before, answers, split.targets)
            found[name] = {"path": path, "row": row, "verdict": judge(claim, [row])}
        except Exception as error:  # noqa: BLE001 # peers raise what they like; it goes in the table
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
    return found


def _race(
    network: Network,
    result: Result,
    judged: dict,
    sides: tuple[Model, Data],
    *,
    section: Section,
    work: Path,
) -> None:
    model, data = sides
    chosen, threads = result.chosen, physical_cores()
    feeds = _timing(network, result.model, data)
    entries = [ours("ingot", result.model, chosen.trial.config)]
    entries += [peer(n, facts["path"]) for n, facts in judged.items() if "path" in facts]
    quick = chosen.latency.value < 5
    run = race(entries, feeds, work / "race", threads=threads, processes=2,
               rounds=20 if quick else 8, calls=5 if quick else 2, openings=1)  # fmt: skip
    for name, reason in run.failed.items():
        judged[name] = {"failed": reason}
    passing = [n for n in run.best_peers() if judged[n]["verdict"].passed]
    section.rows["contest"] = _table(network, result, judged, run, work=work)
    if not passing:
        section.claims.append(Claim(
            f"{network.name}: latency / best peer", 0.0, 0.0, 0.0, "x", 0, "upper bound <= 1.03",
            met=True, note=f"no peer keeps {network.claim!r}: there is nobody to be compared with",
        ))  # fmt: skip
        return
    kept = [e for e in entries if e["name"] in {"ingot", *passing[:2]}]
    last = race(kept, feeds, work / "final", threads=threads, processes=5,
                 rounds=40 if quick else 15, calls=5 if quick else 2,
                 openings=2)  # fmt: skip
    best = last.best_peers()[0]
    value, low, high = last.ratio("ingot", best)
    section.rows["summary"] = [[
        network.name, chosen.trial.label, f"{last.typical('ingot'):.3g}",
        f"{best} {last.typical(best):.3g}", f"{value:.2f} [{low:.2f}, {high:.2f}]",
        f"{footprint(model) / footprint(result.model):.2f}", network.claim,
    ]]  # fmt: skip
    section.claims.append(Claim(
        f"{network.name}: latency / best peer that keeps {network.claim!r}", value, low, high, "x",
        len(last.rounds["ingot"]), "upper bound <= 1.03", met=high <= 1.03,
        peers={n: round(run.typical(n), 4) for n in run.rounds},
        note=f"best peer: {best}, {last.typical(best):.3g} ms; ours {last.typical('ingot'):.3g} ms "
        f"({chosen.trial.label})",
    ))  # fmt: skip


def _timing(network: Network, model: Model, data: Data) -> Feeds:
    from ingot.evaluate.costs import timing_feeds

    return next(iter(timing_feeds(model, data.split("test"), [network.shape]).values()))


def _table(network: Network, result: Result, judged: dict, run: object, *, work: Path) -> list:
    """Return a row per runner: quality, latency, size, cold start, memory, and what failed."""
    chosen = result.chosen
    start = cold_start(result.model, chosen.trial.config, runs=STARTS)
    memory = peak_rss(result.model, chosen.trial.config, runs=STARTS)
    found = chosen.evidence.find(parse_claim(network.claim).metric) if chosen.evidence else None
    rows = [[
        network.name, "ingot", _quality(found), "yes", _spread(run.rounds["ingot"]),
        f"{footprint(result.model) / 1e6:.2f}", f"{start.median_s:.2f}", f"{memory / 1e6:.0f}",
        chosen.trial.label,
    ]]  # fmt: skip
    for name, facts in judged.items():
        if "failed" in facts:
            rows.append([network.name, name, *[""] * 6, facts["failed"]])
            continue
        seconds, rss = _start(name, facts["path"], result.model, work)
        verdict = facts["verdict"]
        rows.append([
            network.name, name, _quality(facts["row"]), "yes" if verdict.passed else "no",
            _spread(run.rounds[name]), f"{_bytes(facts['path']) / 1e6:.2f}", seconds, rss,
            "" if verdict.passed else verdict.reason,
        ])  # fmt: skip
    return rows


def _start(name: str, path: Path, model: Model, work: Path) -> tuple[str, str]:
    """Return seconds from process start to first answer and MB of a peer: medians of three."""
    from ingot.runtime.feeds import feeds_at

    feeds = work / "cold_feeds.npz"
    np.savez(feeds, allow_pickle=False, **feeds_at(model, 1, 16))
    found = []
    for _ in range(STARTS + 1):
        begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        done = subprocess.run(
            [sys.executable, str(HERE / "_cold.py"), name, str(path), str(feeds)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return "fails", ""
        row = json.loads(done.stdout.strip().splitlines()[-1])
        found.append(((row["stamp_ns"] - begin) / 1e9, row["rss"]))
    seconds, rss = (float(np.median([row[i] for row in found[1:]])) for i in (0, 1))
    return f"{seconds:.2f}", f"{rss / 1e6:.0f}"


def _calibration_rows(model: Model, split: Split) -> list[Feeds]:
    feeds = feeds_for(model.signature, split.inputs)
    count = min(len(next(iter(feeds.values()))), 300)  # what NNCF takes by default
    rows = [{n: a[i : i + 1] for n, a in feeds.items()} for i in range(count)]
    if "attention_mask" not in feeds:
        return rows
    lengths = [int(row["attention_mask"].sum()) for row in rows]
    return [
        {n: np.ascontiguousarray(a[:, :k]) for n, a in row.items()}
        for row, k in zip(rows, lengths, strict=True)
    ]


def _rung(network: str, outcome: object) -> list:
    def show(interval: object, digits: int) -> str:
        if interval is None:
            return ""
        ends = f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
        return f"{interval.value:.{digits}f} {ends}"

    kept = {True: "yes", False: "no", None: ""}[outcome.passed]
    return [
        network, outcome.trial.recipe.label if outcome.trial.recipe.methods else "float, unchanged",
        outcome.trial.config.label, f"{outcome.size_bytes / 1e6:.2f}" if outcome.size_bytes else "",
        show(outcome.latency, 3), show(outcome.quality, 4), kept, outcome.reason,
    ]  # fmt: skip


def _quality(row: Comparison | None) -> str:
    if row is None:
        return "unchanged"
    value = row.candidate
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _spread(rounds: list[np.ndarray]) -> str:
    times = np.concatenate(rounds)
    low, middle, high = np.percentile(times, [2.5, 50, 97.5])
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _bytes(path: Path) -> int:
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _nothing_held(network: Network, result: Result) -> Claim:
    nearest = result.outcomes[0].reason if result.outcomes else ""
    return Claim(
        f"{network.name}: latency / best peer", 0.0, 0.0, 0.0, "x", 0, "upper bound <= 1.03",
        met=False, note=f"nothing kept {network.claim!r}: {nearest}",
    )  # fmt: skip
