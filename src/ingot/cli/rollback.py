"""`ingot rollback`: point a stage back at the version it had before."""

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_json
from ingot.core.errors import RegistryError


@click.command()
@click.argument("target", metavar="NAME@STAGE")
@json_option
def command(target: str, as_json: bool) -> None:
    """Point a stage back at the version before. History is kept; the move is on the ledger.

    \b
    Examples:
      ingot rollback digits@prod
    """
    from ingot.registry.registry import Registry

    name, at, stage = target.partition("@")
    if not at or not stage:
        raise RegistryError(f"Roll back needs NAME@STAGE; got {target!r}. Example: digits@prod.")
    with Registry.open() as registry:
        found = registry.rollback(name, stage)
    if as_json:
        print_json(
            {"name": found.name, "number": found.number, "stage": stage, "version": found.digest}
        )
    else:
        click.echo(f"{name}@{stage} is back at {found.label}")
