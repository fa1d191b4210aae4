"""The plan of an endpoint's traffic: which versions of its name answer, and which only watch."""

from dataclasses import dataclass
from pathlib import Path

from ingot.core.errors import ServeError
from ingot.serve.traffic.split import Split
from ingot.twin.canary import Canary


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of requests; its answers go to nobody.

    Attributes:
        version: Its number.
        share: Chance that a request which another version answers is copied.
        tolerance: An output without scores agrees if it differs by at most this share of the
            largest magnitude in the answer given.
        most_waiting: Copies that may wait for the version; more are dropped.

    Raises:
        ServeError: A figure is out of range.
    """

    version: int
    share: float = 1.0
    tolerance: float = 0.01
    most_waiting: int = 16

    def __post_init__(self) -> None:
        """Refuse what nothing could be compared with."""
        if not (0 < self.share <= 1 and self.tolerance >= 0 and self.most_waiting >= 1):
            raise ServeError(
                "A shadow must have 0 < share <= 1, tolerance >= 0 and most_waiting >= 1; got "
                f"{self.share}, {self.tolerance} and {self.most_waiting}. Correct them."
            )


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests for a name without a number are dealt among its versions.

    Attributes:
        split: Who answers, the canary left out; the endpoint's own version if None.
        shadow: Who gets copies.
        canary: Who gets more and more of the requests while its claims hold.
        record: SQLite file of every decision. A canary must have one: it is what keeps a version
            that was rolled back from coming back with a restart.
        seed: Of the draws for requests that name no unit; another one at each start if None.
    """

    split: Split | None = None
    shadow: Shadow | None = None
    canary: Canary | None = None
    record: Path | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse parts that contradict each other.

        Raises:
            ServeError: They do.
        """
        canary, shadow = self.canary, self.shadow
        if canary is not None and self.record is None:
            raise ServeError(
                "A canary must have a record, or a restart would forget that it was rolled back; "
                "got none. Give it a file to keep it in (record)."
            )
        if canary is None:
            return
        if self.split is not None and canary.version in dict(self.split.weights):
            raise ServeError(
                f"The canary must not be in the split beside it; version {canary.version} is. "
                "Leave it out there: its steps say what it gets."
            )
        is_watched = shadow is not None and shadow.version == canary.version
        if not is_watched and any(text.strip().startswith("agreement") for text in canary.require):
            raise ServeError(
                "A claim on agreement must have the canary as shadow, which compares its answers; "
                f"got {'no shadow' if shadow is None else f'version {shadow.version}'}. Make "
                f"version {canary.version} the shadow too (--shadow)."
            )
