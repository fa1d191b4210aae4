"""Refused requests in an observation log: a flood of them leaves few rows, each with its weight."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ingot.observe.observation import Observation

_GONE = 499  # the caller hung up on work that was done for it
_WINDOW_S = 1.0


@dataclass(slots=True)
class _Flow:
    """Refusals for one reason: when this second began, how many it had, how many the one before."""

    began: float
    count: int = 0
    before: int = 0


class Thinning:
    """Keeps about so many refusals of each reason a second. May be used by several threads.

    The k-th refusal of a second, after n in the second before, is kept with the probability
    p = min(1, most / max(k, n)), drawn by itself. p depends on what came, never on what was drawn,
    so weights of 1 / p make totals unbiased (see `ingot.observe.estimate`). A steady flood leaves
    `most` rows a second, the first second of one `most` (1 + ln(k / most)).

    Args:
        most: Rows a second for each endpoint, arm and status.
        rng: Where chance comes from.
        clock: Seconds that never run backwards.

    Attributes:
        left_out: Observations that were not kept.
    """

    def __init__(
        self,
        most: float,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.left_out = 0
        self._most, self._clock, self._lock = most, clock, threading.Lock()
        self._rng = rng or random.Random()  # noqa: S311 # chance for a study, not a secret
        self._flows: dict[tuple[str, str, int], _Flow] = {}

    def pass_on(self, observation: Observation) -> Observation | None:
        """Return what is kept of an observation, with its `inclusion`; None if it is left out.

        Args:
            observation: Any; one whose request was not refused is kept as it is.
        """
        if not is_refusal(observation.status):
            return observation
        with self._lock:
            share = self._share((observation.endpoint, observation.arm, observation.status))
            if share == 1:
                return observation
            if self._rng.random() >= share:
                self.left_out += 1
                return None
        return replace(observation, inclusion=share)

    def _share(self, reason: tuple[str, str, int]) -> float:
        now = self._clock()
        flow = self._flows.setdefault(reason, _Flow(now))
        age_s = now - flow.began
        if age_s >= _WINDOW_S:
            flow.before = flow.count if age_s < 2 * _WINDOW_S else 0
            flow.began, flow.count = now, 0
        flow.count += 1
        return min(1.0, self._most / max(flow.count, flow.before))


def is_refusal(status: int) -> bool:
    """Say whether a status tells a caller that nothing was computed for it: 4xx, or 503.

    Examples:
        >>> [is_refusal(status) for status in (200, 401, 429, 499, 500, 503)]
        [False, True, True, False, False, True]
    """
    return (400 <= status < 500 and status != _GONE) or status == 503
