"""How jobs ended: one observation each, and their spans where requests are traced."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.core.errors import IngotError
from ingot.observe.observation import Observation
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.job import Job, JobState
from ingot.serve.jobs.origin import Origin

if TYPE_CHECKING:
    from ingot.observe.log import ObservationLog
    from ingot.serve.tracing import Tracer

log = logging.getLogger(__name__)

# Ends that no attempt put into words, as an HTTP answer would say them.
_STATUS = {JobState.CANCELLED: 499, JobState.EXPIRED: 504, JobState.DEAD: 500}


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended.

    Attributes:
        job: Its id.
        created: When it was accepted, UTC seconds since 1970.
        status: HTTP status that says how it ended.
        origin: As its store kept it.
        inputs_ref: Digest or place of its request.
        output_ref: Digest of its result.
        began: When its last attempt began; 0 if that is not known.
    """

    job: str
    created: float
    status: int
    origin: str = ""
    inputs_ref: str = ""
    output_ref: str = ""
    began: float = 0.0


class Ends:
    """Takes the ends of jobs of one endpoint. May be used by several threads.

    Log and collector are opened at the first end: the first job of an instance must not wait for
    them.

    Args:
        endpoint: Whose.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._is_open = False
        self._log: ObservationLog | None = None
        self._tracer: Tracer | None = None

    def note(self, end: End) -> None:
        """Take an end; never raises, for the job has ended whatever becomes of the record."""
        self._take(end, is_job=True)

    def note_unanswered(self, job: Job) -> None:
        """Take the end of a job that no attempt answered: cancelled, expired, or died with."""
        self.note(End(job.id, job.created, _STATUS[job.state], job.origin, job.input_uri))

    def note_refused(self, refused: End) -> None:
        """Take a request that was refused before it became a job: it leaves no spans of a job."""
        self._take(refused, is_job=False)

    def close(self) -> None:
        """Write what was taken."""
        with self._lock:
            if self._log is not None:
                self._log.close()
            if self._tracer is not None:
                self._tracer.close()
            self._is_open, self._log, self._tracer = True, None, None

    def _take(self, end: End, *, is_job: bool) -> None:
        try:
            with self._lock:
                self._open()
        except IngotError as error:
            log.error("the end of job %s is not recorded: %s", end.job, error)
            return
        origin, now = Origin.of(end.origin), time.time()
        if self._log is not None:
            self._log.record(self._observation(end, origin, max(0.0, now - end.created)))
        if self._tracer is not None and is_job:
            version = self._endpoint.version
            attributes = {"ingot.model": version.name, "ingot.version": version.digest,
                          "ingot.job": end.job, "ingot.arm": "main"}  # fmt: skip
            put, began = (int(seconds * 1e9) for seconds in (end.created, end.began))
            times = (put, began, max(int(now * 1e9), put))
            self._tracer.note_job(origin.traceparent, times, attributes, end.status)

    def _open(self) -> None:
        if self._is_open:
            return
        if self._endpoint.log is not None:
            from ingot.observe.log import ObservationLog

            self._log = ObservationLog(self._endpoint.log, rules=self._endpoint.log_rules)
        if self._endpoint.tracing is not None:
            from ingot.serve.tracing import Tracer

            self._tracer = Tracer(self._endpoint.tracing)
        self._is_open = True

    def _observation(self, end: End, origin: Origin, seconds: float) -> Observation:
        version = self._endpoint.version
        return Observation(
            request_id=end.job,
            time=end.created,
            endpoint=version.name,
            version=version.digest,
            unit_key=origin.unit_key,
            inputs_ref=end.inputs_ref,
            output_ref=end.output_ref,
            status=end.status,
            latency_ms=seconds * 1e3,
            client=origin.client,
            hour=int(end.created // 3600 % 24),
            episode_id=origin.episode_id,
            step=origin.step,
        )
