"""`ingot ledger`: read and verify the record."""

from pathlib import Path

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_json, print_table

FAILED = 1


@click.group()
def command() -> None:
    """Read and verify the tamper-evident record.

    \b
    Examples:
      ingot ledger show
      ingot ledger checkpoint > checkpoint.txt
      ingot ledger verify --against checkpoint.txt
    """


@command.command()
@click.option("--last", default=20, show_default=True, help="How many entries.")
@json_option
def show(last: int, as_json: bool) -> None:
    """Show the newest entries.

    \b
    Examples:
      ingot ledger show --last 5
    """
    from ingot.ledger.ledger import Ledger

    with Ledger.open() as ledger:
        entries = list(ledger.entries())[-last:]
    if as_json:
        print_json(
            [{"index": e.index, "time": e.time, "kind": e.kind, "body": e.body} for e in entries]
        )
        return
    print_table(
        "Ledger",
        ("index", "time", "kind", "what"),
        [
            (str(e.index), e.time, e.kind, ", ".join(f"{k}={v}" for k, v in e.body.items()))
            for e in entries
        ],
    )


@command.command()
@click.option(
    "--against", type=click.Path(path_type=Path, exists=True), help="Checkpoint kept elsewhere."
)
@json_option
def verify(against: Path | None, as_json: bool) -> int:
    """Recompute every hash; exit 1 if anything was changed.

    \b
    Examples:
      ingot ledger verify --against checkpoint.txt
    """
    from ingot.ledger.ledger import Ledger

    with Ledger.open() as ledger:
        result = ledger.verify(checkpoint=against.read_text() if against else None)
    if as_json:
        print_json(
            {
                "ok": result.ok,
                "size": result.size,
                "root": result.root,
                "problems": list(result.problems),
            }
        )
    else:
        click.echo(f"{result.size} entries, root {result.root}")
        for problem in result.problems:
            click.echo(f"TAMPERED: {problem}")
        click.echo("The ledger verifies." if result.ok else "The ledger does NOT verify.")
    return 0 if result.ok else FAILED


@command.command()
@json_option
def checkpoint(as_json: bool) -> None:
    """Print a checkpoint (C2SP tlog-checkpoint); keep it where nobody can write who can write here.

    \b
    Examples:
      ingot ledger checkpoint > checkpoint.txt
    """
    from ingot.ledger.ledger import Ledger

    with Ledger.open() as ledger:
        text = ledger.checkpoint()
    print_json({"checkpoint": text}) if as_json else click.echo(text, nl=False)


@command.command()
@click.argument("index", type=int)
@json_option
def prove(index: int, as_json: bool) -> None:
    """Print the proof that entry INDEX is in the record (RFC 9162 inclusion proof).

    \b
    Examples:
      ingot ledger prove 3
    """
    from ingot.ledger.ledger import Ledger

    with Ledger.open() as ledger:
        entry, head = ledger.entry(index), ledger.head()
        proof = [node.hex() for node in ledger.inclusion_proof(index)]
    if as_json:
        print_json(
            {
                "index": index,
                "size": head.size,
                "root": head.root,
                "kind": entry.kind,
                "proof": proof,
            }
        )
        return
    click.echo(f"entry {index} ({entry.kind}) in a tree of {head.size} with root {head.root}")
    for node in proof:
        click.echo(node)
