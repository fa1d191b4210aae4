"""The noun Endpoint: a version, an address, and how it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingot.core.digest import digest_json
from ingot.models.model import Model
from ingot.registry.version import Version


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
        workers: Processes that run the model; 0 runs it in the server's own process.
        is_idempotent: Whether a request may be sent again when the worker that had it died.
        batching: How requests share calls; None runs each alone.
        timeout_s: Seconds in which a request is answered, or refused with 504; a worker that
            keeps one longer is replaced.
        read_timeout_s: Seconds in which a caller sends a whole request, and reads an answer.
        max_waiting: Requests that are answered or wait at a time; more are refused with 429.
        access: Who may ask; None lets everybody.
        grpc_port: Port that speaks gRPC beside it, 0 picks a free one; None speaks none.
        tls: Files for encrypted connections; None speaks plain HTTP.
        console: Whether web pages under `/console` show how it is doing.
        beside: More versions at the same address; what is about the address is taken from this one.
    """

    version: Version
    model: Model
    host: str = "127.0.0.1"
    port: int = 8000
    log: Path | None = None
    drain_s: float = 10.0
    max_body_bytes: int = 64 * 1024 * 1024
    workers: int = 0
    is_idempotent: bool = True
    batching: Batching | None = None
    timeout_s: float = 60.0
    read_timeout_s: float = 30.0
    max_waiting: int = 512
    access: Access | None = None
    tls: Tls | None = None
    grpc_port: int | None = None
    console: bool = False
    beside: tuple["Endpoint", ...] = ()

    @property
    def digest(self) -> str:
        """Equal endpoints have equal digests."""
        return digest_json({"version": self.version.digest, "host": self.host, "port": self.port})

    def run(self, *, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in flight.

        Args:
            on_ready: Told the URL once requests are answered; with port 0 this is how it is learnt.

        Raises:
            MissingExtraError: The extra `serve` is not installed.
            ServeError: The address is taken, or the model does not answer.
            EngineError: No session can be opened.
        """
        from ingot.serve.server import run

        run(self, on_ready=on_ready)
