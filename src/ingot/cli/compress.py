"""`ingot compress`: apply a recipe to a model."""

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import (
    ModelSource,
    data_options,
    json_option,
    load_data_option,
    model_options,
    recipe_of,
    seed_option,
)
from ingot.cli._print import print_json, print_table, say
from ingot.core.digest import short
from ingot.core.units import show_bytes

if TYPE_CHECKING:
    from ingot.compress.run import Run
    from ingot.models.model import Model


@click.command()
@model_options
@partial(data_options, required=False)
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Method by name. Repeatable."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of that method."
)
@click.option(
    "--recipe", "recipe_path", type=click.Path(path_type=Path, exists=True), help="recipe.toml."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the recipe, change nothing.")
@seed_option
@json_option
def command(
    *,
    data_path: str | None,
    task: str | None,
    columns: tuple[str, ...],
    methods: tuple[str, ...],
    settings: tuple[str, ...],
    recipe_path: Path | None,
    out: Path,
    dry_run: bool,
    seed: int,
    as_json: bool,
    **source: Any,
) -> None:
    """Apply methods to MODEL and write the smaller model.

    --data may be left out if no method reads any.

    \b
    Examples:
      ingot compress model.onnx --data data.toml --method quantize-static --out small
      ingot compress model.onnx --data data.toml --recipe recipe.toml --out small
      ingot compress large.onnx --method quantize-weights --set bits=4 --out small
    """
    from ingot.compress.quantize.left_in_float import left_in_float, show_left
    from ingot.compress.run import Run
    from ingot.core.progress import progress_bar
    from ingot.models.onnx_format import read_skeleton
    from ingot.models.store import copy_folder

    recipe = recipe_of(methods, settings, recipe_path)
    where = ModelSource(**source)
    model = where.load()
    data = None if data_path is None else load_data_option(data_path, task, columns, model)
    if dry_run:
        recipe.check(model, data, factory=where.factory())
        say(f"Would apply {recipe.label} to {model.name} and write {out}.")
        print_json(recipe.to_json()) if as_json else click.echo(recipe.to_toml())
        return
    with progress_bar("compress") as progress:
        run = Run(seed=seed, progress=progress)
        small = recipe.apply(
            model, data, factory=where.factory(), seed=seed, progress=progress, run=run
        )
    shutil.rmtree(out / "model", ignore_errors=True)
    copy_folder(small, out / "model")
    recipe.write(out / "recipe.toml")
    left = left_in_float(read_skeleton(small.onnx_path), recipe.methods)
    if as_json:
        print_json(_report(model, small, out, run) | {"left_in_float": [r.to_json() for r in left]})
        return
    sizes = f"{show_bytes(model.size_bytes)} -> {show_bytes(small.size_bytes)}"
    _print_log(f"{recipe.label}: {sizes} ({model.size_bytes / small.size_bytes:.2f}x)", run)
    if left:
        click.echo(f"Left in float: {show_left(left)}. Each by name: --json")
    say(
        f"Wrote {out} (model {short(small.digest)}). "
        f"Next: ingot compare MODEL {out} --data {data_path or 'DATA'} --require CLAIM --out {out}"
    )


def _report(model: "Model", small: "Model", out: Path, run: "Run") -> dict[str, Any]:
    return {
        "model": small.digest,
        "out": str(out),
        "size_bytes": small.size_bytes,
        "before_bytes": model.size_bytes,
        "log": run.records,
    }


def _print_log(title: str, run: "Run") -> None:
    rows = [
        (name, ", ".join(f"{k} {_fact(v)}" for k, v in facts.items()))
        for name, facts in run.records
    ]
    print_table(title, ("layer", "what was done"), rows)


def _fact(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
