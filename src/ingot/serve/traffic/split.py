"""Which version answers a request, drawn at random and, for a unit, always the same."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from ingot.core.errors import ServeError
from ingot.core.names import suggest

_STEPS = 2.0**64


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the requests that versions of one name answer.

    A unit (user, robot, session) is dealt by weighted rendezvous: each version with weight w gets
    the waiting time -ln(u) / w, where u in (0, 1) is a hash of salt, version and unit, and the
    shortest wins. So version i wins with probability w_i, equal salt and weights deal alike
    in every process, and raising one weight (the others in proportion) moves units only into it.

    Attributes:
        weights: Version number and share of each version, all shares together 1.
        salt: Another salt deals units anew, independently.

    Raises:
        ServeError: The shares do not make a whole, or a version is there twice.

    References:
        Thaler and Ravishankar, Using name-based mappings to increase hit rates, IEEE/ACM
        Transactions on Networking 6, 1998. Schindelhauer and Schomaker, Weighted distributed hash
        tables, SPAA 2005, for the weights.

    Examples:
        >>> split = Split(((3, 0.9), (2, 0.1)))
        >>> split.arm("robot-7") == split.arm("robot-7")
        True
        >>> split.raised(4, 0.5).weights
        ((3, 0.45), (2, 0.05), (4, 0.5))
    """

    weights: tuple[tuple[int, float], ...]
    salt: str = "ingot"

    def __post_init__(self) -> None:
        """Refuse what cannot be dealt by."""
        numbers = [number for number, _ in self.weights]
        total = math.fsum(weight for _, weight in self.weights)
        is_share = all(0 <= weight <= 1 for _, weight in self.weights)
        if not is_share or abs(total - 1) > 1e-9 or len(set(numbers)) < len(numbers):
            raise ServeError(
                "Weights must be shares from 0 to 1 that sum to 1, one per version; got "
                f"{dict(self.weights)}, which sum to {total:g}. Correct them."
            )

    @property
    def numbers(self) -> tuple[int, ...]:
        """Versions that are dealt something."""
        return tuple(number for number, weight in self.weights if weight > 0)

    @property
    def main(self) -> int:
        """The version with the largest share, the first of them."""
        return max(self.weights, key=lambda pair: pair[1])[0]

    def weight(self, number: int) -> float:
        """Return the share of a version, 0 if it has none."""
        return dict(self.weights).get(number, 0.0)

    def raised(self, number: int, weight: float) -> "Split":
        """Return the split in which a version has a given share and the others share the rest.

        The others keep their proportions. With no other there, it keeps everything.
        """
        others = [(n, w) for n, w in self.weights if n != number]
        rest = math.fsum(w for _, w in others)
        if rest == 0:
            return Split(((number, 1.0),), self.salt)
        scaled = tuple((n, w / rest * (1 - weight)) for n, w in others)
        return Split((*scaled, (number, weight)), self.salt)

    def arm(self, unit: str) -> int:
        """Return the version that answers a unit."""
        best, shortest = self.weights[0][0], math.inf
        for number, weight in self.weights:
            if weight <= 0:
                continue
            text = f"{self.salt}:{number}:{unit}".encode()
            u = (int.from_bytes(blake2b(text, digest_size=8).digest(), "big") + 0.5) / _STEPS
            wait = -math.log(u) / weight
            if wait < shortest:
                best, shortest = number, wait
        return best

    def draw(self, rng: random.Random) -> int:
        """Return the version that answers a request of nobody in particular.

        Args:
            rng: Where chance comes from.
        """
        point, last = rng.random(), self.main
        for number, weight in self.weights:
            if weight > 0:
                last, point = number, point - weight
                if point < 0:
                    break
        return last


def shares(percent: Mapping[int, float], salt: str = "ingot") -> Split:
    """Return the split of shares in per cent.

    Raises:
        ServeError: They do not sum to 100.
    """
    total = math.fsum(percent.values())
    if abs(total - 100) > 1e-6:
        raise ServeError(
            f"Shares must be per cents that sum to 100; got {dict(percent)}, which sum to "
            f"{total:g}. Correct them."
        )
    return Split(tuple((number, share / total) for number, share in percent.items()), salt)


def check_served(numbers: Mapping[int, object] | set[int], served: set[int], name: str) -> None:
    """Refuse versions that are not served.

    Raises:
        ServeError: One is not.
    """
    for number in numbers:
        if number not in served:
            raise ServeError(
                f"Version {number} of {name!r} must be served to be dealt requests; it is not. "
                + suggest(str(number), map(str, served))
            )
