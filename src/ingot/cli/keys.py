"""`ingot keys`: who may ask an endpoint."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_json, print_table, say
from ingot.cli._rate_options import rate_of, rate_options

if TYPE_CHECKING:
    from ingot.serve.access.keys import ApiKey, KeyStore


@click.group()
def command() -> None:
    """Make, show and revoke the API keys that `ingot serve --keys` asks for.

    \b
    Examples:
      ingot keys create robot --scope infer:digits
      ingot keys list
      ingot keys revoke 1f0c2a9be4d7
    """


@command.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    help="What it allows: infer:MODEL, read:MODEL, operate:MODEL, metrics or *. Repeatable.",
)
@click.option("--days", default=90.0, show_default=True, help="After which it ends; 0 for never.")
@rate_options
@json_option
def create(
    name: str,
    *,
    scopes: tuple[str, ...],
    days: float,
    rate: float | None,
    burst: float | None,
    as_json: bool,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    \b
    Examples:
      ingot keys create robot --scope infer:digits
      ingot keys create monitoring --scope metrics --days 365
      ingot keys create nightly --scope infer:digits --rate 5 --burst 20
    """
    limit = rate_of(rate, burst)
    text, key = _store().create(name, scopes, days=days or None, rate=limit)
    if as_json:
        print_json({"key": text} | _facts(key))
    else:
        say(f"key {key.id} of {name}; it cannot be shown again")
        click.echo(text)


@command.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """Show every key; the keys themselves are not kept.

    \b
    Examples:
      ingot keys list
    """
    found = [_facts(key) for key in _store().all()]
    if as_json:
        print_json(found)
        return
    columns = ("id", "name", "scopes", "rate", "created", "expires", "revoked")
    rows = [fact | {"scopes": " ".join(fact["scopes"])} for fact in found]
    print_table("Keys", columns, [[str(row[name] or "") for name in columns] for row in rows])


@command.command()
@click.argument("id")
@json_option
def revoke(id: str, as_json: bool) -> None:
    """End a key; servers that run notice within a second.

    \b
    Examples:
      ingot keys revoke 1f0c2a9be4d7
    """
    store = _store()
    store.revoke(id)
    if as_json:
        print_json(next(_facts(key) for key in store.all() if key.id == id))
        return
    say(f"key {id} is revoked")


def _store() -> "KeyStore":
    from ingot.core.files import home
    from ingot.serve.access.keys import KEYS_FILE, KeyStore

    return KeyStore(home() / KEYS_FILE)


def _facts(key: "ApiKey") -> dict[str, Any]:  # JSON
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "rate": None if key.rate is None else key.rate.per_s,
        "burst": None if key.rate is None else key.rate.depth,
        "created": _time(key.created),
        "expires": _time(key.expires),
        "revoked": _time(key.revoked),
    }


def _time(seconds: float | None) -> str | None:
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat("T", "seconds")
    )
