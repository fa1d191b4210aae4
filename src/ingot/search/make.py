"""Make every candidate model once, however many engines will run it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.digest import hex_of
from ingot.core.errors import IngotError, ModelError, RecipeError
from ingot.core.progress import Progress
from ingot.models.model import Model
from ingot.models.store import find_model
from ingot.search.job import Job
from ingot.search.journal import Journal
from ingot.search.trial import Trial


@dataclass(frozen=True, slots=True)
class Made:
    """A trial with the model it runs, or why there is none.

    Attributes:
        trial: What is tried.
        model: The model to run; None if the recipe failed.
        error: Why it failed, else empty.
    """

    trial: Trial
    model: Model | None
    error: str = ""


def make_all(
    job: Job, trials: Sequence[Trial], journal: Journal, progress: Progress
) -> tuple[Made, ...]:
    """Return every trial with its model; what an earlier run applied is not applied again."""
    recipes = {trial.recipe.digest: trial.recipe for trial in trials}
    made: dict[str, tuple[Model | None, str]] = {}
    for done, (digest, recipe) in enumerate(recipes.items()):
        progress.step(f"make {recipe.label}", done, len(recipes))
        made[digest] = _make(job, recipe, journal, progress)
    progress.step("candidates made", len(recipes), len(recipes))
    return tuple(Made(trial, *made[trial.recipe.digest]) for trial in trials)


def _make(
    job: Job, recipe: Recipe, journal: Journal, progress: Progress
) -> tuple[Model | None, str]:
    if not recipe.methods:
        return job.model, ""
    step = f"recipe-{hex_of(recipe.digest)[:24]}"
    known = _known(journal, step)
    if known is not None:
        return known
    try:
        small = _apply(job, recipe, journal, progress)
    except IngotError as error:
        journal.write(step, {"model": "", "error": str(error)})
        return None, str(error)
    journal.write(step, {"model": small.digest, "error": ""})
    return small, ""


def _apply(job: Job, recipe: Recipe, journal: Journal, progress: Progress) -> Model:
    """Apply a recipe; what several recipes begin with (minutes of training) is applied once."""
    run = Run(seed=job.seed, progress=progress)
    begin = Recipe(recipe.methods[:-1])
    if not begin.methods or recipe.methods[-1].form != "onnx":
        return recipe.apply(job.model, job.data, factory=job.factory, seed=job.seed, run=run)
    made, error = _make(job, begin, journal, progress)
    if made is None:
        raise RecipeError(error)
    return recipe.apply(
        job.model, job.data, factory=job.factory, seed=job.seed, run=run, after=made
    )


def _known(journal: Journal, step: str) -> tuple[Model | None, str] | None:
    facts = journal.read(step)
    if facts is None:
        return None
    if facts["error"]:
        return None, str(facts["error"])
    try:
        return find_model(str(facts["model"])), ""
    except ModelError:
        return None  # the store was cleaned since: make it again
