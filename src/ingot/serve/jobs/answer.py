"""One attempt of one job: its request read, answered and written where nobody sees it yet."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ingot.core.digest import digest_bytes
from ingot.core.errors import EngineError, ServeError
from ingot.core.units import show_number
from ingot.runtime.engine import Session
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.job import Lease
from ingot.serve.jobs.places import Staged, open_input, stage
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.problems import RequestError, encode_problem
from ingot.serve.protocol import decode_request, encode_response

LINES = (".jsonl", ".ndjson")


class GivenUp(ServeError):
    """An attempt that was stopped from outside: cancelled, past its time, or its lease lost."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A result that is whole and not yet visible.

    Attributes:
        size_bytes: Its size.
        note: What it says about itself; empty for a single answer.
        inputs_ref: Digest of the request, or the place it was read from.
        output_ref: Digest of the result.
        publish: Makes it visible.
    """

    size_bytes: int
    note: str
    inputs_ref: str
    output_ref: str
    publish: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class Worker:
    """What answers jobs: a session and the limits it works under.

    Attributes:
        endpoint: What is served.
        session: Its open session.
        settings: Where to read and how much.
        clock: Seconds that never run backwards.
    """

    endpoint: Endpoint
    session: Session
    settings: AsyncSettings
    clock: Callable[[], float] = time.monotonic

    def answer(self, lease: Lease, stop: threading.Event) -> Answer:
        """Answer one job.

        Args:
            lease: What is asked.
            stop: Set when nobody wants the answer any more.

        Raises:
            RequestError: The request is wrong; asking again would not help.
            GivenUp: It was stopped, or took longer than it may.
            OSError: Its input or output cannot be reached now.
            EngineError: The engine failed.
        """
        limits = _Limits(stop, self.clock() + lease.timeout_s, self.clock)
        settings = self.settings
        durable = settings.durability == "FULL"
        with stage(lease, scratch=settings.staging, durable=durable) as staged:
            if lease.body is not None:
                inputs_ref, note = digest_bytes(lease.body), ""
                staged.write(self._infer(lease.body))
            else:
                inputs_ref = lease.input_uri
                with open_input(lease.input_uri, settings.roots) as source:
                    note = self._answer_file(lease, source, staged, limits)
            limits.check()
        return Answer(staged.size_bytes, note, inputs_ref, staged.digest, staged.publish)

    def _answer_file(
        self, lease: Lease, source: BinaryIO, staged: Staged, limits: "_Limits"
    ) -> str:
        if lease.input_uri.endswith(LINES):
            return self._answer_lines(source, staged, limits)
        limit = self.settings.max_json_bytes
        body = source.read(limit + 1)
        if len(body) > limit:
            raise RequestError(
                f"One request must be at most {limit:,} bytes; {lease.input_uri!r} is larger. "
                "Write one request per line and name the file .jsonl: lines are streamed.",
                status=413,
            )
        staged.write(self._infer(body))
        return ""

    def _answer_lines(self, source: BinaryIO, staged: Staged, limits: "_Limits") -> str:
        done = failed = 0
        for line in _lines(source, self.settings.max_line_bytes):
            limits.check()
            try:
                staged.write(self._infer(line) + b"\n")
            except (RequestError, EngineError) as error:  # one bad line must not cost the others
                failed += 1
                status = error.status if isinstance(error, RequestError) else 500
                staged.write(encode_problem(status, f"line {done + 1}: {error}") + b"\n")
            done += 1
        if not done:
            raise RequestError("A file of JSON lines must hold a request; it holds none. Fill it.")
        return f"{show_number(done, 'line')}, {failed} failed"

    def _infer(self, body: bytes) -> bytes:
        endpoint, version = self.endpoint, self.endpoint.version
        signature = endpoint.model.signature
        inference = decode_request(body, signature, finite_only=endpoint.finite_only)
        outputs = self.session.run(inference.feeds)
        return encode_response(outputs, inference, model=version.name, version=str(version.number))


@dataclass(frozen=True, slots=True)
class _Limits:
    stop: threading.Event
    until: float
    clock: Callable[[], float]

    def check(self) -> None:
        if self.stop.is_set():
            raise GivenUp("An attempt must be wanted; this one was cancelled or lost its lease.")
        if self.clock() > self.until:
            raise GivenUp(
                "An attempt must end within the job's timeout_s; it did not. Raise it, or ask less."
            )


def _lines(source: BinaryIO, limit: int) -> Iterator[bytes]:
    """Give the lines that hold something, none of them read beyond the limit."""
    while line := source.readline(limit + 1):
        if len(line) > limit:
            raise RequestError(
                f"A line must be at most {limit:,} bytes; one is longer. Put fewer examples on it.",
                status=413,
            )
        if line.strip():
            yield line
