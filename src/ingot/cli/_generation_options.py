"""Options of `ingot serve --generate`, and the settings they make."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingot.serve.endpoint import Generation

F = TypeVar("F", bound=Callable[..., Any])

cache_options = (
    click.option("--cache-tokens", default=4096, show_default=True,
                 help="Room of the cache, in tokens of all texts together."),
    click.option("--cache-bits", type=click.Choice(["32", "8"]), default="32", show_default=True,
                 help="Bits of cached keys and values."),
)  # fmt: skip
end_token_option = click.option(
    "--end-token", "end_tokens", multiple=True, metavar="ID|NAME",
    help="Token that ends a text, in place of the model's own. Repeatable.",
)  # fmt: skip
_OPTIONS = (
    click.option("--generate", is_flag=True, help="Write texts: a language model, streamed."),
    *cache_options,
    click.option(
        "--most-running", default=16, show_default=True, help="Texts in a step. [generate]"
    ),
    click.option(
        "--most-waiting", default=256, show_default=True,
        help="Texts under way; more get 429. [generate]",
    ),
    click.option(
        "--step-tokens", default=0, show_default=True,
        help="Tokens of a step; 0: what the engine likes best. [generate]",
    ),
    end_token_option,
)  # fmt: skip


def generation_options(function: F) -> F:
    """Add the options of an endpoint that writes texts."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def generation_settings(values: dict[str, Any]) -> "Generation | None":
    """Return the settings that the options ask for; None without `--generate`.

    Args:
        values: Values of the options; Any, for each has a type of its own.
    """
    from ingot.serve.endpoint import Generation

    if not values["generate"]:
        return None
    return Generation(
        cache_tokens=values["cache_tokens"],
        cache_bits=int(values["cache_bits"]),
        most_running=values["most_running"],
        most_waiting=values["most_waiting"],
        step_tokens=values["step_tokens"],
        end_tokens=tuple(values["end_tokens"]),
    )
