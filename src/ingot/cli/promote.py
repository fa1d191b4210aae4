"""`ingot promote`: point a stage at a version."""

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_json


@click.command()
@click.argument("version", metavar="NAME:NUMBER")
@click.argument("stage")
@json_option
def command(version: str, stage: str, as_json: bool) -> None:
    """Point STAGE at a released version. Nothing is copied; the move is on the ledger.

    \b
    Examples:
      ingot promote digits:3 prod
    """
    from ingot.registry.registry import Registry

    with Registry.open() as registry:
        found = registry.resolve(version)
        registry.promote(found.name, found.number, stage)
    if as_json:
        print_json(
            {"name": found.name, "number": found.number, "stage": stage, "version": found.digest}
        )
    else:
        click.echo(f"{found.name}@{stage} is now {found.label}")
