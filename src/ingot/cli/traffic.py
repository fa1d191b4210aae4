"""`ingot traffic`: how a server deals requests among versions, and by whose decision."""

from datetime import UTC, datetime
from typing import Any

import click

from ingot.cli._options import json_option, key_option
from ingot.cli._print import print_facts, print_json, print_table, say
from ingot.cli._traffic_options import percents


@click.command()
@click.argument("target", metavar="URL/NAME")
@click.option(
    "--weights",
    multiple=True,
    metavar="NUMBER=PERCENT",
    help="Deal by these from now on; a canary is left alone. Repeatable.",
)
@click.option("--roll-back", is_flag=True, help="Take the canary out.")
@click.option("--start", is_flag=True, help="Begin the canary again at its first step.")
@key_option
@json_option
def command(
    *,
    target: str,
    weights: tuple[str, ...],
    roll_back: bool,
    start: bool,
    key: str | None,
    as_json: bool,
) -> None:
    """Show how requests for NAME are dealt among its versions, or change it.

    \b
    Examples:
      ingot traffic http://127.0.0.1:8000/digits
      ingot traffic http://127.0.0.1:8000/digits --weights 3=90 --weights 4=10
      ingot traffic http://127.0.0.1:8000/digits --roll-back
    """
    from ingot.serve.traffic.client import traffic

    if bool(weights) + roll_back + start > 1:
        raise click.UsageError("Give one of --weights, --roll-back and --start.")
    change: dict[str, Any] | None = None  # JSON
    if weights:
        change = {"weights": _weights(weights)}
    elif roll_back or start:
        change = {"roll_back": True} if roll_back else {"start": True}
    url, _, name = target.rstrip("/").rpartition("/")
    found = traffic(url, name, change, token=key or "")
    if as_json:
        print_json(found)
    else:
        _show(found)


def _weights(texts: tuple[str, ...]) -> dict[str, float]:
    from ingot.serve.traffic.split import shares

    pairs = [text.partition("=") for text in texts]
    for number, equals, _ in pairs:
        if not (equals and number.isdigit()):
            raise click.UsageError(f"--weights takes NUMBER=PERCENT; got {number + equals!r}.")
    split = shares({int(number): percents(share) for number, _, share in pairs})
    return {str(number): weight for number, weight in split.weights}


def _show(found: dict[str, Any]) -> None:
    facts = [("name", found["name"]), ("state", found["state"])]
    if found["canary"]:
        steps = ", ".join(_percents(step) for step in found["canary"]["steps"])
        facts.append(("canary", f"version {found['canary']['version']}, step {found['step']}"))
        facts.append(("steps", steps))
    if found["copies"]:
        copies = found["copies"]
        words = f"{copies['agreed']} of {copies['compared']} agreed, {copies['dropped']} dropped"
        facts.append(("shadow", f"version {found['shadow']['version']}: {words}"))
    print_facts(facts)
    rows = []
    for number, weight in found["weights"].items():
        counts = found["counts"].get(number, {"requests": 0, "errors": 0})
        cells = (_percents(weight), str(counts["requests"]), str(counts["errors"]))
        rows.append((number, *cells))
    print_table("", ("version", "share", "requests", "errors"), rows)
    decisions = [
        (_time(row["time"]), row["action"], row["who"], row["reason"])
        for row in found["decisions"][-10:]
    ]
    print_table("", ("time", "decision", "by", "reason"), decisions)
    if found["next"]:
        say(f"next: {found['next']}")


def _percents(share: float) -> str:
    return f"{100 * share:.6g} %"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
