"""What a canary is judged on."""

from dataclasses import dataclass

from ingot.serve.traffic.tally import Counts


@dataclass(frozen=True, slots=True)
class Seen:
    """What has happened since the step began.

    Attributes:
        time_s: Now, UTC seconds since 1970.
        canary: What the new version answered.
        baseline: What the main version beside it answered; None where it answers nothing any more.
        compared: Copies that the new version answered as a shadow of another.
        agreed: Those of them with the other's answer.
    """

    time_s: float
    canary: Counts
    baseline: Counts | None = None
    compared: int = 0
    agreed: int = 0
