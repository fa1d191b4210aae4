"""`ingot optimize`: the main job. Try methods and engines, keep the best that proves its claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import (
    ModelSource,
    data_options,
    json_option,
    load_data_option,
    model_options,
    parse_buckets,
    parse_shape,
    seed_option,
)
from ingot.cli._print import print_json, print_table, say
from ingot.core.goals import GOALS, Goal
from ingot.core.units import show_bytes, show_ms, show_number

if TYPE_CHECKING:
    from ingot.search.result import Result
    from ingot.search.trial import Outcome, Trial


@click.command()
@model_options
@data_options
@click.option(
    "--require",
    multiple=True,
    metavar="CLAIM",
    help='Claim to keep, e.g. "accuracy drop <= 0.005". Repeatable.',
)
@click.option(
    "--goal",
    type=click.Choice(GOALS),
    default="latency",
    show_default=True,
    help="What to be best at among candidates that keep the claims.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    default=["1"],
    show_default=True,
    metavar="BxS",
    help="Batch, or batch x sequence, to be fast at. Repeatable; the first one counts.",
)
@click.option(
    "--threads", default=0, show_default=True, help="Threads per call; 0 is every physical core."
)
@click.option(
    "--minutes",
    default=0.0,
    type=click.FloatRange(min=0),
    help="Training that may be spent on networks with fewer layers; needs the split `training`.",
)
@click.option(
    "--buckets",
    metavar="N,N,...",
    callback=parse_buckets,
    help="Pad texts up to these lengths; OpenVINO then compiles one row of each ahead.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("best"),
    show_default=True,
    help="Folder for the model, its evidence, its recipe and the report.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check claims, goal, shapes and data, print what would be tried first, and stop.",
)
@click.option("--fresh", is_flag=True, help="Forget what an interrupted run of this job finished.")
@seed_option
@json_option
def command(
    *,
    data_path: str,
    task: str | None,
    columns: tuple[str, ...],
    require: tuple[str, ...],
    goal: Goal,
    shapes: tuple[str, ...],
    threads: int,
    minutes: float,
    buckets: tuple[int, ...],
    out: Path,
    dry_run: bool,
    fresh: bool,
    seed: int,
    as_json: bool,
    **source: Any,
) -> int:
    """Make MODEL small and fast, keep the claims, prove it, and write the best candidate.

    Interrupt it with Ctrl-C at any time: the same command goes on where it stopped.
    Exits 1 if no candidate keeps the claims; the report is written all the same.

    \b
    Examples:
      ingot optimize model.onnx --data data.toml --require "accuracy drop <= 0.005" --out best
      ingot optimize minilm/ --data stsb.toml --require "spearman drop <= 0.005" --shape 1x128
    """
    from ingot.core.progress import progress_bar
    from ingot.search.optimize import optimize, plan

    where = ModelSource(**source)
    model = where.load()
    data = load_data_option(data_path, task, columns, model)
    if dry_run:
        sizes = tuple(parse_shape(s) for s in shapes)
        trials = plan(
            model, data, require=require, goal=goal, shapes=sizes, threads=threads,
            buckets=buckets, factory=where.factory(),
        )  # fmt: skip
        _print_plan(trials, as_json=as_json)
        return 0
    with progress_bar("optimize") as progress:
        result = optimize(
            model,
            data,
            require=require,
            goal=goal,
            shapes=tuple(parse_shape(s) for s in shapes),
            threads=threads,
            buckets=buckets,
            out=out,
            seed=seed,
            minutes=minutes,
            factory=where.factory(),
            fresh=fresh,
            progress=progress,
        )
    print_json(result.to_json()) if as_json else print_result(result)
    return 0 if result.chosen else 1


def _print_plan(trials: "Sequence[Trial]", *, as_json: bool) -> None:
    rows = [(t.recipe.label, t.config.label) for t in trials]
    if as_json:
        print_json([{"recipe": recipe, "run": config} for recipe, config in rows])
    else:
        print_table(
            f"{show_number(len(rows), 'candidate')} would be tried", ("recipe", "engine"), rows
        )


def print_result(result: "Result") -> None:
    """Print every candidate, the chosen one marked, and what to do next."""
    from ingot.compress.quantize.left_in_float import show_left

    print_table(
        result.summary,
        ("", "candidate", "runs on", "size", result.shape, result.metric, "claims", "why"),
        [_row(outcome, result) for outcome in result.outcomes],
    )
    if result.left_in_float:
        click.echo(f"Left in float: {show_left(result.left_in_float)}. Each by name: in the report")
    say(f"Report: {result.folder / 'report.html'}")
    if result.chosen:
        say(f"Next: ingot release NAME {result.folder} --stage prod && ingot serve NAME@prod")


def _row(outcome: "Outcome", result: "Result") -> tuple[str, ...]:
    mark = "=>" if outcome is result.chosen else ("*" if outcome.on_frontier else "")
    claims = {None: "", True: "hold", False: "FAIL"}[outcome.passed]
    return (
        mark,
        outcome.trial.recipe.label,
        outcome.trial.config.label,
        show_bytes(outcome.size_bytes) if outcome.size_bytes else "",
        show_ms(outcome.latency.value) if outcome.latency else "",
        f"{outcome.quality.value:.4f}" if outcome.quality else "",
        claims,
        outcome.reason,
    )
