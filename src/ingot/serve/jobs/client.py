"""A client of asynchronous endpoints, on the standard library alone."""

import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ingot.core.errors import ServeError

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ENDS = frozenset({"succeeded", "dead", "cancelled", "expired"})
_AGAIN_S = 0.5
_PAGE = 1000


# Any below is parsed JSON; what it holds is the endpoint's promise, see docs/how-to/async.md.
class RefusedError(ServeError):
    """A server refused; `status` is the HTTP status that says why."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class JobClient:
    """Jobs of one model on one server.

    Attributes:
        url: Address of the server, e.g. `http://127.0.0.1:8000`.
        name: Name of the model there.
        timeout_s: Seconds to wait for each step of an exchange.
        token: API key or token of the caller, for endpoints that ask who asks; never shown.
    """

    url: str
    name: str
    timeout_s: float = 30.0
    token: str = field(default="", repr=False)

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str = "") -> dict[str, Any]:
        """Put a job and return its status; it is durable when this returns.

        Args:
            request: An infer request, or `{"input_uri": ...}`; `ttl_s`, `timeout_s`, `notify` and
                `id` may stand beside.
            idempotency_key: Asking again with the same key gives the same job.

        Raises:
            ServeError: No answer, or the server refused; its own words are quoted.
        """
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return self._json("POST", "", body=json.dumps(request).encode(), headers=headers)

    def status(self, job: str) -> dict[str, Any]:
        """Return the status of a job."""
        return self._json("GET", f"/{quote(job, safe='')}")

    def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job that has not ended and return its status."""
        return self._json("DELETE", f"/{quote(job, safe='')}")

    def retry(self, job: str) -> dict[str, Any]:
        """Put a dead job back in the queue, with all its tries, and return its status.

        Raises:
            RefusedError: It is not dead (409), or the server refused for another reason.
        """
        return self._json("POST", f"/{quote(job, safe='')}/retry")

    def dead(self) -> list[str]:
        """Return the ids of all jobs that are dead, those put first before others."""
        found: list[str] = []
        after: str | None = None
        while True:
            page = self.jobs(state="dead", limit=_PAGE, after=after)
            found += [job["job"] for job in page["jobs"]]
            after = page["after"]
            if after is None:
                return found[::-1]

    def jobs(
        self, *, state: str | None = None, limit: int = 100, after: str | None = None
    ) -> dict[str, Any]:
        """Return the newest jobs, or those older than the job `after`, and counts by state."""
        query = {"limit": str(limit)} | ({"state": state} if state else {})
        query |= {"after": after} if after else {}
        return self._json("GET", "?" + urlencode(query))

    def decisions(self, *, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the newest scaling decisions with their reasons, in order of time."""
        found = self._json("GET", f"scaling?limit={limit}", under="")["decisions"]
        return list(found)

    def result(self, job: str) -> bytes:
        """Return the result of a job that succeeded."""
        with self._open("GET", f"/{quote(job, safe='')}/result") as answer:
            return bytes(answer.read())

    def save_result(self, job: str, path: Path) -> Path:
        """Write the result of a job to a file without holding it in memory."""
        with self._open("GET", f"/{quote(job, safe='')}/result") as answer, path.open("wb") as out:
            shutil.copyfileobj(answer, out)
        return path

    def wait(self, job: str, *, timeout_s: float = 3600.0) -> dict[str, Any]:
        """Follow a job to its end and return its last status.

        Raises:
            ServeError: It did not end in time, or the server refused.
        """
        until = time.monotonic() + timeout_s
        found = self.status(job)
        while found["state"] not in _ENDS:
            if time.monotonic() > until:
                raise ServeError(
                    f"Job {job} must end within {timeout_s:g} s; it is {found['state']}. "
                    "Wait longer, or look at the endpoint's scaling decisions."
                )
            for found in self._follow(job, until):
                if found["state"] in _ENDS:
                    return found
            time.sleep(_AGAIN_S)  # the stream broke off: the server stops, or starts again
            found = self.status(job)
        return found

    def _follow(self, job: str, until: float) -> Iterator[dict[str, Any]]:
        try:
            with self._open("GET", f"/{quote(job, safe='')}/events") as stream:
                for line in stream:
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
                    if time.monotonic() > until:
                        return
        except (OSError, http.client.HTTPException):
            return

    def _json(
        self, method: str, path: str, *, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, under: str = "jobs",
    ) -> dict[str, Any]:  # fmt: skip
        with self._open(method, path, body=body, headers=headers, under=under) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def _open(
        self, method: str, path: str, *, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, under: str = "jobs",
    ) -> "closing[http.client.HTTPResponse]":  # fmt: skip
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise ServeError(
                f"An endpoint's address must be http://HOST:PORT or https://...; got {self.url!r}. "
                "Copy it from what `ingot serve --async` printed."
            )
        address = f"{self.url.rstrip('/')}/v2/models/{quote(self.name, safe='')}/{under}{path}"
        sent = {"content-type": "application/json"} | dict(headers or {})
        sent |= {"authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(address, body, sent, method=method)  # noqa: S310 # checked above
        try:
            return closing(_OPENER.open(request, timeout=self.timeout_s))
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(
                    f"{address} answered {error.code}: {_words(error.read())}", status=error.code
                ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServeError(
                f"An endpoint must answer at {self.url}; got {error!r}. "
                "Start it with: ingot serve NAME@STAGE --async"
            ) from error


def _words(payload: bytes) -> str:
    try:
        return str(json.loads(payload)["detail"])
    except (ValueError, KeyError, TypeError):
        return payload[:200].decode(errors="replace")
