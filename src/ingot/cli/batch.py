"""`ingot batch`: answer every row of a file or folder."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import RELEASED, ModelSource, json_option, pairs
from ingot.cli._print import print_json, say

if TYPE_CHECKING:
    from ingot.models.model import Model
    from ingot.registry.version import Version
    from ingot.serve.batch.batch import Batch

_COUNT = click.IntRange(min=0)
_SOME = click.IntRange(min=1)


@click.command()
@click.argument("target", metavar="NAME@STAGE|MODEL")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "settings",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="data.toml whose columns, max_length and [image] say how rows are read.",
)
@click.option(
    "--column", "columns", multiple=True, metavar="ROLE=NAME", help="Which column is what."
)
@click.option("--key", "keys", multiple=True, metavar="NAME", help="Column that goes along.")
@click.option("--max-length", type=_SOME, help="Longest text in tokens.  [default: 128]")
@click.option("--truncate", is_flag=True, help="Cut longer texts instead of refusing the row.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True),
    help="tokenizer.json, for a model that has none of its own.",
)
@click.option(
    "--form",
    type=click.Choice(["parquet", "csv", "jsonl"]),
    help="Of the parts, where OUT is a folder.  [default: parquet]",
)
@click.option("--processes", type=_COUNT, default=0, help="0 is one per physical core.")
@click.option(
    "--on",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where they are: here, or on Ray, whose cluster RAY_ADDRESS names.",
)
@click.option("--threads", type=_COUNT, default=0, help="Of each process; 0 is an equal share.")
@click.option("--part-rows", type=_SOME, default=1024, show_default=True, help="Rows kept at once.")
@click.option(
    "--batch-rows", type=_SOME, default=32, show_default=True, help="Rows per call of the engine."
)
@click.option(
    "--max-errors",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Rows that may be refused; they go to OUT.errors.jsonl with the reason.",
)
@click.option("--fresh", is_flag=True, help="Forget what an earlier run left at OUT.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, change nothing.")
@json_option
def command(
    *, target: str, tokenizer: Path | None, fresh: bool, dry_run: bool, as_json: bool, **asked: Any
) -> None:
    """Answer every row of IN and write OUT, in the order of the input.

    IN is a .csv, .tsv, .jsonl or .parquet, a folder of these, or a folder of images. OUT is a
    .parquet, .csv or .jsonl, or a folder of parts. Interrupt it at any time: the same command goes
    on where it stopped. OUT.manifest.json says what ran.

    \b
    Examples:
      ingot batch minilm@prod sentences.csv embeddings.parquet --column text=sentence --key id
      ingot batch digits@prod scans/ labels.jsonl --max-errors 100
      ingot batch minilm@prod sentences/ embeddings --on ray --processes 8
    """
    from ingot.core.progress import progress_bar
    from ingot.core.units import show_number
    from ingot.serve.batch.run import run_batch

    model, version = _find(target, tokenizer)
    batch = _batch(model, version, **asked)
    if tokenizer is not None:
        batch = replace(batch, reading=replace(batch.reading, tokenizer=tokenizer))
    if dry_run:
        _print_plan(batch, as_json=as_json)
        return
    # stdout is the result's: Ray says there that an actor died
    with progress_bar(batch.source.name) as progress, redirect_stdout(sys.stderr):
        found = run_batch(batch, progress=progress, fresh=fresh)
    if as_json:
        print_json(found.to_json())
        return
    counts = f"{found.answered:,} of {found.rows:,} {'row' if found.rows == 1 else 'rows'}"
    say(f"{counts} answered in {found.seconds:.1f} s: {found.output}")
    if found.resumed:
        parts = show_number(found.parts, "part")
        say(f"finished before: {found.resumed} of {parts}")
    if found.error_file is not None:
        were = "row was" if found.errors == 1 else "rows were"
        say(f"{found.errors:,} {were} refused: {found.error_file}")
    say(f"what ran: {found.manifest}")


def _find(target: str, tokenizer: Path | None) -> "tuple[Model, Version | None]":
    if not RELEASED.match(target) or Path(target).exists():
        return ModelSource(target, tokenizer=tokenizer).load(), None
    from ingot.registry.registry import Registry

    with Registry.open() as registry:
        version = registry.resolve(target)
        return registry.model_of(version), version


def _batch(
    model: "Model",
    version: "Version | None",
    *,
    source: Path,
    out: Path,
    settings: Path | None,
    columns: tuple[str, ...],
    max_length: int | None,
    **rest: Any,  # fields of Batch by their own names, checked by click
) -> "Batch":
    from ingot.data.load import load_reading
    from ingot.serve.batch.batch import Batch

    named = pairs(columns, "--column") or None
    reading = load_reading(settings, columns=named, max_length=max_length)
    return Batch(model, source, out, version, reading, **rest)


def _print_plan(batch: "Batch", *, as_json: bool) -> None:
    from ingot.core.units import show_number
    from ingot.serve.batch.plan import plan_batch
    from ingot.serve.batch.run import finished_parts

    plan = plan_batch(batch)
    done = finished_parts(plan)
    if as_json:
        facts = {"rows": plan.scan.rows, "processes": plan.processes, "finished_parts": done}
        print_json(plan.facts | facts)
        return
    columns = "; ".join(f"{k} from {', '.join(v)}" for k, v in plan.work.roles.columns.items())
    rows, files = show_number(plan.scan.rows, "row"), show_number(len(plan.scan.files), "file")
    say(f"about {rows} of {files}: {columns}")
    processes = show_number(plan.processes, "process", plural="processes")
    say(f"{processes} of {plan.work.config.label}, {show_number(done, 'part')} finished")
