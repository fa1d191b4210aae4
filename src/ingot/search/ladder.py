"""The ladder: what to try next, given what came of what was tried. Each rung proposes trials."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil

from ingot.compress.depth.drop_layers import DropLayers
from ingot.compress.distill.distill import Distill
from ingot.compress.quantize.equalize import Equalize
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import IngotError
from ingot.core.extras import is_installed
from ingot.core.progress import Progress
from ingot.evaluate.metrics import METRICS
from ingot.models.blocks import find_blocks
from ingot.models.onnx_format import read_onnx
from ingot.search.job import Job
from ingot.search.journal import Journal
from ingot.search.judge import Judged, Qualities, judge_all, mark_frontier
from ingot.search.make import Made, make_all
from ingot.search.sensitivity import layer_sensitivity
from ingot.search.space import architecture
from ingot.search.trial import Outcome, Trial

Rung = Callable[[Job, Judged, Progress], tuple[Trial, ...]]
WORTH = 0.98  # a repair must promise at least two per cent
NEARBY = 1.3  # slower than this times the best is not timed again
NEAR = 1.05  # forms within five per cent of each other are one choice of the machine's mood
LEAST_BLOCKS = 4
ALONE = 3  # layers that are left in float one at a time: the ranking is close at its top
ELSEWHERE = 3  # recipes that are also run on the fastest engine
FORMS = 2  # integer forms of a shallower network that are tried
SMALL_MS = 0.5  # slower calls have work for every core: at 0.75 ms one took half as long again


def climb(
    job: Job, trials: Sequence[Trial], journal: Journal, progress: Progress, *, rungs: bool
) -> tuple[tuple[Made, ...], Judged]:
    """Make and judge the trials, then what each rung proposes after seeing the outcomes.

    After every rung what is new is timed side by side with the unchanged model and with all that
    may still be the best, so that no choice is between two moments of a busy machine. What is far
    behind keeps its figures.
    """
    qualities: Qualities = {}
    made = make_all(job, trials, journal, progress)
    judged = judge_all(job, made, journal, progress, qualities=qualities)
    for rung in RUNGS if rungs else ():
        known = {one.trial.digest for one in made}
        new = tuple(t for t in rung(job, judged, progress) if t.digest not in known)
        if new:
            fresh = make_all(job, new, journal, progress)
            again = [*contenders(made, judged), *fresh]
            made = (*made, *fresh)
            latest = judge_all(job, again, journal, progress, qualities=qualities)
            judged = merge(made, judged, latest)
    return made, judged


def contenders(made: Sequence[Made], judged: Judged) -> list[Made]:
    """Return the unchanged model in every form, and what is near the fastest that holds."""
    limit = NEARBY * min((_latency(o) for o in judged.outcomes if o.passed), default=float("inf"))
    pairs = zip(made, judged.outcomes, strict=True)
    return [one for one, o in pairs if o.ran and (o.trial.is_float or _latency(o) <= limit)]


def merge(made: Sequence[Made], before: Judged, latest: Judged) -> Judged:
    """Return the outcomes of everything made, the latest of each."""
    known = {o.trial.digest: o for o in (*before.outcomes, *latest.outcomes)}
    outcomes = mark_frontier([known[one.trial.digest] for one in made])
    return replace(latest, outcomes=outcomes)


def repair(job: Job, judged: Judged, progress: Progress) -> tuple[Trial, ...]:
    """Mend the fastest static form that breaks a claim: better rounding, worst layers in float."""
    broken = _fastest_broken(judged)
    if broken is None or "calibration" not in job.data.splits:
        return ()
    *before, last = broken.trial.recipe.methods
    assert isinstance(last, QuantizeStatic)
    forms = [replace(last, rounding="gptq", bias_correction=True)]
    try:
        rows = layer_sensitivity(job.model, job.data.split("calibration"), last, progress=progress)
    except IngotError:
        rows = ()  # its other mends are tried all the same
    worst = [row.layer for row in rows]
    counts = sorted({min(2, len(worst)), ceil(len(worst) / 8), ceil(len(worst) / 4)} - {0})
    groups = [worst[:count] for count in counts] + [[layer] for layer in worst[1:ALONE]]
    forms += [replace(last, skip=(*last.skip, *layers)) for layers in groups]
    recipes = [Recipe((*before, form)) for form in forms]
    if architecture(job.model) == "cnn":  # transformers have no two layers with only ReLU between
        recipes.append(Recipe((*before, Equalize(), last)))
    return tuple(Trial(recipe, broken.trial.config) for recipe in recipes)


def elsewhere(job: Job, judged: Judged, progress: Progress) -> tuple[Trial, ...]:
    """Run what holds on one engine on the engine where integers were fastest."""
    del job, progress
    ran = [o for o in judged.outcomes if o.ran and not o.trial.is_float]
    holding = sorted((o for o in ran if o.passed), key=_latency)
    if not holding:
        return ()
    fastest = min(ran, key=_latency)
    if _latency(fastest) >= _latency(holding[0]) * WORTH:
        return ()
    return tuple(
        Trial(o.trial.recipe, fastest.trial.config)
        for o in holding[:ELSEWHERE]
        if o.trial.config.engine != fastest.trial.config.engine
    )


def fewer_layers(job: Job, judged: Judged, progress: Progress) -> tuple[Trial, ...]:
    """Keep two thirds of the layers and win back what that loses, in half of the minutes."""
    del progress
    return _shallower(job, judged, 0.67) if _can_train(job) else ()


def fewer_still(job: Job, judged: Judged, progress: Progress) -> tuple[Trial, ...]:
    """Keep half of the layers if two thirds were enough, else five sixths."""
    del progress
    tried = [o for o in judged.outcomes if any(_drops(o))]
    if not tried:
        return ()
    return _shallower(job, judged, 0.5 if any(o.passed for o in tried) else 0.83)


def fewer_threads(job: Job, judged: Judged, progress: Progress) -> tuple[Trial, ...]:
    """Run the fastest small forms that hold on one core, where no thread waits for another."""
    del progress
    holding = sorted((o for o in judged.outcomes if o.passed and o.ran), key=_latency)
    if job.threads or job.goal == "throughput":
        return ()
    return tuple(
        replace(o.trial, config=replace(o.trial.config, threads=1))
        for o in holding[:FORMS]
        if o.trial.config.threads > 1 and o.latency and o.latency.value < SMALL_MS
    )


def more_streams(job: Job, judged: Judged, progress: Progress) -> tuple[Trial, ...]:
    """Run the forms of most rows per second as several calls side by side, a core each."""
    del progress
    if job.goal != "throughput":
        return ()
    holding = [o for o in judged.outcomes if o.passed and o.ran]
    best = sorted(holding, key=lambda o: -o.throughput)[: 2 * FORMS]
    return tuple(
        replace(o.trial, config=replace(o.trial.config, streams=o.trial.config.threads))
        for o in best
        if o.trial.config.threads > 1 and o.trial.config.engine in {"onnxruntime", "openvino"}
    )


RUNGS: tuple[Rung, ...] = (
    elsewhere,
    repair,
    fewer_layers,
    fewer_still,
    fewer_threads,
    more_streams,
)


def _fastest_broken(judged: Judged) -> Outcome | None:
    """Return the static form that broke a claim and is worth mending, if any beats what holds.

    Of those about as fast as the fastest it is the one that answers best.
    """
    ran = [o for o in judged.outcomes if o.ran and o.latency is not None]
    holding = [o.latency.value for o in ran if o.passed and o.latency]
    limit = min(holding) * WORTH if holding else float("inf")
    broken = [
        o
        for o in ran
        if o.passed is False
        and o.trial.recipe.methods
        and isinstance(o.trial.recipe.methods[-1], QuantizeStatic)
        and o.latency is not None
        and o.latency.value < limit
    ]
    if not broken:
        return None
    near = min(_latency(o) for o in broken) * NEAR
    return min((o for o in broken if _latency(o) <= near), key=_loss)


def _can_train(job: Job) -> bool:
    if job.minutes <= 0 or "training" not in job.data.splits or not is_installed("torch"):
        return False
    return len(find_blocks(prepare(read_onnx(job.model.onnx_path)).proto)) >= LEAST_BLOCKS


def _shallower(job: Job, judged: Judged, keep: float) -> tuple[Trial, ...]:
    """Return the fastest integer forms that hold, each of the network with fewer layers."""
    holding = sorted(
        (
            o
            for o in judged.outcomes
            if o.passed and o.ran and not o.trial.is_float and not any(_drops(o))
        ),
        key=_latency,
    )
    student = (DropLayers(keep), Distill(minutes=round(job.minutes / 2, 2)))
    return tuple(
        Trial(Recipe((*student, *o.trial.recipe.methods)), o.trial.config) for o in holding[:FORMS]
    )


def _drops(outcome: Outcome) -> list[bool]:
    return [True for m in outcome.trial.recipe.methods if isinstance(m, DropLayers)]


def _loss(outcome: Outcome) -> float:
    """Return how much worse the answers are, as the first metric of quality counts it."""
    rows = outcome.evidence.comparisons if outcome.evidence else ()
    return next((row.drop.value for row in rows if row.metric in METRICS), float("inf"))


def _latency(outcome: Outcome) -> float:
    return outcome.latency.value if outcome.latency else float("inf")
