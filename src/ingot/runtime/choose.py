"""Choose: the best engine, precision and thread count for a model here, by measurement."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from ingot.core.digest import Json, canonical_json, digest_bytes, digest_json, hex_of
from ingot.core.errors import EngineError, MissingExtraError
from ingot.core.files import home, write_atomic
from ingot.core.goals import Goal
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime.agreement import MAX_RELATIVE_ERROR, relative_error
from ingot.runtime.cold_start import cold_start, footprint, peak_rss
from ingot.runtime.energy import EnergyCounter, check_goal, energy_per_call
from ingot.runtime.engine import Engine, EngineConfig, Precision, Session
from ingot.runtime.feeds import feeds_at
from ingot.runtime.machine import describe_machine, machine_digest
from ingot.runtime.measure import Candidate, Clock, Measurement, Shape, measure
from ingot.runtime.noise import NoiseMeter

log = logging.getLogger(__name__)
Process = Callable[[Model, EngineConfig], float]
Feeds = Mapping[str, Array]
Inputs = Mapping[str, Feeds]  # by shape

_PROBE_CALLS = 30  # three rounds of ten: enough for an interval of the median
_CALLS = 200
_PROBE_SHARE = 0.3  # of the time budget; the rest goes to those that survive
_REFERENCE = EngineConfig("onnxruntime", "fp32")
_CACHE_VERSION = 1
_PROCESS: dict[str, Process] = {
    "memory": lambda model, config: float(peak_rss(model, config)),
    "cold_start": lambda model, config: cold_start(model, config, runs=3).median_s,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What won, and what it won against.

    Attributes:
        model: Digest of the model to serve.
        config: How to serve it.
        goal: What was optimized.
        measurements: Latencies of those that were measured in full; the winner's come first.
        errors: Relative error of outputs against ONNX Runtime fp32 of the same model, by label.
        excluded: Why the others were left out, by label.
        from_cache: Whether this was found out earlier on the same machine.
    """

    model: str
    config: EngineConfig
    goal: Goal
    measurements: tuple[Measurement, ...]
    errors: Mapping[str, float]
    excluded: Mapping[str, str]
    from_cache: bool = False

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "model": self.model,
            "config": self.config.to_json(),
            "goal": self.goal,
            "measurements": [m.to_json() for m in self.measurements],
            "errors": dict(self.errors),
            "excluded": dict(self.excluded),
        }


def choose(
    models: Sequence[Model],
    *,
    shapes: Sequence[Shape],
    goal: Goal = "latency",
    engines: Mapping[str, Engine] | None = None,
    precisions: Sequence[Precision] | None = None,
    threads: Sequence[int] = (0,),
    sample: Mapping[str, Array] | None = None,
    budget_s: float = 60.0,
    use_cache: bool = True,
    seed: int = 0,
    machine: Mapping[str, Json] | None = None,
    clock: Clock = time.perf_counter,
    meter: NoiseMeter | None = None,
    progress: Progress = SILENT,
) -> Choice:
    """Return the best way to run one of these models on this machine.

    Every engine x precision x thread count first answers once and is compared with ONNX Runtime
    fp32 of the same model; who fails, gives NaN or is off by more than 30 % is left out. A short
    measurement drops those whose interval lies above the best one's at every shape; the rest
    is measured in full; the geometric mean over shapes decides. Results are cached per machine.

    Args:
        models: Forms of one network, e.g. float and int8; quality is not compared here.
        shapes: Request sizes that matter.
        goal: What to optimize; latency breaks ties.
        engines: By name; the installed ones if not given.
        precisions: Float precisions to try; all that an engine runs in hardware if not given.
        threads: Threads per call to try; 0 means every physical core.
        sample: Real inputs by name; random ones if not given.
        budget_s: Time for measuring, opening sessions aside.
        use_cache: Whether to look for and keep the result.
        seed: Order and random inputs.
        machine: Facts about this machine; looked up if not given.
        clock: Seconds.
        meter: Reads how busy the machine is.
        progress: Told about each step.

    Raises:
        EngineError: Nothing runs any of the models, each reason is in the message; or the goal
            cannot be measured here.
    """
    _check(models, shapes)
    check_goal(goal)
    known = engines if engines is not None else _installed()
    excluded: dict[str, str] = {}
    candidates = _candidates(models, known, precisions, threads, excluded)
    path = _cache_path(candidates, shapes, goal, machine or describe_machine(), sample)
    if use_cache and (found := _recall(path)):
        return found

    trial = _Trial(known, goal, budget_s, seed, clock, meter, progress, excluded)
    choice = trial.run(candidates, {m.digest: _inputs(m, shapes, sample, seed) for m in models})
    if use_cache:
        write_atomic(path, canonical_json(choice.to_json()))
    return choice


