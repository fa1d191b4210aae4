"""Judge every candidate: predictions, latency side by side, evidence against the float model."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

from ingot.core.digest import digest_json, hex_of
from ingot.core.errors import DataError, EngineError, IngotError
from ingot.core.progress import Progress
from ingot.data.data import Array
from ingot.evaluate.claims import Claim
from ingot.evaluate.compare import (
    check_labels,
    compare_quality,
    evidence_from,
    predict_split,
)
from ingot.evaluate.compare import plan as plan_claims
from ingot.evaluate.costs import timing_feeds
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.evaluate.metrics import METRICS, check_width
from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig, Session
from ingot.runtime.engines import open_session
from ingot.runtime.measure import Candidate, Measurement, measure
from ingot.search.job import Job
from ingot.search.journal import Journal
from ingot.search.make import Made
from ingot.search.pareto import frontier
from ingot.search.trial import Outcome

Qualities = MutableMapping[str, Sequence[Comparison]]
CALLS = 100
BUDGET_S = 60.0


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything that was tried, with what came of it.

    Attributes:
        outcomes: One per trial, in order.
        best_float: The fastest way to run the unchanged model that keeps the claims on quality.
        metric: Name of the quality metric that is plotted.
        shape: Shape at which latency is compared.
    """

    outcomes: tuple[Outcome, ...]
    best_float: Outcome
    metric: str
    shape: str


def judge_all(
    job: Job,
    made: Sequence[Made],
    journal: Journal,
    progress: Progress,
    *,
    qualities: Qualities | None = None,
) -> Judged:
    """Return the outcome of every trial. Latencies are measured side by side, in one run.

    `qualities` remembers rows by trial, so that judging the same ones again beside others costs
    little.

    Quality is judged against the float model in fp32. Speed is judged against the best float path:
    the fastest way to run the unchanged model that itself keeps the claims on quality.

    Raises:
        EngineError: The unchanged model runs nowhere.
    """
    predictions, failures = _predict_all(job, made, journal, progress)
    truth = _reference(made, predictions, failures)
    check_labels(job.data, job.data.split(job.split), predictions[truth])
    claims, metrics = plan_claims(job.data, job.data.split(job.split), job.claims)
    check_width(metrics, predictions[truth])
    times = _measure_all(job, {i: made[i] for i in predictions}, journal, progress)
    known = {} if qualities is None else qualities
    bench = _Bench(job, made, predictions, times, truth, claims, metrics, known)
    best = bench.best_float()
    outcomes = []
    for i, one in enumerate(made):
        progress.step(f"evidence for {one.trial.label}", i, len(made))
        outcomes.append(
            bench.outcome(i, best)
            if i in predictions
            else Outcome(one.trial, one.model.digest if one.model else "", reason=failures[i])
        )
    marked = mark_frontier(outcomes)
    return Judged(marked, marked[best], bench.metrics[0], bench.shape)


@dataclass(frozen=True, slots=True)
class _Bench:
    """Predictions and latencies of everything that ran, by index of the trial."""

    job: Job
    made: Sequence[Made]
    predictions: Mapping[int, Array]
    times: Mapping[int, tuple[Measurement, ...]]
    truth: int
    claims: tuple[Claim, ...]
    metrics: tuple[str, ...]
    qualities: Qualities

    @property
    def shape(self) -> str:
        return self.times[self.truth][0].shape

    def best_float(self) -> int:
        """Return the fastest float trial that keeps the claims on quality."""
        floats = [i for i in self.predictions if self.made[i].trial.is_float]
        good = [i for i in floats if i == self.truth or self.keeps_quality(i)]
        return min(good, key=lambda i: self.times[i][0].p50_ms)

    def keeps_quality(self, i: int) -> bool:
        about = {claim.text for claim in self.claims if claim.metric in METRICS}
        return all(v.passed for v in self.evidence(i, self.truth).verdicts if v.claim in about)

    def evidence(self, i: int, base: int) -> Evidence:
        """Return the evidence of trial `i` against the float model as trial `base` runs it."""
        pairs = zip(self.times[base], self.times[i], strict=True)
        return evidence_from(
            self.candidate(base, "baseline"),
            self.candidate(i, "candidate"),
            data=self.job.data,
            split=self.job.split,
            before=self.predictions[self.truth],
            after=self.predictions[i],
            claims=self.claims,
            metrics=self.metrics,
            measured={a.shape: (a, b) for a, b in pairs},
            seed=self.job.seed,
            reference_config=self.made[self.truth].trial.config,
            qualities=self.quality(i),
        )

    def quality(self, i: int) -> Sequence[Comparison]:
        """Return how trial `i` answers beside the float model, worked out once."""
        key = self.made[i].trial.digest
        if key not in self.qualities:
            self.qualities[key] = compare_quality(
                self.job.data.split(self.job.split),
                self.metrics,
                self.predictions[self.truth],
                self.predictions[i],
                seed=self.job.seed,
            )
        return self.qualities[key]

    def candidate(self, i: int, label: str) -> Candidate:
        return Candidate(label, _model(self.made[i]), self.made[i].trial.config)

    def outcome(self, i: int, base: int) -> Outcome:
        evidence, times = self.evidence(i, base), self.times[i]
        failed = [v.reason for v in evidence.verdicts if not v.passed]
        first = times[0]
        found = evidence.find(self.metrics[0])
        model = _model(self.made[i])
        return Outcome(
            self.made[i].trial,
            model.digest,
            model.size_bytes,
            _p50(first),
            max(t.items_per_s for t in times),
            found.candidate if found else None,
            evidence,
            not failed,
            reason="; ".join(failed) or "holds every claim",
        )


