"""Options that limit how many requests a caller may send, and the limit they make."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingot.serve.endpoint import Rate

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--rate", type=float,
        help="Requests a second that a caller (a key, or an address without keys) may send.",
    ),
    click.option(
        "--burst", type=float, help="Requests that it may send at once; those of a second."
    ),
)  # fmt: skip


def rate_options(function: F) -> F:
    """Add the options of a rate."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def rate_of(rate: float | None, burst: float | None) -> "Rate | None":
    """Return the limit that the options ask for; None for none.

    Raises:
        ServeError: It limits nothing, or everything.
        UsageError: A burst without a rate.
    """
    from ingot.serve.endpoint import Rate

    if rate is None:
        if burst is not None:
            raise click.UsageError("--burst goes with --rate.")
        return None
    return Rate(rate, burst)
