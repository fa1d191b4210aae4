"""Options of `ingot serve` that deal requests among versions, and the plan they make."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingot.registry.version import Version
    from ingot.serve.traffic.plan import Shadow, Traffic
    from ingot.serve.traffic.split import Split

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--split", "splits", multiple=True, metavar="NAME:NUMBER=PERCENT",
        help="Deal requests for NAME among versions. Repeatable.",
    ),
    click.option(
        "--salt", default="ingot", show_default=True,
        help="Another one deals units anew. [split, canary]",
    ),
    click.option(
        "--shadow", metavar="NAME:NUMBER[=SHARE]",
        help="Copy requests, or a share from 0 to 1 of them, to a version.",
    ),
    click.option(
        "--canary", metavar="NAME:NUMBER", help="A version that gets more while its claims hold."
    ),
    click.option(
        "--require", "claims", multiple=True, metavar="CLAIM",
        help="What must hold, e.g. 'p95_ms <= 1.2x baseline'. Repeatable. [canary]",
    ),
    click.option(
        "--steps", default="1,5,25,100", show_default=True, help="Per cents, rising. [canary]"
    ),
    click.option(
        "--step-s", default=300.0, show_default=True, help="Least seconds at a step. [canary]"
    ),
    click.option(
        "--step-requests", default=100, show_default=True,
        help="Least requests of the version at a step. [canary]",
    ),
    click.option(
        "--longest-s", default=86_400.0, show_default=True,
        help="Most seconds at a step; then it is rolled back. [canary]",
    ),
)  # fmt: skip


def traffic_options(function: F) -> F:
    """Add the options of splits, shadows and canaries."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def traffic_plan(
    values: dict[str, Any], resolve: "Callable[[str], Version]"
) -> "tuple[Traffic | None, tuple[Version, ...]]":
    """Return the plan that the options ask for, and the versions that it names.

    Args:
        values: Values of the options; Any, for each has a type of its own.
        resolve: Finds a released version by `NAME:NUMBER` or `NAME@STAGE`.
    """
    from ingot.core.files import home
    from ingot.serve.traffic.plan import Traffic

    if values["claims"] and not values["canary"]:
        raise click.UsageError("--require goes with --canary.")
    splits = [_pair(text, "--split") for text in values["splits"]]
    shadow = _pair(values["shadow"], "--shadow", default=1.0) if values["shadow"] else None
    named = [target for target, _ in splits]
    named += [shadow[0]] if shadow else []
    named += [values["canary"]] if values["canary"] else []
    if not named:
        return None, ()
    versions = {target: resolve(target) for target in named}
    if len({version.name for version in versions.values()}) > 1:
        raise click.UsageError("--split, --shadow and --canary must name versions of one NAME.")
    plan = Traffic(
        _split({versions[target].number: share for target, share in splits}, values["salt"]),
        _shadow(versions[shadow[0]], shadow[1]) if shadow else None,
        _canary(versions[values["canary"]], values) if values["canary"] else None,
        home() / "traffic.sqlite",
    )
    return plan, tuple(versions.values())


def percents(text: str) -> float:
    """Read a per cent."""
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError as error:
        raise click.UsageError(f"{text!r} must be a number, in per cent.") from error


def _pair(text: str, option: str, default: float | None = None) -> tuple[str, float]:
    target, equals, share = text.partition("=")
    if not equals and default is not None:
        return target, default
    if not equals:
        raise click.UsageError(f"{option} takes NAME:NUMBER=PERCENT; got {text!r}.")
    return target, percents(share)


def _split(percent: dict[int, float], salt: str) -> "Split | None":
    from ingot.serve.traffic.split import shares

    return shares(percent, salt) if percent else None


def _shadow(version: "Version", share: float) -> "Shadow":
    from ingot.serve.traffic.plan import Shadow

    return Shadow(version.number, share)


def _canary(version: "Version", values: dict[str, Any]) -> Any:  # a Canary, imported late
    from ingot.twin.canary import Canary

    return Canary(
        version.number,
        tuple(values["claims"]),
        tuple(percents(step) / 100 for step in values["steps"].split(",")),
        values["step_s"],
        values["step_requests"],
        values["longest_s"],
    )
