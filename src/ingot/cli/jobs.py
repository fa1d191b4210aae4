"""`ingot jobs`: put jobs to an asynchronous endpoint and see what becomes of them."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_facts, print_json, print_table, say
from ingot.core.errors import ServeError

if TYPE_CHECKING:
    from ingot.serve.jobs.client import JobClient

F = TypeVar("F", bound=Callable[..., Any])
FAILED = 1
_DECISIONS = 10_000  # as many as a server gives at once
_OF_ONE_JOB = (404, 409)  # refusals that say nothing about the next job


@click.group()
def command() -> None:
    """Put jobs to an asynchronous endpoint, and follow, list, cancel or retry them.

    \b
    Examples:
      ingot jobs demo
      ingot jobs submit digits request.json --wait
      ingot jobs counts digits
    """


def _common(function: F) -> F:
    for option in (
        json_option,
        click.option(
            "--url", default="http://127.0.0.1:8000", show_default=True, envvar="INGOT_URL",
            show_envvar=True,
            help="Address of the server.",
        ),
        click.option(
            "--token", default="", envvar=["INGOT_KEY", "INGOT_TOKEN"], show_envvar=True,
            help="API key or token, where the server asks for one.",
        ),
        click.argument("name", metavar="NAME"),
    ):  # fmt: skip
        function = option(function)
    return function


@command.command()
@_common
@click.argument("request_path", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--uri", help="Place of the request, where it is not sent inline.")
@click.option("--idempotency-key", default="", help="The same key is the same job.")
@click.option("--id", "caller_id", default="", help="Your own name for the job.")
@click.option("--ttl-s", default=86_400.0, show_default=True, help="Seconds it may wait to start.")
@click.option("--timeout-s", default=900.0, show_default=True, help="Seconds an attempt may take.")
@click.option("--notify", default="", help="URL that is told about the end.")
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for the end and print the result.")
def submit(
    *,
    name: str,
    url: str,
    token: str,
    as_json: bool,
    request_path: Path | None,
    uri: str | None,
    idempotency_key: str,
    is_waiting: bool,
    **options: Any,  # the options that go into the request as they are
) -> int:
    """Put a job: FILE is an infer request, `-` reads it from stdin.

    \b
    Examples:
      ingot jobs submit digits request.json --wait
      ingot jobs submit digits --uri s3://bucket/requests.jsonl --idempotency-key night-42
    """
    if (request_path is None) == (uri is None):
        raise ServeError("Give FILE or --uri, not both and not neither. - reads from stdin.")
    request = {"input_uri": uri} if request_path is None else _read(request_path)
    request |= {
        "ttl_s": options["ttl_s"],
        "timeout_s": options["timeout_s"],
        "notify": options["notify"],
    }
    if options["caller_id"]:
        request["id"] = options["caller_id"]
    client = _client(url, name, token)
    job = client.submit(request, idempotency_key=idempotency_key)
    if is_waiting:
        return _end(client, client.wait(job["job"]), as_json=as_json)
    _show(job, as_json=as_json)
    return 0


@command.command()
@_common
@click.argument("job")
def status(*, name: str, url: str, token: str, as_json: bool, job: str) -> None:
    """Say where a job stands.

    \b
    Example:
      ingot jobs status digits 6f1f6f0e-3a52-4b25-9a51-0d1d2c3b4a59
    """
    _show(_client(url, name, token).status(job), as_json=as_json)


@command.command()
@_common
@click.argument("job")
@click.option("--timeout-s", default=3600.0, show_default=True, help="Seconds to wait at most.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the result.")
def wait(
    *, name: str, url: str, token: str, as_json: bool, job: str, timeout_s: float, out: Path | None
) -> int:
    """Wait for the end of a job and print its result; exit 1 unless it succeeded.

    \b
    Example:
      ingot jobs wait digits 6f1f6f0e-3a52-4b25-9a51-0d1d2c3b4a59 --out result.json
    """
    client = _client(url, name, token)
    return _end(client, client.wait(job, timeout_s=timeout_s), as_json=as_json, out=out)


@command.command()
@_common
@click.argument("job")
def cancel(*, name: str, url: str, token: str, as_json: bool, job: str) -> None:
    """Cancel a job that has not ended.

    \b
    Example:
      ingot jobs cancel digits 6f1f6f0e-3a52-4b25-9a51-0d1d2c3b4a59
    """
    _show(_client(url, name, token).cancel(job), as_json=as_json)


@command.command()
@_common
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@click.option("--all-dead", is_flag=True, help="All that are dead now, instead of JOB.")
def retry(
    *, name: str, url: str, token: str, as_json: bool, jobs: tuple[str, ...], all_dead: bool
) -> int:
    """Put dead jobs back in the queue, once their model or input is mended; exit 1 if one is not.

    \b
    Examples:
      ingot jobs retry digits 6f1f6f0e-3a52-4b25-9a51-0d1d2c3b4a59
      ingot jobs retry digits --all-dead --json
    """
    if bool(jobs) == all_dead:
        raise ServeError("Give JOB or --all-dead, not both and not neither.")
    client = _client(url, name, token)
    tried = [(job, _retried(client, job)) for job in (client.dead() if all_dead else jobs)]
    refused = {job: why for job, why in tried if why}
    if as_json:
        print_json({"retried": [job for job, why in tried if not why], "refused": refused})
    else:
        print_table("", ["job", "retry"], [[job, why or "queued"] for job, why in tried])
    return FAILED if refused else 0


@command.command("list")
@_common
@click.option("--state", help="Only jobs in this state.")
@click.option("--limit", default=20, show_default=True, help="At most so many, the newest first.")
def list_jobs(
    *, name: str, url: str, token: str, as_json: bool, state: str | None, limit: int
) -> None:
    """List the newest jobs.

    \b
    Example:
      ingot jobs list digits --state dead
    """
    found = _client(url, name, token).jobs(state=state, limit=limit)["jobs"]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            job["job"],
            job["state"],
            str(job["attempt"]),
            job["created"],
            job["error"] or job["note"] or "",
        ]
        for job in found
    ]
    print_table("", ["job", "state", "attempt", "created", "error or note"], rows)


@command.command()
@_common
def counts(*, name: str, url: str, token: str, as_json: bool) -> None:
    """Count jobs by state.

    \b
    Example:
      ingot jobs counts digits --json
    """
    found = _client(url, name, token).jobs(limit=1)["counts"]
    if as_json:
        print_json(found)
    else:
        print_facts(found.items())


@command.command()
@_common
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="At most so many."
)
@click.option("--all", "with_holds", is_flag=True, help="Also those that changed nothing.")
def scaling(
    *, name: str, url: str, token: str, as_json: bool, limit: int, with_holds: bool
) -> None:
    """Show why there are as many instances as there are: the newest decisions, the newest last.

    \b
    Example:
      ingot jobs scaling digits --limit 50
    """
    made = _client(url, name, token).decisions(limit=_DECISIONS)
    found = [row for row in made if with_holds or row["action"] != "hold"][-limit:]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            datetime.fromtimestamp(row["time"], UTC).isoformat(timespec="seconds"),
            row["action"],
            f"{row['before']} -> {row['instances']}",
            str(row["backlog"]),
            row["reason"],
        ]
        for row in found
    ]
    print_table("", ["time", "decision", "instances", "backlog", "why"], rows)


@command.command()
@json_option
def demo(*, as_json: bool) -> int:
    """Serve a tiny model, put jobs, kill an instance, and count what comes back; needs no model.

    \b
    Example:
      ingot jobs demo
    """
    from dataclasses import asdict

    from ingot.serve.jobs.demo import show_jobs

    found = show_jobs()
    if as_json:
        print_json(asdict(found))
    else:
        print_facts(
            [
                ("first durable result", f"{found.first_s:.2f} s after the start"),
                ("jobs put", found.jobs),
                ("instances killed", found.killed),
                ("jobs answered", found.succeeded),
                ("attempts handed out again", found.again),
            ]
        )
    return 0 if found.succeeded == found.jobs else FAILED


def _client(url: str, name: str, token: str) -> "JobClient":
    from ingot.serve.jobs.client import JobClient

    return JobClient(url, name, token=token)


def _retried(client: "JobClient", job: str) -> str:
    """Retry a job; return why it cannot be, or nothing."""
    from ingot.serve.jobs.client import RefusedError

    try:
        client.retry(job)
    except RefusedError as error:
        if error.status not in _OF_ONE_JOB:
            raise
        return str(error)
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ServeError(
            f"FILE must be a JSON infer request; {str(path)!r} gives {error}. Correct it."
        ) from error
    if not isinstance(found, dict):
        raise ServeError(f"FILE must hold a JSON object; {str(path)!r} does not. Correct it.")
    return found


def _show(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        print_facts((name, value) for name, value in job.items() if value is not None)


def _end(
    client: "JobClient", job: dict[str, Any], *, as_json: bool, out: Path | None = None
) -> int:
    if job["state"] != "succeeded":
        _show(job, as_json=as_json)
        return FAILED
    if out is not None:
        say(f"result of {job['job']} in {client.save_result(job['job'], out)}")
        _show(job, as_json=as_json)
    else:
        say(f"job {job['job']} {job['state']}")
        click.echo(client.result(job["job"]))
    return 0
