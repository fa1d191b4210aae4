"""The noun Endpoint: a version, an address, and how it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingot.core.digest import digest_json
from ingot.models.model import Model
from ingot.registry.version import Version


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
    """

    version: Version
    model: Model
    host: str = "127.0.0.1"
    port: int = 8000
    log: Path | None = None
    drain_s: float = 10.0
    max_body_bytes: int = 64 * 1024 * 1024

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
