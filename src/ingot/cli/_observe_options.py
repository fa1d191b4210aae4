"""Options of `ingot serve` about what is observed, and of `ingot log` about which of it."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingot.observe.reading import Selection

F = TypeVar("F", bound=Callable[..., Any])
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_SERVE = (
    click.option(
        "--log-rules", type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="TOML: what the observation log samples, redacts and forgets.",
    ),
    click.option(
        "--otlp", metavar="URL", help="Send traces to this OpenTelemetry collector (OTLP/HTTP)."
    ),
    click.option(
        "--otlp-sample", default=1.0, show_default=True,
        help="Fraction of traces begun here that is sent; callers decide about theirs.",
    ),
)  # fmt: skip
_WHICH = (
    click.option(
        "--log", "path", type=click.Path(path_type=Path),
        help="Observation log; in the Ingot home by default.",
    ),
    click.option("--since", metavar="TIME", help="From here on: 2026-05-01T12:00, or 30m, 2h, 7d."),
    click.option("--until", metavar="TIME", help="Up to here, written alike."),
    click.option(
        "--version", default="", metavar="DIGEST", help="Only this version; a beginning will do."
    ),
    click.option("--arm", help="Only this arm of a traffic split."),
)  # fmt: skip


def observe_options(function: F) -> F:
    """Add the options of `ingot serve` about what is observed."""
    for option in reversed(_SERVE):
        function = option(function)
    return function


def observe_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Endpoint` that these options ask for; Any, for each has its type."""
    from ingot.observe.rules import LogRules
    from ingot.serve.endpoint import Tracing

    rules, url = options["log_rules"], options["otlp"]
    return {
        "log_rules": None if rules is None else LogRules.read(rules),
        "tracing": None if url is None else Tracing(url, options["otlp_sample"]),
    }


def selection_options(function: F) -> F:
    """Add the options that say which observations of which log are meant."""
    for option in reversed(_WHICH):
        function = option(function)
    return function


def log_path(path: Path | None) -> Path:
    """Return the log that is meant.

    Raises:
        DataError: It is not there.
    """
    from ingot.core.files import home
    from ingot.observe.reading import need_log

    return need_log(path or home() / "observations.sqlite")


def selection_of(endpoint: str | None, options: dict[str, Any]) -> "Selection":
    """Return which observations are meant; Any, for each option has its type."""
    from ingot.observe.reading import Selection

    now = time.time()
    since, until = (_moment(options[name], f"--{name}", now) for name in ("since", "until"))
    return Selection(endpoint, options["version"], options["arm"], since, until)


def _moment(text: str | None, option: str, now: float) -> float | None:
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _SECONDS[ago[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"must be a time like 2026-05-01T12:00, or how long ago, like 30m, 2h or 7d; got "
            f"{text!r}", param_hint=option,
        ) from error  # fmt: skip
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
