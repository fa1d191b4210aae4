"""What a job is: asked for, leased, ended."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from ingot.core.errors import ServeError

MAX_INLINE_BYTES = 128_000  # what a request may carry itself; larger inputs are named by a URI
MAX_TIMEOUT_S = 3600.0


class StoreError(ServeError):
    """A job store cannot be opened, or cannot keep what it was given."""


class QuotaError(ServeError):
    """As many jobs wait as the store was told to accept."""


class JobState(StrEnum):
    """Where a job stands. The last four are ends; of them only the dead can be put back."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"  # the dead letter: refused, failed or lapsed too often; kept with its input
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # nobody could start it within its ttl

    @property
    def is_end(self) -> bool:
        """Whether the job has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a caller asks for.

    Attributes:
        id: Unique id of the job, made by whoever accepts it.
        endpoint: Name of the model that is to answer.
        output: Where the result will be, known from the first moment.
        body: The request itself, at most `MAX_INLINE_BYTES`; None where `input_uri` names it.
        input_uri: Where the request lies.
        idempotency_key: Two jobs of one endpoint with one key are one job; empty for none.
        caller_id: The caller's own name for it.
        ttl_s: Seconds it may wait to be started.
        timeout_s: Seconds that one attempt may take.
        notify: URL that is told about the end; empty for none.
        origin: Who put it and why, in the words of `ingot.serve.jobs.origin`; kept as it is.
    """

    id: str
    endpoint: str
    output: str
    body: bytes | None = None
    input_uri: str = ""
    idempotency_key: str = ""
    caller_id: str = ""
    ttl_s: float = 86_400.0
    timeout_s: float = 900.0
    notify: str = ""
    origin: str = ""

    @property
    def request(self) -> str:
        """Digest of what is asked, by which a second use of an idempotency key is judged."""
        return hashlib.sha256(self.input_uri.encode() + b"\0" + (self.body or b"")).hexdigest()


@dataclass(frozen=True, slots=True)
class Placed:
    """The answer to putting a job.

    Attributes:
        id: Id of the job that now stands for the request.
        is_new: Whether it was made now; False where its idempotency key was known.
        is_same: Whether the request is the one that the key was first used with.
    """

    id: str
    is_new: bool = True
    is_same: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its store knows it. Times are UTC seconds since 1970, for people.

    Attributes:
        id: Its id.
        endpoint: Name of the model.
        state: Where it stands.
        attempt: How often it was handed out; the fence of its lease.
        failures: How many attempts failed in words, since it was put or put back.
        lapses: How many since then ended without a word: a dead process, a lost lease.
        created: When it was accepted.
        started: When the latest attempt began; 0 before the first.
        ended: When it ended; 0 before.
        output: Where the result is, or will be.
        input_uri: Where the request lies; empty if it came inline.
        caller_id: The caller's own name for it.
        error: Why the latest attempt failed; empty if none did.
        result_bytes: Size of the result.
        note: What the result says about itself in a few words, e.g. `12 lines, 1 failed`. If it
            says nothing, of a job that was put back, why it had died.
        notice: Of its notification: empty (none asked), `pending`, `delivered` or `failed`.
        origin: Who put it and why.
    """

    id: str
    endpoint: str
    state: JobState
    attempt: int
    failures: int
    lapses: int
    created: float
    started: float
    ended: float
    output: str
    input_uri: str
    caller_id: str
    error: str
    result_bytes: int
    note: str
    notice: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt of a job, until it runs out or is extended.

    Attributes:
        job: Id of the job.
        owner: Who holds it: unique for every process that ever claims.
        attempt: Which attempt; with `owner` the fence that a late answer does not pass.
        output: Where the result goes.
        body: The request, or None where `input_uri` names it.
        input_uri: Where the request lies.
        timeout_s: Seconds that this attempt may take.
        created: When the job was accepted, UTC seconds since 1970.
        is_suspect: Whether it was held before by processes that died; it is then handed out alone.
        origin: Who put the job and why.
    """

    job: str
    owner: str
    attempt: int
    output: str
    body: bytes | None
    input_uri: str
    timeout_s: float
    created: float
    is_suspect: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """The end of a job, to be told to whoever asked.

    Attributes:
        job: Id of the job.
        url: Who is told.
        tries: How often it was tried, this time included.
        attempt: Attempts of the job when it ended; with `state` it tells one end of a job that was
            put back from its next.
        state: How it ended.
    """

    job: str
    url: str
    tries: int
    attempt: int
    state: JobState


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a job is tried again, and when it goes to the dead letter.

    A failure is an error in words. A lapse is an attempt that ended without one: its process died
    or its lease ran out. A job that lapsed `suspect_lapses` times is suspected of killing its
    instances and is handed out alone, so that it takes no innocent job with it; after `max_lapses`
    it is quarantined in the dead letter.

    Attributes:
        max_failures: Failures after which the job is dead.
        max_lapses: Lapses after which the job is dead.
        suspect_lapses: Lapses after which the job runs alone.
        base_s: Wait before the second attempt.
        factor: How much longer each further wait is.
        cap_s: Longest wait.
    """

    max_failures: int = 3
    max_lapses: int = 5
    suspect_lapses: int = 2
    base_s: float = 0.5
    factor: float = 2.0
    cap_s: float = 60.0

    def wait_s(self, job: str, tries: int) -> float:
        """Return the back-off after `tries` attempts that did not succeed.

        The wait grows geometrically and is spread by up to half of itself, so that jobs which
        failed together do not come back together; the spread depends on the id alone.

        Examples:
            >>> policy = RetryPolicy(base_s=1.0, factor=2.0, cap_s=60.0)
            >>> 2.0 <= policy.wait_s("a", 3) <= 4.0
            True
        """
        if tries < 1:
            return 0.0
        full = min(self.cap_s, self.base_s * self.factor ** min(tries - 1, 60))
        draw = int.from_bytes(hashlib.sha256(f"{job}/{tries}".encode()).digest()[:4], "big")
        return full * (0.5 + 0.5 * draw / 0xFFFFFFFF)
