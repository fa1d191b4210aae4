"""Parts answered by actors of Ray: on this machine, or on every machine of a cluster."""

import logging
from collections.abc import Iterator
from typing import Any

from ingot.core.extras import need
from ingot.serve.batch.pool import Hand, Opener, answer_by
from ingot.serve.batch.work import Done, Part, Work, Worker
from ingot.serve.ray_start import join_ray

log = logging.getLogger(__name__)


def answer_on_ray(
    parts: Iterator[Part], work: Work, processes: int, *, opener: Opener = Worker
) -> Iterator[Done]:
    """Answer parts by actors of Ray, in whatever order they finish.

    What dies and what fails is treated as in `answer_in_processes`. Where `RAY_ADDRESS` names a
    cluster, its machines must see model and output under the same paths.

    Args:
        parts: Taken one at a time, when an actor is free.
        work: What every actor opens first.
        processes: How many actors.
        opener: Makes the worker in its actor; importable by name there.

    Raises:
        MissingExtraError: The extra `ray` is not installed.
        ServeError: Every actor that was given some part died.
        IngotError: What a worker raised.
    """
    cpus = max(1, work.config.threads)
    ray = join_ray(processes * cpus)
    try:
        yield from answer_by(_Actors(ray, work, opener, cpus), parts, processes)
    finally:
        ray.shutdown()


class _Actors:
    # Any: ray is untyped here
    def __init__(self, ray: Any, work: Work, opener: Opener, cpus: int) -> None:
        self._ray, self._work, self._opener = ray, work, opener
        self._kind = ray.remote(num_cpus=cpus, max_restarts=0)(Hand)
        self._died = need("ray.exceptions", extra="ray", what="A batch on Ray").RayActorError
        self._asked: dict[Any, Any] = {}

    def start(self) -> Any:
        return self._kind.remote(self._work, self._opener)

    def give(self, actor: Any, part: Part) -> None:
        self._asked[actor] = actor.answer.remote(part)

    def ready(self, actors: list[Any]) -> list[Any]:
        answers = {self._asked[actor]: actor for actor in actors}
        found, _ = self._ray.wait(list(answers), num_returns=1)
        return [answers[one] for one in found]

    def take(self, actor: Any) -> object:
        try:
            return self._ray.get(self._asked.pop(actor))
        except self._died as error:
            log.warning("an actor died (%s)", type(error).__name__)
            return None

    def end(self, actors: list[Any]) -> None:
        for actor in actors:
            self._ray.kill(actor)
