"""`ingot log`: read what endpoints did."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._observe_options import log_path, selection_of, selection_options
from ingot.cli._options import json_option
from ingot.cli._print import print_facts, print_json, print_table, say

if TYPE_CHECKING:
    from ingot.observe.observation import Observation
    from ingot.observe.reading import Summary

_LOOK_S = 0.5


@click.group()
def command() -> None:
    """Read the observation log: what endpoints did, to whom, and how fast.

    \b
    Examples:
      ingot log show
      ingot log tail digits --follow
      ingot log export digits digits.parquet --since 7d
    """


@command.command()
@click.argument("endpoint", required=False)
@selection_options
@json_option
# Any: the options that select
def show(*, endpoint: str | None, path: Path | None, as_json: bool, **options: Any) -> None:
    """Show requests, statuses and latencies for each endpoint and version.

    Where the log's rules kept only some of the requests, the figures are estimates for all.

    \b
    Examples:
      ingot log show
      ingot log show digits --since 1h --json
    """
    from ingot.observe.reading import count_lost, summarize

    log, selection = log_path(path), selection_of(endpoint, options)
    _check_name(log, endpoint)
    found, lost = summarize(log, selection), count_lost(log, selection)
    if as_json:
        print_json({"endpoints": [one.to_json() for one in found], "lost": lost})
        return
    columns = ("endpoint", "version", "requests", "by status", "p50 ms", "p95 ms", "p99 ms")
    print_table("", columns, [_row(one) for one in found])
    if lost:
        say(f"{lost:,} observations were lost: the queue was full, or the disk could not keep them")


@command.command()
@click.argument("endpoint", required=False)
@click.option("--last", default=20, show_default=True, help="How many of the newest.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@selection_options
@json_option
# Any: the options that select
def tail(
    *,
    endpoint: str | None,
    last: int,
    follow: bool,
    path: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the newest observations; one JSON object per line with --json.

    \b
    Examples:
      ingot log tail
      ingot log tail digits --last 5 --follow
    """
    from ingot.observe.reading import read_after, read_newest

    log, selection = log_path(path), selection_of(endpoint, options)
    _check_name(log, endpoint)
    at, rows = read_newest(log, last, selection)
    _print_lines(rows, as_json=as_json)
    while follow:
        time.sleep(_LOOK_S)
        at, more = read_after(log, at, selection)
        _print_lines(more, as_json=as_json)


@command.command()
@click.argument("places", metavar="[ENDPOINT] OUT", nargs=-1, required=True)
@click.option("--all", "is_all", is_flag=True, help="Observations of every endpoint.")
@click.option(
    "--row-group", default=50_000, show_default=True, help="Rows held in memory at a time."
)
@selection_options
@json_option
# Any: the options that select
def export(
    *,
    places: tuple[str, ...],
    is_all: bool,
    row_group: int,
    path: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write observations to OUT, a .parquet, .csv or .jsonl table.

    \b
    Examples:
      ingot log export digits digits.parquet
      ingot log export --all week.csv --since 7d
    """
    from ingot.observe.export import export_log

    if len(places) != (1 if is_all else 2):
        raise click.UsageError("Give ENDPOINT and OUT, or --all and OUT.")
    endpoint = None if is_all else places[0]
    log, selection = log_path(path), selection_of(endpoint, options)
    _check_name(log, endpoint)
    done = export_log(log, Path(places[-1]), selection, row_group=row_group)
    if as_json:
        print_json(done.to_json())
    else:
        print_facts([("table", done.path), ("rows", f"{done.rows:,}"),
                     ("from", _when(done.first)), ("to", _when(done.last))])  # fmt: skip


def _check_name(log: Path, endpoint: str | None) -> None:
    """Say so if a log knows nothing of an endpoint: its name may be misspelt."""
    from ingot.core.names import suggest
    from ingot.observe.reading import logged_endpoints

    names = logged_endpoints(log)
    if endpoint is not None and endpoint not in names:
        say(f"warning: {log.name} has no observation of {endpoint!r}. {suggest(endpoint, names)}")


def _row(one: "Summary") -> list[str]:
    from ingot.core.digest import short

    statuses = ", ".join(f"{status}: {n:,}" for status, n in one.by_status.items())
    latencies = ["" if ms is None else f"{ms:.3g}" for ms in (one.p50_ms, one.p95_ms, one.p99_ms)]
    requests = f"{one.requests:,}" if one.requests == one.rows else f"~{one.requests:,}"
    return [one.endpoint, short(one.version), requests, statuses, *latencies]


def _print_lines(rows: "Iterable[Observation]", *, as_json: bool) -> None:
    import json

    for row in rows:
        if as_json:
            click.echo(json.dumps(row.to_json(), ensure_ascii=False))
        else:
            arm = "" if row.arm == "main" else f" {row.arm}"
            click.echo(
                f"{_when(row.time)}  {row.status}  {row.latency_ms:9.3f} ms  "
                f"{row.endpoint}{arm}  {row.request_id}"
            )


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "nothing"
    found = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return found.replace("+00:00", "Z")