def _predict_all(
    job: Job, made: Sequence[Made], journal: Journal, progress: Progress
) -> tuple[dict[int, Array], dict[int, str]]:
    split = job.data.split(job.split)
    found, failures = {}, {}
    for i, one in enumerate(made):
        progress.step(f"predict with {one.trial.label}", i, len(made))
        if one.model is None:
            failures[i] = one.error
            continue
        step = f"predictions-{hex_of(one.trial.digest)[:24]}"
        known = journal.read_array(step)
        try:
            if known is None:
                known = predict_split(one.model, one.trial.config, split, factory=job.factory)
                journal.write_array(step, known)
            found[i] = known
        except DataError:
            raise
        except IngotError as error:
            failures[i] = str(error)
    return found, failures


def _reference(
    made: Sequence[Made], found: Mapping[int, Array], failures: Mapping[int, str]
) -> int:
    floats = [i for i in found if made[i].trial.is_float]
    if not floats:
        reasons = "; ".join(failures.values())
        raise EngineError(
            f"The unchanged model must run on at least one engine; got none. {reasons} "
            "Run `ingot inspect` to see its operators and `ingot doctor` to see the engines."
        )
    exact = [i for i in floats if made[i].trial.config.precision == "fp32"]
    return (exact or floats)[0]


def _measure_all(
    job: Job, made: Mapping[int, Made], journal: Journal, progress: Progress
) -> dict[int, tuple[Measurement, ...]]:
    labels = {i: f"{i} {hex_of(one.trial.digest)[:12]}" for i, one in made.items()}
    step = f"latencies-{hex_of(digest_json(list(labels.values())))[:24]}"
    known = journal.read(step)
    if known is None:
        feeds = timing_feeds(job.model, job.data.split(job.split), job.shapes, seed=job.seed)

        def opened(model: Model, config: EngineConfig) -> Session:
            return open_session(model, config, factory=job.factory)

        sides = [Candidate(labels[i], _model(o), o.trial.config) for i, o in made.items()]
        rows = measure(
            sides, feeds, calls=CALLS, budget_s=BUDGET_S, seed=job.seed,
            open_session=opened, progress=progress,
        )  # fmt: skip
        known = {side.label: [] for side in sides}
        for row in rows:
            known[row.label].append(row.to_json())  # type: ignore[union-attr] # the list made above
        journal.write(step, known)
    return {
        i: tuple(Measurement.from_json(row) for row in known[label])  # type: ignore[union-attr,arg-type] # as written above
        for i, label in labels.items()
    }


def _p50(row: Measurement) -> Interval:
    ends = row.p50_low_ms, row.p50_high_ms
    return Interval(row.p50_ms, *ends, method="order-statistics", n=row.n)


def mark_frontier(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return the outcomes, each marked if no other is as good in size, latency and quality."""
    ran = [o for o in outcomes if o.ran]
    edge = iter(frontier([_costs(o) for o in ran]))
    return tuple(replace(o, on_frontier=next(edge)) if o.ran else o for o in outcomes)


def _costs(outcome: Outcome) -> tuple[float, ...]:
    assert outcome.latency is not None
    assert outcome.quality is not None
    return outcome.latency.value, float(outcome.size_bytes), -outcome.quality.value


def _model(one: Made) -> Model:
    assert one.model is not None, "only what was made can run"
    return one.model