@dataclass(frozen=True, slots=True)
class _Trial:
    """One run of the contest; the fields mean what they mean in `choose`."""

    engines: Mapping[str, Engine]
    goal: Goal
    budget_s: float
    seed: int
    clock: Clock
    meter: NoiseMeter | None
    progress: Progress
    excluded: dict[str, str]

    def run(self, candidates: Sequence[Candidate], inputs: Mapping[str, Inputs]) -> Choice:
        sound, errors = self._agreeing(candidates, inputs)
        if not sound:
            reasons = "; ".join(f"{label}: {why}" for label, why in self.excluded.items())
            raise EngineError(
                "At least one engine must run the model; got none: "
                f"{reasons or 'no engine fits'}. Run `ingot doctor` to see which engines work here."
            )
        shared = next(iter(inputs.values()))
        if self.goal in {"latency", "throughput"} and len(sound) > 1:
            probe = self._measure(sound, shared, calls=_PROBE_CALLS, share=_PROBE_SHARE)
            sound = _halve(sound, probe, self.excluded)
        final = self._measure(sound, shared, calls=_CALLS, share=1 - _PROBE_SHARE)
        ranked = sorted(sound, key=lambda c: self._score(c, _of(c, final), shared))
        rows = tuple(m for c in ranked for m in _of(c, final))
        best = ranked[0]
        return Choice(best.model.digest, best.config, self.goal, rows, errors, self.excluded)

    def _score(
        self, candidate: Candidate, rows: Sequence[Measurement], inputs: Mapping[str, Feeds]
    ) -> tuple[float, float]:
        """Return what the goal asks to be small, and the latency that breaks ties."""
        latency = sum(math.log(row.p50_ms) for row in rows)
        if self.goal == "latency":
            return latency, 0.0
        if self.goal == "throughput":
            return -sum(math.log(row.items_per_s) for row in rows), latency
        if self.goal == "size":
            return float(footprint(candidate.model)), latency
        if self.goal == "energy":
            return self._energy(candidate, next(iter(inputs.values()))), latency
        return _PROCESS[self.goal](candidate.model, candidate.config), latency

    def _energy(self, candidate: Candidate, feeds: Feeds) -> float:
        """Return joules per call at the first shape."""
        session = self._open(candidate.model, candidate.config)
        try:
            return median(energy_per_call(session, feeds, EnergyCounter.find(), runs=3))
        finally:
            session.close()

    def _open(self, model: Model, config: EngineConfig) -> Session:
        return self.engines[config.engine].open(model, config)

    def _measure(
        self, candidates: Sequence[Candidate], feeds: Inputs, *, calls: int, share: float
    ) -> tuple[Measurement, ...]:
        return measure(
            candidates,
            feeds,
            calls=calls,
            budget_s=self.budget_s * share,
            seed=self.seed,
            open_session=self._open,
            clock=self.clock,
            meter=self.meter,
            progress=self.progress,
        )

    def _agreeing(
        self, candidates: Sequence[Candidate], inputs: Mapping[str, Inputs]
    ) -> tuple[list[Candidate], dict[str, float]]:
        sound, errors = [], {}
        references: dict[str, dict[str, Array] | None] = {}
        for candidate in candidates:
            model = candidate.model
            feeds = next(iter(inputs[model.digest].values()))
            try:
                got = self._answer(model, candidate.config, feeds)
            except (EngineError, MissingExtraError) as error:
                self.excluded[candidate.label] = str(error)
                continue
            if model.digest not in references:
                references[model.digest] = self._reference(model, feeds)
            reference = references[model.digest]
            # without a reference only finiteness can be asked
            gap = relative_error(got if reference is None else reference, got)
            if gap > MAX_RELATIVE_ERROR:
                self.excluded[candidate.label] = (
                    f"its outputs are off by {gap:.3g} of their size "
                    f"from {_REFERENCE.label} (at most {MAX_RELATIVE_ERROR:g})"
                )
                continue
            errors[candidate.label] = gap
            sound.append(candidate)
        return sound, errors

    def _reference(self, model: Model, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        try:
            return self._answer(model, _REFERENCE, feeds)
        except (EngineError, KeyError) as error:  # not installed, or it cannot run this model
            log.warning("no reference answer from %s: %s", _REFERENCE.label, error)
            return None

    def _answer(
        self, model: Model, config: EngineConfig, feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        session = self._open(model, config)
        try:
            return session.run(feeds)
        finally:
            session.close()


def _check(models: Sequence[Model], shapes: Sequence[Shape]) -> None:
    if not models or not shapes:
        raise EngineError(
            f"choose() must get a model and a shape; got {len(models)} models and "
            f"{len(shapes)} shapes. Pass at least one of each."
        )


def _installed() -> Mapping[str, Engine]:
    from ingot.runtime.engines import engines

    return engines()


def _candidates(
    models: Sequence[Model],
    engines: Mapping[str, Engine],
    precisions: Sequence[Precision] | None,
    threads: Sequence[int],
    excluded: dict[str, str],
) -> list[Candidate]:
    usable = {}
    for name, engine in engines.items():
        status = engine.available()
        if status.ok:
            usable[name] = engine
        else:
            excluded[name] = status.reason
    found = []
    for (index, model), (name, engine) in product(enumerate(models), usable.items()):
        for precision, count in product(engine.precisions(model), threads):
            if precisions is None or precision in precisions:
                config = EngineConfig(name, precision, count)
                prefix = "" if len(models) == 1 else f"{index + 1} {model.name}: "
                found.append(Candidate(prefix + config.label, model, config))
    return found


def _inputs(
    model: Model, shapes: Sequence[Shape], sample: Mapping[str, Array] | None, seed: int
) -> Inputs:
    return {s.label: feeds_at(model, s.batch, s.sequence, sample=sample, seed=seed) for s in shapes}


def _of(candidate: Candidate, rows: Sequence[Measurement]) -> list[Measurement]:
    return [row for row in rows if row.label == candidate.label]


def _halve(
    candidates: Sequence[Candidate], probe: Sequence[Measurement], excluded: dict[str, str]
) -> list[Candidate]:
    best: dict[str, Measurement] = {}
    for row in probe:
        if row.shape not in best or row.p50_ms < best[row.shape].p50_ms:
            best[row.shape] = row
    kept = []
    for candidate in candidates:
        rows = _of(candidate, probe)
        if all(row.p50_low_ms > best[row.shape].p50_high_ms for row in rows):
            row = rows[0]
            excluded[candidate.label] = (
                f"clearly slower: {row.p50_ms:.3g} ms against {best[row.shape].p50_ms:.3g} ms "
                f"for {best[row.shape].label} at {row.shape}"
            )
        else:
            kept.append(candidate)
    return kept


def _cache_path(
    candidates: Sequence[Candidate],
    shapes: Sequence[Shape],
    goal: Goal,
    facts: Mapping[str, Json],
    sample: Mapping[str, Array] | None,
) -> Path:
    key: dict[str, Json] = {
        "version": _CACHE_VERSION,
        "candidates": [[c.model.digest, c.config.digest] for c in candidates],
        "shapes": [shape.label for shape in shapes],
        "goal": goal,
        "machine": machine_digest(facts),
        "sample": {n: digest_bytes(v.tobytes()) for n, v in sorted((sample or {}).items())},
    }
    return home() / "cache" / "choose" / f"{hex_of(digest_json(key))}.json"


def _recall(path: Path) -> Choice | None:
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_bytes())
        rows = tuple(Measurement.from_json(m) for m in row["measurements"])
        config = EngineConfig.from_json(row["config"])
        return Choice(row["model"], config, row["goal"], rows, row["errors"], row["excluded"], True)
    except (ValueError, KeyError, TypeError) as error:  # a cache is never worth an error
        log.warning("forgetting an unreadable choice: %s", error)
        return None
