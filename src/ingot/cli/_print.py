"""Printing: the result on stdout, the conversation on stderr."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


def say(message: str) -> None:
    """Say something to the person; never part of the result."""
    click.echo(message, err=True)


def print_json(value: Any) -> None:  # any JSON value
    """Print the result as JSON."""
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the columns after the first are right-aligned when they look like numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = (
            index > 0 and bool(cells) and all(c[:1].isdigit() or c[:1] in "-+~" for c in cells if c)
        )
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    Console(width=console.width if console.is_terminal else 132).print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print name and value, one per line, values aligned."""
    rows = [(name, str(value)) for name, value in facts]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
