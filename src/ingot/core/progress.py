"""Progress of long work, on stderr, with the time left."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol


class Progress(Protocol):
    """What long work reports to: a silent sink, a terminal bar, or a test's list."""

    def step(self, message: str, done: float, total: float) -> None:
        """Say that `done` of `total` units are finished and what happens next."""
        ...


class Silent:
    """Progress that nobody watches."""

    def step(self, message: str, done: float, total: float) -> None:
        """Do nothing."""


SILENT = Silent()


class _Bar:
    def __init__(self, bar: Any, task: int) -> None:  # a rich.progress.Progress, imported late
        self._bar, self._task = bar, task

    def step(self, message: str, done: float, total: float) -> None:
        self._bar.update(self._task, description=message, completed=done, total=total)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Give a bar on stderr with the time left; without a terminal, a plain line for each step."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar, bar.add_task(title, total=1))


class _Lines:
    def __init__(self, console: Any) -> None:  # a rich.console.Console, imported late
        self._console, self._last = console, ""

    def step(self, message: str, done: float, total: float) -> None:
        if message != self._last:
            self._last = message
            self._console.print(
                f"[{done:.0f}/{total:.0f}] {message}", markup=False, highlight=False
            )
