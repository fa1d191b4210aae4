"""Options of `ingot serve --async`, and the settings they make."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingot.serve.jobs.settings import AsyncSettings

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--async", "is_async", is_flag=True, help="Take jobs: durable, answered later, from zero."
    ),
    click.option(
        "--min-instances", default=0, show_default=True, help="Never fewer instances. [async]"
    ),
    click.option(
        "--max-instances", default=5, show_default=True, help="Never more instances. [async]"
    ),
    click.option(
        "--target-backlog", default=5.0, show_default=True,
        help="Backlog per instance aimed at. [async]",
    ),
    click.option(
        "--out-cooldown-s", default=120.0, show_default=True,
        help="Seconds between a scale-out and the next. [async]",
    ),
    click.option(
        "--in-cooldown-s", default=120.0, show_default=True,
        help="Seconds without need before a scale-in. [async]",
    ),
    click.option(
        "--concurrency", default=2, show_default=True,
        help="Jobs that an instance runs at once. [async]",
    ),
    click.option(
        "--allow", "roots", multiple=True, metavar="ROOT",
        help="Folder or s3://bucket/prefix that inputs may lie in. Repeatable. [async]",
    ),
    click.option(
        "--output", default="", metavar="ROOT", help="Where results go; beside the jobs by default."
        " [async]",
    ),
    click.option(
        "--folder", type=click.Path(path_type=Path),
        help="Where jobs and decisions are; in the Ingot home by default. [async]",
    ),
    click.option(
        "--durability", type=click.Choice(["normal", "full"]), default="normal", show_default=True,
        help="What accepted jobs survive: the death of every process, or power loss too. [async]",
    ),
    click.option(
        "--database", default="", metavar="URL", envvar="INGOT_DATABASE",
        help="postgresql://... shared by several servers; a local file by default. [async]",
    ),
    click.option(
        "--notify-allow", "notify_networks", multiple=True, metavar="NAME|CIDR",
        help="Host or network that may be notified though it is not public. Repeatable. [async]",
    ),
)  # fmt: skip
NAMES = (
    "min_instances", "max_instances", "target_backlog", "out_cooldown_s", "in_cooldown_s",
    "concurrency", "folder",
    "roots", "output", "durability", "database", "notify_networks",
)  # fmt: skip


def async_options(function: F) -> F:
    """Add the options of an asynchronous endpoint."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def async_settings(name: str, values: dict[str, Any]) -> "AsyncSettings":
    """Return the settings that the options ask for.

    Args:
        name: Name of the model; its jobs have a folder of their own in the Ingot home.
        values: Values of the options in `NAMES`; Any, for each has a type of its own.
    """
    from ingot.core.files import home
    from ingot.serve.jobs.settings import AsyncSettings
    from ingot.twin.policy import ScalingPolicy

    policy = ScalingPolicy(
        min_instances=values["min_instances"],
        max_instances=values["max_instances"],
        target=values["target_backlog"],
        out_cooldown_s=values["out_cooldown_s"],
        in_cooldown_s=values["in_cooldown_s"],
    )
    output = values["output"]
    return AsyncSettings(
        folder=values["folder"] or home() / "jobs" / name,
        policy=policy,
        concurrency=values["concurrency"],
        durability="FULL" if values["durability"] == "full" else "NORMAL",
        roots=tuple(_absolute(root) for root in values["roots"]),
        output=_absolute(output) if output else "",
        database=values["database"],
        notify_networks=tuple(values["notify_networks"]),
    )


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().absolute())
