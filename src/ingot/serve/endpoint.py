"""The noun Endpoint: a version, an address, and how it answers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingot.core.digest import digest_json
from ingot.core.errors import ServeError
from ingot.models.model import Model
from ingot.observe.rules import LogRules
from ingot.registry.version import Version
from ingot.serve.traffic.plan import Traffic


@dataclass(frozen=True, slots=True)
class Batching:
    """Requests that arrive together run as one call.

    Attributes:
        max_rows: Rows of the largest call.
        max_wait_ms: Milliseconds that the first request waits for others.
    """

    max_rows: int = 8
    max_wait_ms: float = 2.0


@dataclass(frozen=True, slots=True)
class Generation:
    """A language model that writes texts in the server's own process, many at once.

    Attributes:
        cache_tokens: Room for keys and values, in tokens of all texts together; native engine only.
        cache_bits: 32, or 8 for a quarter of the memory; native engine only.
        most_running: Texts that take part in a step at most.
        most_waiting: Texts under way at most, those that run included; more are refused with 429.
        step_tokens: Tokens of a step at most; 0 for what the engine likes best.
        end_tokens: Ids or names of the tokens that end a text; the model's own if empty.
    """

    cache_tokens: int = 4096
    cache_bits: int = 32
    most_running: int = 16
    most_waiting: int = 256
    step_tokens: int = 0
    end_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of an identity provider (OpenID Connect) that callers may show.

    Attributes:
        issuer: The provider, as its tokens name it in `iss`.
        audience: This service, as its tokens name it in `aud`.
        jwks: The provider's public keys: a file, or an https address.
    """

    issuer: str
    audience: str
    jwks: str


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests a caller may send.

    Attributes:
        per_s: Requests a second, in the long run.
        burst: Requests at once after a pause; those of one second, and at least one, if None.
    """

    per_s: float
    burst: float | None = None

    def __post_init__(self) -> None:
        """Refuse figures that limit nothing or everything.

        Raises:
            ServeError: One is.
        """
        if not (0 < self.per_s < math.inf and 1 <= self.depth < math.inf):
            raise ServeError(
                "A rate must be above 0 requests a second, and its burst at least 1; got "
                f"{self.per_s:g} and {self.burst}. Leave the rate out for no limit."
            )

    @property
    def depth(self) -> float:
        """The burst, or what stands for it."""
        return max(1.0, self.per_s) if self.burst is None else self.burst


@dataclass(frozen=True, slots=True)
class Access:
    """How callers prove who they are; without it everybody may ask everything.

    Attributes:
        keys: Store of API keys.
        tokens: Tokens of an identity provider.
    """

    keys: Path | None = None
    tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for encrypted connections.

    Attributes:
        certificate: Certificate chain, PEM.
        key: Its private key, PEM.
    """

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where traces of requests go.

    Attributes:
        url: Of an OpenTelemetry collector that takes OTLP over HTTP, e.g. `http://127.0.0.1:4318`;
            `/v1/traces` is added where it has no path.
        sample: Fraction of the traces that begin here; those of callers are as their callers say.
    """

    url: str
    sample: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be followed.

        Raises:
            ServeError: The address is none of HTTP, or the fraction is out of range.
        """
        if not self.url.startswith(("http://", "https://")) or not 0 <= self.sample <= 1:
            raise ServeError(
                "Traces must go to an http:// or https:// address, a fraction of 0 to 1 of them; "
                f"got {self.url!r} and {self.sample}. For a collector on this machine: "
                "http://127.0.0.1:4318."
            )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A released version at an address. Building it opens nothing; `run` does.

    Attributes:
        version: What is served.
        model: The files of that version.
        host: Address to listen on; loopback unless asked otherwise.
        port: Port, 0 picks a free one.
        log: SQLite file of the observation log.
        drain_s: Seconds that requests in flight get when the endpoint is told to stop.
        max_body_bytes: Larger request bodies are refused with 413.
        max_in_flight_bytes: Bodies above 64 KiB of all requests at the address that are read or
            answered take at most so much; more are refused with 503. An eighth of the memory if
            None.
        workers: Processes that run the model; 0 runs it in the server's own process.
        is_idempotent: Whether a request may be sent again when the worker that had it died.
        batching: How requests share calls; None runs each alone.
        generation: How the model writes texts, if that is what it is for; None answers inferences.
        timeout_s: Seconds in which a request is answered, or refused with 504; a worker that
            keeps one longer is replaced.
        load_timeout_s: Seconds in which a worker or instance answers its first inference; one that
            does not is ended and started again, ever more slowly.
        read_timeout_s: Seconds in which a caller sends a whole request, and reads an answer.
        max_waiting: Requests that are answered or wait at a time; more are refused with 429.
        access: Who may ask; None lets everybody.
        rate: How often each caller may ask: each key or token, or each address without them. None
            sets no limit; a key may have a rate of its own.
        grpc_port: Port that speaks gRPC beside it, 0 picks a free one; None speaks none.
        tls: Files for encrypted connections; None speaks plain HTTP.
        traffic: How requests for its name are dealt among the versions of that name; None gives
            them all to this one.
        console: Whether web pages under `/console` show how it is doing.
        beside: More versions at the same address; what is about the address is taken from this one.
        log_rules: What the observation log keeps; everything, for ever, if not given.
        tracing: Where traces go; None makes none.
        finite_only: Whether requests that hold NaN or an infinity are refused with 400, and
            answers that do with 500; a signature cannot say that a model has no use for them.
    """

    version: Version
    model: Model
    host: str = "127.0.0.1"
    port: int = 8000
    log: Path | None = None
    drain_s: float = 10.0
    max_body_bytes: int = 64 * 1024 * 1024
    max_in_flight_bytes: int | None = None
    workers: int = 0
    is_idempotent: bool = True
    batching: Batching | None = None
    generation: Generation | None = None
    timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    read_timeout_s: float = 30.0
    max_waiting: int = 512
    access: Access | None = None
    rate: Rate | None = None
    tls: Tls | None = None
    grpc_port: int | None = None
    traffic: Traffic | None = None
    console: bool = False
    beside: tuple["Endpoint", ...] = ()
    log_rules: LogRules | None = None
    tracing: Tracing | None = None
    finite_only: bool = False

    @property
    def digest(self) -> str:
        """Equal endpoints have equal digests."""
        return digest_json({"version": self.version.digest, "host": self.host, "port": self.port})

    def run(self, *, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then finish what is in flight.

        Args:
            on_ready: Told the URL once requests are answered; with port 0 this is how it is learnt.

        Raises:
            MissingExtraError: The extra `serve` is not installed.
            ServeError: The address is taken, or the model does not answer.
            EngineError: No session can be opened.
        """
        from ingot.serve.server import run

        run(self, on_ready=on_ready)
