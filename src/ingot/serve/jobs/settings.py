"""How an asynchronous endpoint is run: where its files are, what it may read, when it scales."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ingot.core.errors import ServeError
from ingot.runtime.engine import Session
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.job import MAX_TIMEOUT_S, Job, RetryPolicy
from ingot.serve.jobs.places import check_root
from ingot.serve.jobs.sqlite_store import Durability, SqliteJobStore
from ingot.serve.jobs.store import JobStore
from ingot.twin.policy import ScalingPolicy

_POSTGRES = re.compile(r"postgres(ql)?://|\w+ *=")  # the two forms that libpq takes


def open_endpoint(endpoint: Endpoint) -> Session:
    """Open the session of an endpoint, as its version says."""
    from ingot.runtime.engines import open_session

    return open_session(endpoint.model, endpoint.version.config)


@dataclass(frozen=True, slots=True)
class AsyncSettings:
    """Everything about an asynchronous endpoint but what it serves.

    Attributes:
        folder: Job store, scaling decisions, results and the webhook key are here; a local disk.
        policy: When it scales.
        concurrency: Jobs that an instance runs at once.
        database: `postgresql://...` for a store that servers on several machines share, which then
            need `output` on an object store; empty for a file in `folder`.
        durability: What an accepted job survives; see `SqliteJobStore`. PostgreSQL is always FULL.
        retry: When jobs are tried again.
        roots: Folders and prefixes that inputs named by a URI must lie in; none if empty.
        output: Folder or prefix of results; `folder`/results if empty.
        lease_s: Seconds after which a silent instance loses its jobs.
        max_queued: More jobs than this may not wait.
        retention_s: Seconds that ended jobs and their results are kept.
        max_result_bytes: Most bytes of results; beyond it the oldest go first.
        min_free_bytes: With less room than this on the disk of the jobs or of their results, none
            is accepted, so that those that are can end.
        max_json_bytes: Largest input by URI that is read whole; larger ones must be JSON lines.
        max_line_bytes: Longest line of JSON lines.
        notify_networks: Names and networks (CIDR) beyond the public ones that may be notified.
        open_session: Opens the model in an instance; a function of a module, which instances find
            imported. It must not be the script that is run, which instances do not run again.
    """

    folder: Path
    policy: ScalingPolicy = field(default_factory=ScalingPolicy)
    concurrency: int = 2
    database: str = ""
    durability: Durability = "NORMAL"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    roots: tuple[str, ...] = ()
    output: str = ""
    lease_s: float = 10.0
    max_queued: int = 100_000
    retention_s: float = 3 * 86_400.0
    max_result_bytes: int = 10 * 1024**3
    min_free_bytes: int = 16 * 1024**2
    max_json_bytes: int = 64 * 1024**2
    max_line_bytes: int = 4 * 1024**2
    notify_networks: tuple[str, ...] = ()
    open_session: Callable[[Endpoint], Session] = open_endpoint

    def __post_init__(self) -> None:
        """Refuse figures that cannot work; roots become comparable.

        Raises:
            ServeError: A figure is out of range, a root of no kind that jobs can use, or
                `open_session` cannot be found by its name.
        """
        if self.opener_module == "__main__":
            raise ServeError(
                "open_session must be a function of a module; got one of the script that is run, "
                "which instances do not run again. Move it to a file of its own and import it."
            )
        if self.concurrency < 1 or not 0.2 <= self.lease_s <= MAX_TIMEOUT_S:
            raise ServeError(
                "An instance must run at least 1 job at once under leases of 0.2 to 3600 s; got "
                f"{self.concurrency} and {self.lease_s}. Leave them out for values that fit."
            )
        if self.database and not _POSTGRES.match(self.database):
            # without what may be a password in it
            kind = self.database.partition("://")[0]
            raise ServeError(
                f"The database must be postgresql://HOST/NAME; got one of {kind[:20]!r}. Leave it "
                "out for a file on this machine."
            )
        object.__setattr__(self, "roots", tuple(check_root(root) for root in self.roots))
        output = check_root(self.output or str(self.folder.absolute() / "results"))
        object.__setattr__(self, "output", output)

    @property
    def opener_module(self) -> str:
        """Name of the module that `open_session` is of; it may be wrapped in a partial."""
        opener = self.open_session
        found: str = getattr(getattr(opener, "func", opener), "__module__", __name__)
        return found

    @property
    def staging(self) -> Path:
        """Where results wait for their upload to an object store."""
        return self.folder / "staging"

    @property
    def places(self) -> tuple[Path, ...]:
        """Local folders that jobs fill: their own, and that of results where it is local."""
        return (self.folder,) if "://" in self.output else (self.folder, Path(self.output))

    def open_store(
        self, *, is_first: bool, on_end: Callable[[Job], None] | None = None
    ) -> JobStore:
        """Open the job store.

        Args:
            is_first: Whether to judge disk and file before.
            on_end: Told of jobs whose end no attempt put into words.
        """
        if self.database:
            from ingot.serve.jobs.postgres_store import PostgresJobStore

            return PostgresJobStore(
                self.database, retry=self.retry, max_queued=self.max_queued, on_end=on_end
            )
        return SqliteJobStore(
            self.folder / "jobs.sqlite",
            durability=self.durability,
            retry=self.retry,
            max_queued=self.max_queued,
            is_first=is_first,
            on_end=on_end,
        )
