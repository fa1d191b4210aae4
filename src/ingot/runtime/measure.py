"""The ruler: candidates timed side by side, so that a drifting machine drifts for all of them."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from ingot.core.digest import Json
from ingot.core.errors import EngineError
from ingot.core.progress import SILENT, Progress
from ingot.core.seeds import derive_seed
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig, Session
from ingot.runtime.noise import NOISE_LIMIT, NoiseMeter, others_share
from ingot.runtime.quantiles import quantile_interval

Open = Callable[[Model, EngineConfig], Session]
Clock = Callable[[], float]
Feeds = Mapping[str, Array]

_ROUNDS = 20  # rounds are the unit of pairing: enough for a bootstrap over them
_MIN_ROUNDS = 3
_CHUNK_S = 0.1  # the kernel counts CPU time in 10 ms ticks: shorter chunks cannot be judged
_MAX_CHUNK_CALLS = 1000
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model run in one way.

    Attributes:
        label: Unique short text for tables.
        model: What runs.
        config: How it runs.
    """

    label: str
    model: Model
    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of one request: rows, and tokens per row for models that have a sequence axis."""

    batch: int = 1
    sequence: int | None = None

    @property
    def label(self) -> str:
        """Short text for tables.

        Examples:
            >>> Shape(1, 128).label, Shape(16).label
            ('batch 1 x 128', 'batch 16')
        """
        return f"batch {self.batch}" + (f" x {self.sequence}" if self.sequence else "")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Latency of one candidate at one shape, in milliseconds per call.

    Attributes:
        label: The candidate's label.
        config: How it ran.
        shape: The shape's label.
        p50_ms: Median over the calls that count.
        p50_low_ms: Lower end of its distribution-free 95 % interval.
        p50_high_ms: Upper end; infinite if there are too few calls to give one.
        p95_ms: 95th percentile.
        p95_low_ms: Lower end of its interval.
        p95_high_ms: Upper end; infinite below 72 calls.
        items_per_s: Rows answered per second of calling, one call at a time.
        n: Calls that count.
        noisy: Whether other processes disturbed more than half of the chunks; all are kept then.
        noise: Mean share of the cores that others took, or None where the system does not tell.
        blocks_ms: Median of each round, all rounds, in the order of time.
        quiet: Whether each round was undisturbed.
    """

    label: str
    config: EngineConfig
    shape: str
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p95_ms: float
    p95_low_ms: float
    p95_high_ms: float
    items_per_s: float
    n: int
    noisy: bool
    noise: float | None
    blocks_ms: tuple[float, ...]
    quiet: tuple[bool, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; an infinite end becomes null."""
        value = asdict(self) | {"config": self.config.to_json()}
        value |= {"blocks_ms": list(self.blocks_ms), "quiet": list(self.quiet)}
        return {k: None if v == math.inf else v for k, v in value.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "Measurement":
        """Read the JSON form."""
        row = dict(value)
        for end in ("p50_high_ms", "p95_high_ms"):
            row[end] = math.inf if row[end] is None else row[end]
        row["config"] = EngineConfig.from_json(row["config"])  # type: ignore[arg-type,assignment] # written by to_json
        row |= {"blocks_ms": tuple(row["blocks_ms"]), "quiet": tuple(row["quiet"])}  # type: ignore[arg-type] # JSON lists
        return cls(**row)  # type: ignore[arg-type] # checked by the dataclass fields


class Ratio(NamedTuple):
    """A ratio with its 95 % interval; `n` is the number of paired rounds."""

    value: float
    low: float
    high: float
    n: int


def measure(
    candidates: Sequence[Candidate],
    feeds: Mapping[str, Feeds],
    *,
    calls: int = 200,
    warmup: int = 20,
    budget_s: float | None = None,
    seed: int = 0,
    open_session: Open | None = None,
    clock: Clock = time.perf_counter,
    meter: NoiseMeter | None = None,
    progress: Progress = SILENT,
) -> tuple[Measurement, ...]:
    """Time all candidates at all shapes, interleaved.

    All sessions are open together. After the warm-ups each round times one chunk of calls per
    candidate and shape, candidates in a new random order every round, so that drift and
    neighbours hit all of them alike. A chunk lasts at least 0.1 s, so fast models get more calls
    than asked for. Chunks during which other processes took more than 12 % of the usable cores
    are set aside unless that is more than half of them. Garbage collection waits meanwhile.

    Args:
        candidates: What to time; labels must differ.
        feeds: Inputs by shape label, see `feeds_at`.
        calls: Least number of timed calls per candidate and shape.
        warmup: Calls before the first timed one, per candidate and shape.
        budget_s: Start no further round after this many seconds; three rounds always run.
        seed: Fixes the order of candidates.
        open_session: Opens a session; the installed engines if not given.
        clock: Seconds.
        meter: Reads how busy the machine is.
        progress: Told once per round.

    Returns:
        One measurement per candidate and shape: candidates in the order given, shapes within.

    Raises:
        EngineError: Nothing to time, equal labels, or a candidate that cannot run.
    """
    _check(candidates, feeds, calls)
    rounds = max(_MIN_ROUNDS, min(_ROUNDS, calls // 10))
    with contextlib.ExitStack() as stack:
        lanes = _lanes(stack, candidates, feeds, open_session or _installed)
        for lane in lanes:
            lane.warm(clock, warmup, math.ceil(calls / rounds))
        stack.enter_context(_no_collection())
        order = np.random.default_rng(derive_seed(seed, "measure"))
        meter, start = meter or NoiseMeter(), clock()
        for done in range(rounds):
            if budget_s is not None and done >= _MIN_ROUNDS and clock() - start >= budget_s:
                break
            progress.step("measuring latency", done, rounds)
            for index in order.permutation(len(lanes)):
                lanes[index].chunk(clock, meter)
    return tuple(lane.result() for lane in lanes)


def latency_ratio(a: Measurement, b: Measurement, *, seed: int = 0) -> Ratio:
    """Return latency of `a` over latency of `b`, paired by round.

    The estimate is the median over rounds of the ratio of the two medians; its interval is the
    percentile bootstrap over rounds, 10 000 resamples. Rounds in which either was
    disturbed are left out if at least half of the rounds remain.

    Args:
        a: Numerator.
        b: Denominator, from the same call of `measure` and at the same shape.
        seed: Fixes the resamples.

    Raises:
        EngineError: The two do not come from the same rounds.
    """
    if a.shape != b.shape or len(a.blocks_ms) != len(b.blocks_ms) or not a.blocks_ms:
        raise EngineError(
            "Latencies must be compared at one shape over the same rounds; got "
            f"{a.shape!r} with {len(a.blocks_ms)} rounds and {b.shape!r} with {len(b.blocks_ms)}. "
            "Measure both in one call of measure()."
        )
    ratios = np.asarray(a.blocks_ms) / np.asarray(b.blocks_ms)
    quiet = np.asarray(a.quiet) & np.asarray(b.quiet)
    if 2 * quiet.sum() >= len(quiet):
        ratios = ratios[quiet]
    rng = np.random.default_rng(derive_seed(seed, "latency-ratio"))
    picks = rng.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


class _Lane:
    """One candidate at one shape: its session, its inputs and its times so far."""

    def __init__(self, candidate: Candidate, shape: str, session: Session, feeds: Feeds) -> None:
        self._candidate, self._shape, self._session, self._feeds = candidate, shape, session, feeds
        self._calls = 1
        self._chunks: list[list[float]] = []
        self._shares: list[float | None] = []

    def warm(self, clock: Clock, warmup: int, least: int) -> None:
        times = [self._time(clock) for _ in range(max(1, warmup))]
        typical = max(float(np.median(times)), 1e-9)
        self._calls = max(least, min(_MAX_CHUNK_CALLS, math.ceil(_CHUNK_S / typical)))

    def chunk(self, clock: Clock, meter: NoiseMeter) -> None:
        before = meter.read()
        self._chunks.append([self._time(clock) for _ in range(self._calls)])
        self._shares.append(others_share(before, meter.read()))

    def _time(self, clock: Clock) -> float:
        start = clock()
        self._session.run(self._feeds)
        return clock() - start

    def result(self) -> Measurement:
        quiet = tuple(share is None or share <= NOISE_LIMIT for share in self._shares)
        noisy = 2 * sum(quiet) < len(quiet)
        kept = [c for c, ok in zip(self._chunks, quiet, strict=True) if ok or noisy]
        ms = [second * 1000 for chunk in kept for second in chunk]
        known = [share for share in self._shares if share is not None]
        p50, p95 = quantile_interval(ms, 0.5), quantile_interval(ms, 0.95)
        return Measurement(
            self._candidate.label,
            self._candidate.config,
            self._shape,
            *p50,
            *p95,
            items_per_s=_batch(self._feeds) * len(ms) * 1000 / sum(ms),
            n=len(ms),
            noisy=noisy,
            noise=sum(known) / len(known) if known else None,
            blocks_ms=tuple(float(np.median(chunk)) * 1000 for chunk in self._chunks),
            quiet=quiet,
        )


def _lanes(
    stack: contextlib.ExitStack,
    candidates: Sequence[Candidate],
    feeds: Mapping[str, Feeds],
    open_session: Open,
) -> list[_Lane]:
    lanes = []
    for candidate in candidates:
        session = open_session(candidate.model, candidate.config)
        stack.callback(session.close)
        lanes += [_Lane(candidate, shape, session, inputs) for shape, inputs in feeds.items()]
    return lanes


def _installed(model: Model, config: EngineConfig) -> Session:
    from ingot.runtime.engines import open_session

    return open_session(model, config)


def _batch(feeds: Feeds) -> int:
    first = next(iter(feeds.values()))
    return int(first.shape[0]) if first.ndim else 1


def _check(candidates: Sequence[Candidate], feeds: Mapping[str, Feeds], calls: int) -> None:
    labels = [candidate.label for candidate in candidates]
    if not labels or not feeds or len(set(labels)) < len(labels) or calls < 1:
        raise EngineError(
            "measure() must get at least one candidate, one shape, one call and labels that "
            f"differ; got candidates {labels!r}, shapes {list(feeds)!r}, calls={calls}. "
            "Rename or add candidates."
        )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
