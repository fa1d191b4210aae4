"""Deals requests to versions, and takes down what became of them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingot.serve.routing import Receive, Route, Send
from ingot.serve.traffic.split import Split
from ingot.serve.traffic.ticket import TICKET, Copier, Ticket
from ingot.twin.tally import Tally

_UNIT = b"ingot-unit"


@dataclass(frozen=True, slots=True)
class Hand:
    """What a request that is dealt to a version gets.

    Attributes:
        plain: Its ticket.
        copied: The ticket of one that is copied to the shadow.
    """

    plain: Ticket
    copied: Ticket


class Table:
    """A split with a ticket for each version. Another split is another table.

    Args:
        split: Who gets what.
        copier: The shadow, if there is one.
        shadow: Its version, which gets no copies of its own requests.
        share: Of the requests that are copied.
    """

    def __init__(
        self, split: Split, copier: Copier | None = None, *, shadow: int = 0, share: float = 0.0
    ) -> None:
        self.split, self._share = split, share
        self.tallies = {number: Tally() for number in split.numbers}
        self._hands = {
            number: self._hand(number, None if number == shadow else copier)
            for number in split.numbers
        }

    def _hand(self, number: int, copier: Copier | None) -> Hand:
        arm = str(number)
        plain = Ticket(
            arm, self.split.weight(number), (b"ingot-arm", arm.encode()), self.tallies[number]
        )
        copied = Ticket(plain.arm, plain.propensity, plain.header, plain.tally, copier)
        return Hand(plain, copied)

    def deal(self, unit: str, rng: random.Random) -> tuple[int, Ticket]:
        """Return the version that answers a request, and its ticket.

        Args:
            unit: Who is randomized; empty if nobody is named, which draws each request anew.
            rng: Where chance comes from.
        """
        number = self.split.arm(unit) if unit else self.split.draw(rng)
        hand = self._hands[number]
        is_copied = self._share > 0 and rng.random() < self._share
        return number, hand.copied if is_copied else hand.plain


class Dealer:
    """ASGI application for the path of a name without a number.

    Args:
        table: What is dealt by, until another one is put.
        routes: What answers for each version of the name.
        rng: Where chance comes from.

    Attributes:
        table: What is dealt by; it may be replaced between two requests.
    """

    def __init__(self, table: Table, routes: Mapping[int, Route], rng: random.Random) -> None:
        self.table, self._routes, self._rng = table, routes, rng

    # Any: an ASGI scope is an open mapping
    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Deal one request and let its version answer it."""
        unit = b""
        for name, value in scope["headers"]:
            if name == _UNIT:
                unit = value  # the last of several, as the version reads it
        number, scope[TICKET] = self.table.deal(unit.decode("latin-1"), self._rng)
        await self._routes[number](scope, receive, send)
