"""What a request is told when it is dealt to a version."""

from dataclasses import dataclass
from typing import Protocol

from ingot.observe.observation import Observation
from ingot.twin.tally import Tally

TICKET = "ingot.ticket"  # where the ASGI scope of a request has it


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and the answer it got, as bytes.

    Attributes:
        body: Of the request.
        length: Its header `Inference-Header-Content-Length`, if it has one.
        answer: The answer's body.
        json_bytes: Of an answer that has tensors after the JSON.
    """

    body: bytes
    length: str | None
    answer: bytes
    json_bytes: int | None


class Copier(Protocol):
    """Takes copies of requests that were answered; `ingot.serve.traffic.shadow.Copies` is one."""

    def copy(self, observation: Observation, exchange: Exchange) -> None:
        """Take one without waiting, or drop it."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """The arm of a request, and who wants to know what became of it.

    Attributes:
        arm: Number of the version that was drawn; `pinned` where the caller named the version,
            `main` where nothing is dealt.
        propensity: Probability with which that arm was drawn for this request.
        header: Goes into the answer.
        tally: Counts the request.
        copier: Gets a copy of it.
    """

    arm: str = "main"
    propensity: float = 1.0
    header: tuple[bytes, bytes] | None = None
    tally: Tally | None = None
    copier: Copier | None = None


MAIN = Ticket()
PINNED = Ticket("pinned", header=(b"ingot-arm", b"pinned"))
