"""Who put a job, and on whose behalf: kept with it until its end is observed."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ingot.serve.labels import KEY, bad_key, read_step

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context, level 1


@dataclass(frozen=True, slots=True)
class Origin:
    """What the observation and the trace of a job need to know of its request.

    Attributes:
        unit_key: Who is randomized in an experiment.
        episode_id: Sequence that the job belongs to.
        step: Position in that sequence.
        client: Name of the key or token that put it.
        traceparent: What its spans belong to.
    """

    unit_key: str = ""
    episode_id: str = ""
    step: int = 0
    client: str = ""
    traceparent: str = ""

    def to_text(self) -> str:
        """Return the form that job stores keep; empty if nothing is known."""
        known = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(known, sort_keys=True) if known else ""

    @classmethod
    def of(cls, text: str) -> "Origin":
        """Return what a job store kept."""
        return cls(**json.loads(text)) if text else cls()


def read_origin(headers: Mapping[str, str], client: str) -> Origin:
    """Return the origin of a request.

    Args:
        headers: Of the request.
        client: Who has proved to send it; empty if nobody is asked.

    Raises:
        RequestError: A header is not what it must be. A `traceparent` is then left out instead, as
            its specification asks.
    """
    for header in ("ingot-unit", "ingot-episode"):
        value = headers.get(header, "")
        if value and not KEY.fullmatch(value):
            raise bad_key(header, value)
    parent = headers.get("traceparent", "")
    return Origin(
        headers.get("ingot-unit", ""),
        headers.get("ingot-episode", ""),
        read_step(headers.get("ingot-step", "0")),
        client,
        parent if _TRACEPARENT.fullmatch(parent) else "",
    )
