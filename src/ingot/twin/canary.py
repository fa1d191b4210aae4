"""The rule by which a new version gets more of the traffic, or none: pure, like the autoscaler's.

What runs live and what is simulated are one object, driven by times and counts alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ingot.core.digest import Json
from ingot.core.errors import ServeError

if TYPE_CHECKING:
    from ingot.twin.conditions import Judgement
    from ingot.twin.tally import Seen

Action = Literal["next", "done", "stay", "roll back"]
State = Literal["running", "done", "rolled back"]
_FIRST_LOOK = 10
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Memory:
    """What a canary remembers from one check to the next.

    Attributes:
        state: Whether it still is one.
        step: Position in the steps.
        since_s: When the step began.
        looks: Looks taken at this step.
        looked_at: Requests at the last of them.
        was_ripe: Whether the step's least was over at the last of them.
    """

    state: State = "running"
    step: int = 0
    since_s: float = 0.0
    looks: int = 0
    looked_at: int = 0
    was_ripe: bool = False

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Memory":
        """Read the JSON form."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Decision:
    """One check of a canary.

    Attributes:
        action: Go to the next step, be done with the last, stay, or roll back.
        weight: Share of the requests that it shall have.
        reason: Why, for people.
        memory: What to remember for the next check.
        judgements: Each claim, if this check was a look.
    """

    action: Action
    weight: float
    reason: str
    memory: Memory
    judgements: "tuple[Judgement, ...]" = ()


@dataclass(frozen=True, slots=True)
class Canary:
    """A new version that gets more of the requests step by step, as long as its claims hold.

    At a look each claim is broken, held or undecided by its interval. One broken: roll back. All
    held and the step's least over: the next step. Otherwise it stays, at most `longest_s`, and then
    rolls back. Looks come when the version's requests have grown by half since the last one, when
    the step's least is over, and at its end; never because of what was counted.

    Looking often must not make a false alarm likely, so looks spend from `alpha`: each of the
    steps has an equal part, each claim an equal part of that, and the k-th look at a step takes
    1 / (k (k + 1)) of it; these parts sum to 1. By the union bound the chance that a version whose
    claims all hold is ever called broken is at most `alpha`, with any number of looks,
    if requests fail independently of each other.

    At a step of weight 1 there is no baseline, so claims about it are no longer judged.

    Attributes:
        version: Number of the new version.
        require: Claims; see `ingot.twin.conditions.read_condition`.
        steps: Shares of the requests, ascending.
        step_s: Least seconds at a step.
        step_requests: Least requests that the version answers at a step.
        longest_s: Most seconds at a step.
        alpha: Chance of rolling back a version that keeps its claims.

    Raises:
        ServeError: A figure is out of range.
        ClaimError: A claim cannot be read.

    References:
        Lan and DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70, 1983,
        for spending alpha over looks.

    Examples:
        >>> from ingot.twin.tally import Counts, Seen
        >>> canary = Canary(4, ("error_rate <= 0.01",), steps=(0.05, 1.0))
        >>> canary.decide(Seen(0.0, Counts(40, 30)), canary.start(0.0)).action
        'roll back'
    """

    version: int
    require: tuple[str, ...]
    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    step_s: float = 300.0
    step_requests: int = 100
    longest_s: float = 86_400.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what could not be decided by."""
        from ingot.twin.conditions import read_condition

        if not self.require:
            raise ServeError(
                "A canary must have a claim that could break; got none. Add for example "
                "'error_rate <= 0.01'."
            )
        rising = (0.0, *self.steps)
        if len(rising) < 2 or any(a >= b for a, b in zip(rising, self.steps, strict=False)):
            raise ServeError(
                f"Steps must be shares that rise from above 0; got {self.steps}. Try 0.01, 0.05, "
                "0.25, 1."
            )
        if self.steps[-1] > 1 or not 0 <= self.step_s < self.longest_s or not 0 < self.alpha < 1:
            raise ServeError(
                "A canary must have steps up to 1, 0 <= step_s < longest_s and 0 < alpha < 1; got "
                f"{self.steps[-1]}, {self.step_s}, {self.longest_s} and {self.alpha}. Correct them."
            )
        if self.step_requests < 1:
            raise ServeError(
                f"A step must take at least 1 request; got {self.step_requests}. Raise it."
            )
        for text in self.require:
            read_condition(text)

    def start(self, time_s: float) -> Memory:
        """Return the memory of a canary that begins now."""
        return Memory(since_s=time_s)

    def weight(self, memory: Memory) -> float:
        """Return the share that it shall have."""
        return 0.0 if memory.state == "rolled back" else self.steps[memory.step]

    def decide(self, seen: "Seen", memory: Memory) -> Decision:
        """Return what shall become of it now, and why.

        Args:
            seen: What has happened since the step began.
            memory: What the check before gave; `start` at the beginning.
        """
        if memory.state != "running":
            return Decision("stay", self.weight(memory), f"it is {memory.state}", memory)
        n, elapsed = seen.canary.requests, seen.time_s - memory.since_s
        is_ripe = n >= self.step_requests and elapsed >= self.step_s
        is_late = elapsed >= self.longest_s
        if not self._is_due(n, memory, is_ripe=is_ripe, is_late=is_late):
            return Decision("stay", self.weight(memory), "no look is due", memory)
        judgements = self._look(seen, memory.looks + 1)
        memory = replace(memory, looks=memory.looks + 1, looked_at=n, was_ripe=is_ripe)
        return self._conclude(judgements, memory, seen.time_s, is_ripe=is_ripe, is_late=is_late)

    def _is_due(self, n: int, memory: Memory, *, is_ripe: bool, is_late: bool) -> bool:
        enough = max(_FIRST_LOOK, math.ceil(_GROWTH * memory.looked_at))
        return is_late or n >= enough or (is_ripe and not memory.was_ripe)

    def _look(self, seen: "Seen", look: int) -> "tuple[Judgement, ...]":
        from ingot.twin.conditions import judge, read_condition

        spent = self.alpha / len(self.steps) / len(self.require) / (look * (look + 1))
        return tuple(judge(read_condition(text), seen, 1 - spent) for text in self.require)

    def _conclude(
        self,
        judgements: "tuple[Judgement, ...]",
        memory: Memory,
        now: float,
        *,
        is_ripe: bool,
        is_late: bool,
    ) -> Decision:
        words = "; ".join(str(judgement) for judgement in judgements)
        outcomes = {judgement.outcome for judgement in judgements}
        if "broken" in outcomes:
            gone = replace(memory, state="rolled back")
            return Decision("roll back", 0.0, words, gone, judgements)
        if is_ripe and "undecided" not in outcomes:
            return self._advance(words, memory, now, judgements)
        if is_late:
            gone = replace(memory, state="rolled back")
            reason = f"not decided within {self.longest_s:g} s: {words}"
            return Decision("roll back", 0.0, reason, gone, judgements)
        reason = f"step {memory.step + 1} of {len(self.steps)}: {words}"
        return Decision("stay", self.weight(memory), reason, memory, judgements)

    def _advance(
        self, words: str, memory: Memory, now: float, judgements: "tuple[Judgement, ...]"
    ) -> Decision:
        if memory.step + 1 == len(self.steps):
            done = replace(memory, state="done")
            return Decision("done", self.weight(done), words, done, judgements)
        ahead = Memory(step=memory.step + 1, since_s=now)
        return Decision("next", self.weight(ahead), words, ahead, judgements)
