"""Everything that a start does short of listening, done and undone: `ingot serve --dry-run`."""

import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ingot.core.errors import ServeError
from ingot.serve.endpoint import Endpoint
from ingot.serve.running import need_server
from ingot.serve.server import check_endpoints

if TYPE_CHECKING:
    from ingot.serve.jobs.settings import AsyncSettings

_SQLITE = b"SQLite format 3\0"


def rehearse(endpoint: Endpoint, jobs: "AsyncSettings | None" = None) -> None:
    """Open what an endpoint needs, let every model answer once, and close it all again.

    Models run in this process, whatever the workers. No port is taken, and nothing is written to
    the log, the record of traffic or the job store: it is checked that they can lie where they
    shall.

    Args:
        endpoint: What would be served.
        jobs: How, if it would take jobs.

    Raises:
        MissingExtraError: An extra that is asked for is not installed.
        ServeError: A setting cannot be served, or a model does not answer.
        StoreError: The job store cannot be where it shall.
        EngineError: No session can be opened.
    """
    need_server()
    from ingot.serve.assembly import assemble
    from ingot.serve.web import Server

    every = (endpoint, *endpoint.beside)
    check_endpoints(every)
    if jobs is None:
        records = (one.traffic.record for one in every if one.traffic is not None)
        for path in (endpoint.log, *records):
            _check_file(path)
    else:
        _check_jobs(jobs)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        first, *others = (_apart(one, Path(scratch)) for one in every)
        parts = assemble(replace(first, beside=tuple(others)), stack)
        Server(parts.app, endpoint, parts.workforce)  # it listens when it is run


def _apart(endpoint: Endpoint, scratch: Path) -> Endpoint:
    """Return an endpoint that runs its model here and keeps its records elsewhere."""
    traffic = endpoint.traffic
    if traffic is not None:
        traffic = replace(traffic, record=scratch / "traffic.sqlite")
    log = None if endpoint.log is None else scratch / "observations.sqlite"
    return replace(endpoint, workers=0, log=log, traffic=traffic)


def _check_jobs(settings: "AsyncSettings") -> None:
    from ingot.serve.jobs.server import check_places

    check_places(settings)
    _check_file(settings.folder / "jobs.sqlite")
    if settings.database:
        from ingot.serve.jobs.postgres_store import check_server

        check_server(settings.database)


def _check_file(path: Path | None) -> None:
    if path is None:
        return
    there = next(parent for parent in (*path.absolute().parents, path) if parent.exists())
    is_place = there.is_dir() and os.access(there, os.W_OK) and not path.is_dir()
    if is_place and path.is_file():
        with path.open("rb") as stream:
            is_place = stream.read(len(_SQLITE)) in {b"", _SQLITE}
    if not is_place:
        raise ServeError(
            f"A record must be a SQLite file, or a new one in a folder that may be written; got "
            f"{str(path)!r}. Name another place."
        )
