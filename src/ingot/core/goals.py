"""What a way of running a model can be best at: one list for everything that chooses."""

from typing import Literal, get_args

Goal = Literal["latency", "throughput", "size", "memory", "cold_start", "energy"]
GOALS: tuple[Goal, ...] = get_args(Goal)
