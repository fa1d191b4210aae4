"""The autoscaling policy: pure, so that what runs live and what is simulated are one object."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from ingot.core.errors import ServeError
from ingot.core.units import show_number

Action = Literal["wake", "out", "in", "hold"]
_NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Seen:
    """What the policy is shown.

    Attributes:
        time_s: Now, on a clock that never runs backwards.
        backlog: Jobs that wait or are being processed.
        instances: Instances that run or are starting; those told to stop are not counted.
    """

    time_s: float
    backlog: int
    instances: int

    @property
    def per_instance(self) -> float:
        """Backlog per instance; infinite when there is a backlog and no instance."""
        if self.instances:
            return self.backlog / self.instances
        return math.inf if self.backlog else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers from one decision to the next.

    Attributes:
        out_s: When instances were last added.
        in_s: When instances were last taken away.
        needed_s: When all instances were last needed.
    """

    out_s: float = _NEVER
    in_s: float = _NEVER
    needed_s: float = _NEVER


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision, with its reason.

    Attributes:
        seen: What it was made on.
        action: Wake from zero, scale out, scale in, or hold.
        instances: How many there shall be.
        reason: Why, for people.
        memory: What to remember for the next decision.
    """

    seen: Seen
    action: Action
    instances: int
    reason: str
    memory: Memory


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """Target tracking on backlog per instance, with cool-downs, down to zero.

    The wanted number is the smallest that brings backlog per instance to `target`, within `min` and
    `max`. At zero the first job wakes an instance at once, and that starts no cool-down. After a
    scale-out the next waits `out_cooldown_s`. A scale-in waits until all instances have not been
    needed for `in_cooldown_s`, and as long after the last change in either direction; then it goes
    to the wanted number in one step.

    Defaults are those of the asynchronous endpoint that this one is modelled on.

    Attributes:
        min_instances: Never fewer.
        max_instances: Never more.
        target: Backlog per instance that is aimed at.
        out_cooldown_s: Seconds between a scale-out and the next.
        in_cooldown_s: Seconds before a scale-in.
        can_scale_in: False keeps whatever was started.

    References:
        Improve high-value research with Hugging Face and Amazon SageMaker asynchronous inference
        endpoints, AWS Machine Learning Blog, 2022: min 0, max 5, target 5, cool-downs 120 s.

    Examples:
        >>> policy = ScalingPolicy()
        >>> woken = policy.decide(Seen(0.0, backlog=1, instances=0), Memory())
        >>> woken.action, woken.instances
        ('wake', 1)
        >>> policy.decide(Seen(1.0, backlog=23, instances=1), woken.memory).instances
        5
    """

    min_instances: int = 0
    max_instances: int = 5
    target: float = 5.0
    out_cooldown_s: float = 120.0
    in_cooldown_s: float = 120.0
    can_scale_in: bool = True

    def __post_init__(self) -> None:
        """Refuse figures that no decision could be made with.

        Raises:
            ServeError: They contradict each other or are out of range.
        """
        if not 0 <= self.min_instances <= self.max_instances or self.max_instances < 1:
            raise ServeError(
                "Instances must be 0 <= min <= max and max >= 1; got "
                f"{self.min_instances} and {self.max_instances}. Correct one of them."
            )
        if not (0 < self.target < math.inf):
            raise ServeError(
                f"The target must be a positive backlog per instance; got {self.target}. "
                "Start with the number of calls an instance makes at once, or a few times that."
            )
        if not (0 <= self.out_cooldown_s < math.inf and 0 <= self.in_cooldown_s < math.inf):
            raise ServeError(
                "Cool-downs must be 0 s or longer; got "
                f"{self.out_cooldown_s} and {self.in_cooldown_s}. Correct them."
            )

    def wanted(self, backlog: int) -> int:
        """Return the smallest number of instances that meets the target, within the limits.

        Examples:
            >>> [ScalingPolicy().wanted(n) for n in (0, 1, 5, 6, 1000)]
            [0, 1, 1, 2, 5]
        """
        need = math.ceil(backlog / self.target)
        return max(self.min_instances, min(self.max_instances, need))

    def decide(self, seen: Seen, memory: Memory) -> Decision:
        """Return how many instances there shall be now, and why.

        Args:
            seen: What is.
            memory: What the decision before gave; a fresh one at the start.
        """
        wanted = self.wanted(seen.backlog)
        if wanted >= seen.instances:
            memory = replace(memory, needed_s=seen.time_s)
        if wanted > seen.instances:
            return self._more(seen, memory, wanted)
        if wanted < seen.instances:
            return self._fewer(seen, memory, wanted)
        if not seen.instances:
            return Decision(seen, "hold", 0, "no backlog and no instance", memory)
        about = f"backlog per instance {seen.per_instance:.3g} for a target of {self.target:g}"
        if seen.instances == self.max_instances and seen.per_instance > self.target:
            about += f", at the most of {self.max_instances}"
        return Decision(seen, "hold", seen.instances, about, memory)

    def _more(self, seen: Seen, memory: Memory, wanted: int) -> Decision:
        if seen.instances < self.min_instances:
            reason = f"at least {show_number(self.min_instances, 'instance')} shall run"
            return Decision(seen, "out", max(wanted, self.min_instances), reason, memory)
        if seen.instances == 0:
            reason = f"{show_number(seen.backlog, 'job')} and no instance"
            return Decision(seen, "wake", wanted, reason, memory)
        left = memory.out_s + self.out_cooldown_s - seen.time_s
        why = f"backlog per instance {seen.per_instance:.3g} above {self.target:g}"
        if left > 0:
            reason = f"{why}, {wanted} wanted; {left:.0f} s of the scale-out cool-down left"
            return Decision(seen, "hold", seen.instances, reason, memory)
        return Decision(seen, "out", wanted, why, replace(memory, out_s=seen.time_s))

    def _fewer(self, seen: Seen, memory: Memory, wanted: int) -> Decision:
        enough = show_number(wanted, "instance")
        why = f"a backlog of {show_number(seen.backlog, 'job')} needs {enough}"
        if seen.instances > self.max_instances:
            reason = f"at most {show_number(self.max_instances, 'instance')} shall run"
            return Decision(seen, "in", self.max_instances, reason, memory)
        if not self.can_scale_in:
            return Decision(seen, "hold", seen.instances, f"{why}; scale-in is off", memory)
        since = max(memory.out_s, memory.in_s, memory.needed_s)
        left = since + self.in_cooldown_s - seen.time_s
        if left > 0:
            reason = f"{why}; {left:.0f} s of the scale-in cool-down left"
            return Decision(seen, "hold", seen.instances, reason, memory)
        return Decision(seen, "in", wanted, why, replace(memory, in_s=seen.time_s))
