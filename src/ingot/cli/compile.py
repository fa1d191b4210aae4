"""`ingot compile`: prepare a proven model for a fast start on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingot.cli._options import best_folder, json_option
from ingot.cli._print import print_json, say
from ingot.core.errors import EvidenceError
from ingot.core.units import show_bytes

if TYPE_CHECKING:
    from ingot.models.model import Model
    from ingot.runtime.engine import EngineConfig


@click.command()
@click.argument("target", metavar="NAME@STAGE|FOLDER")
@click.option("--remove", is_flag=True, help="Delete the compiled forms of this model instead.")
@json_option
def command(*, target: str, remove: bool, as_json: bool) -> None:
    """Compile a released version, or what `ingot optimize` chose, ahead of its next start.

    The compiled form is kept in the Ingot home for this processor and this version of the engine;
    it is used only while it gives the answers that the model itself gives.

    \b
    Examples:
      ingot compile digits@prod
      ingot compile best
    """
    from ingot.runtime.compiled import drop_forms
    from ingot.runtime.engines import compile_ahead

    model, config = _find(target)
    if remove:
        drop_forms(model)
        say(f"Deleted the compiled forms of {model.name}")
        return
    form = compile_ahead(model, config)
    if as_json:
        size = form.size_bytes if form else None
        print_json({"model": model.digest, "config": config.to_json(), "size_bytes": size})
    elif form is None:
        say(f"{config.engine} keeps no compiled form: it starts from the model")
    else:
        say(f"{config.label} starts from a compiled form of {show_bytes(form.size_bytes)} now")


def _find(target: str) -> "tuple[Model, EngineConfig]":
    """Return model and configuration as they were proved."""
    from ingot.evaluate.evidence import read_evidence
    from ingot.models.store import open_model
    from ingot.registry.registry import Registry

    folder = Path(target)
    if not folder.is_dir():
        with Registry.open() as registry:
            version = registry.resolve(target)
            return registry.model_of(version), version.config
    model = best_folder(folder)
    if model is None or not (folder / "evidence.json").is_file():
        raise EvidenceError(
            f"What is compiled must be a released version or a folder that ingot optimize wrote; "
            f"{folder} holds no model with evidence.json. Release it, or optimize it first."
        )
    return open_model(model), read_evidence(folder / "evidence.json").config
