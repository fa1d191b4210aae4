"""What a search leaves behind: model, evidence, recipe, report."""

import shutil

from ingot.compress.quantize.left_in_float import list_left
from ingot.compress.quantize.static import QuantizeStatic
from ingot.core.digest import Json, short
from ingot.core.errors import IngotError
from ingot.core.extras import is_installed
from ingot.core.progress import Progress
from ingot.evaluate.evidence import write_evidence
from ingot.evaluate.report.content import Report, ReportRow, SensitivityRow, save_report
from ingot.evaluate.report.page import write_report
from ingot.models.store import copy_folder
from ingot.search.explain import headline
from ingot.search.job import Job
from ingot.search.result import Result
from ingot.search.sensitivity import layer_sensitivity
from ingot.search.trial import Outcome


def write_output(job: Job, result: Result, best_float: Outcome | None, progress: Progress) -> None:
    """Write the folder of a search; what an earlier search left there is replaced.

    Without the extra `report` everything but the page is written.
    """
    folder = result.folder
    for old in ("evidence.json", "recipe.toml", "report.html", "report.json"):
        (folder / old).unlink(missing_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    if result.chosen is not None and result.model is not None:
        copy_folder(result.model, folder / "model")
        result.chosen.trial.recipe.write(folder / "recipe.toml")
        if result.chosen.evidence is not None:
            write_evidence(result.chosen.evidence, folder)
    report = _report(job, result, best_float, progress)
    save_report(report, folder / "report.json")
    if is_installed("jinja2"):
        write_report(report, folder / "report.html")


def _report(job: Job, result: Result, best_float: Outcome | None, progress: Progress) -> Report:
    chosen = result.chosen
    facts: dict[str, Json] = {
        "model": f"{job.model.name} ({short(job.model.digest)})",
        "data": f"{job.data.name} ({short(job.data.digest)}), split {job.split}",
        "claims": "; ".join(job.claims),
        "goal": job.goal,
        "best float": best_float.trial.config.label if best_float else "none ran",
    }
    if chosen:
        facts["recipe"] = chosen.trial.recipe.to_toml()
    if chosen and not chosen.trial.is_float:
        facts["left in float"] = list_left(result.left_in_float)
    return Report(
        title=headline(job.model.name, chosen),
        summary=result.summary,
        metric=result.metric,
        goal=job.goal,
        shape=result.shape,
        rows=tuple(_row(outcome, is_chosen=outcome is chosen) for outcome in result.outcomes),
        evidence=chosen.evidence if chosen else None,
        sensitivity=_sensitivity(job, result.outcomes, chosen, progress),
        facts=facts,
        notes=result.notes,
    )


def _row(outcome: Outcome, *, is_chosen: bool) -> ReportRow:
    return ReportRow(
        outcome.trial.recipe.label if outcome.trial.recipe.methods else "float, unchanged",
        outcome.trial.config.label,
        "float" if outcome.trial.is_float else "candidate",
        size_bytes=outcome.size_bytes or None,
        latency=outcome.latency,
        quality=outcome.quality,
        passed=outcome.passed,
        is_chosen=is_chosen,
        on_frontier=outcome.on_frontier,
        reason=outcome.reason,
    )


def _sensitivity(
    job: Job, outcomes: tuple[Outcome, ...], chosen: Outcome | None, progress: Progress
) -> tuple[SensitivityRow, ...]:
    """Rank the layers with the settings of the chosen static method, or of the first one tried."""
    tried = ([chosen] if chosen else []) + list(outcomes)
    static = [m for o in tried for m in o.trial.recipe.methods if isinstance(m, QuantizeStatic)]
    if not static or "calibration" not in job.data.splits:
        return ()
    try:
        return layer_sensitivity(
            job.model, job.data.split("calibration"), static[0], progress=progress
        )
    except IngotError:
        # The ranking explains a choice that is already made and proved; without it the page has
        # one section less, and the reason stands in the row of the method that failed.
        return ()
