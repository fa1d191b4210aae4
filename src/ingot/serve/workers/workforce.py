"""All runners of a server: worker processes and batching, ready before it listens."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ingot.core.errors import EngineError, ServeError
from ingot.runtime.joining import Joiner
from ingot.serve.batching import Batcher, Reason
from ingot.serve.metrics import Metrics
from ingot.serve.runner import ThreadRunner
from ingot.serve.state import Served
from ingot.serve.workers import worker
from ingot.serve.workers.nursery import Nursery, libraries_of
from ingot.serve.workers.pool import Pool
from ingot.serve.workers.wire import unpack

if TYPE_CHECKING:
    from ingot.serve.tracing import Tracer


class Workforce:
    """What runs the models of a server elsewhere than on its event loop.

    Args:
        served: What is served; each that asks for workers or for batching gets a runner.
        metrics: Where it is published how they are doing.
        tracer: Makes spans of what workers do; None makes none.

    Raises:
        ServeError: A model cannot run several requests in one call.
    """

    def __init__(
        self, served: Sequence[Served], metrics: Metrics, *, tracer: "Tracer | None" = None
    ) -> None:
        engines = {one.endpoint.version.config.engine for one in served if one.session is None}
        self._nursery = Nursery([worker.__name__, *libraries_of(engines)])
        self._metrics = metrics
        self._pools: list[tuple[Served, Pool]] = []
        self._batchers: list[tuple[Served, Batcher]] = []
        for one in served:
            if one.session is None:
                pool = Pool(one.endpoint, self._nursery)
                self._pools.append((one, pool))
                one.state.runner = pool if tracer is None else tracer.runner(pool)
                one.state.trouble = partial(getattr, pool, "trouble")
                self._publish(one, pool)
            if one.endpoint.batching is not None:
                batcher = self._batcher(one)
                self._batchers.append((one, batcher))
                one.state.runner = batcher

    async def start(self) -> None:
        """Start every worker and return once each has answered a real inference.

        Raises:
            ServeError: One cannot.
        """
        answers = await asyncio.gather(*(pool.start() for _, pool in self._pools))
        for (one, _), ready in zip(self._pools, answers, strict=True):
            one.state.sample = unpack(ready.feeds)
        for one, batcher in self._batchers:
            assert one.state.sample is not None
            try:
                await batcher.rehearse(one.state.sample)
            except EngineError as error:
                raise ServeError(
                    f"{one.endpoint.version.label} cannot be batched: {error}"
                ) from error
        for one, _ in self._pools:
            one.state.is_warm = True

    async def close(self) -> None:
        """End every worker."""
        for _, pool in self._pools:
            await pool.close()
        await asyncio.to_thread(self._nursery.close)

    def _batcher(self, one: Served) -> Batcher:
        endpoint, state = one.endpoint, one.state
        version, batching = endpoint.version, endpoint.batching
        assert batching is not None
        try:
            joiner = Joiner(endpoint.model.signature, version.config)
        except EngineError as error:
            raise ServeError(f"{version.label} cannot be batched: {error}") from error
        runner, slots = state.runner, version.config.streams * max(1, endpoint.workers)
        if one.session is not None:
            assert state.sample is not None
            runner = ThreadRunner(one.session, state.threads, state.sample)
        assert runner is not None
        return Batcher(runner, joiner, batching, slots=slots, record=self._recorder(one))

    def _recorder(self, one: Served) -> Callable[[int, Reason], None]:
        version = one.endpoint.version
        name, number = version.name, str(version.number)

        def record(rows: int, reason: Reason) -> None:
            self._metrics.count_batch(name, number, rows, reason=reason)

        return record

    def _publish(self, one: Served, pool: Pool) -> None:
        version = one.endpoint.version
        watch = self._metrics.series(version.name, str(version.number)).watch
        watch("ingot_workers_ready", "Workers that can answer.", lambda: pool.ready, kind="gauge")
        watch(
            "ingot_worker_restarts", "Workers started in place of one that ended.",
            lambda: pool.restarts, kind="counter",
        )  # fmt: skip
        watch(
            "ingot_requests_resent", "Calls that a dying worker left and another one got.",
            lambda: pool.resent, kind="counter",
        )  # fmt: skip
