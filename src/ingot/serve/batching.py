"""Dynamic batching: requests that arrive together run as one call."""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from ingot.data.data import Array
from ingot.runtime.joining import Joiner
from ingot.serve.endpoint import Batching
from ingot.serve.problems import RequestError
from ingot.serve.rides import RIDES, Ride
from ingot.serve.runner import Runner

Reason = Literal["full", "waited"]
_ITS_OWN_FAULT = {422, 500}  # refusals that may be due to one request of a batch


@dataclass(slots=True, eq=False)
class _Entry:
    feeds: Mapping[str, Array]
    rows: int
    result: "asyncio.Future[dict[str, Array]]"
    rides: tuple[Ride, ...]


@dataclass(slots=True, eq=False)
class _Group:
    """Requests that may share a call; due once it is full or its first has waited long enough."""

    entries: list[_Entry] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    reason: Reason | None = None

    @property
    def rows(self) -> int:
        return sum(entry.rows for entry in self.entries)


class Batcher:
    """A runner in front of another: it joins requests and parts their answers.

    A group of requests runs when it is full or when its first has waited, and when the runner
    behind has a place free; until then more requests join it.

    Args:
        runner: What runs the calls.
        joiner: Says which requests may share a call.
        batching: How many rows, how long to wait.
        slots: Calls that the runner behind takes at a time.
        record: Told rows and reason of every call.
    """

    def __init__(
        self,
        runner: Runner,
        joiner: Joiner,
        batching: Batching,
        *,
        slots: int,
        record: Callable[[int, Reason], None],
    ) -> None:
        self._runner, self._joiner, self._slots = runner, joiner, slots
        self._most, self._wait_s = batching.max_rows, batching.max_wait_ms / 1e3
        self._record = record
        self._groups: dict[Hashable, _Group] = {}
        self._due: dict[Hashable, _Group] = {}  # in the order in which they became due
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> int:
        """How many processes can answer now."""
        return self._runner.ready

    async def rehearse(self, sample: Mapping[str, Array]) -> None:
        """Run one call that two requests share, so that a model that cannot is found now.

        Raises:
            EngineError: The outputs cannot be told apart by rows.
        """
        pair = [sample, sample]
        self._joiner.part(await self._runner.run(self._joiner.join(pair)), pair)

    async def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, as `Runner.run`."""
        loop = asyncio.get_running_loop()
        entry = _Entry(feeds, self._joiner.rows(feeds), loop.create_future(), RIDES.get())
        key = self._joiner.key(feeds)
        group = self._groups.setdefault(key, _Group())
        group.entries.append(entry)
        if group.rows >= self._most:
            self._make_due(key, "full")
        elif group.timer is None:
            group.timer = loop.call_later(self._wait_s, self._make_due, key, "waited")
        try:
            return await entry.result
        except asyncio.CancelledError:
            with suppress(ValueError):  # it runs already: its answer will find nobody
                group.entries.remove(entry)
            raise

    def _make_due(self, key: Hashable, reason: Reason) -> None:
        group = self._groups[key]
        if group.reason is None:
            group.reason = reason
            self._due[key] = group
        self._launch()

    def _launch(self) -> None:
        while self._due and len(self._calls) < self._slots:
            key, group = next(iter(self._due.items()))
            if group.entries:
                self._begin(self._take(group), group)
            if not group.entries:
                self._forget(key, group)

    def _take(self, group: _Group) -> list[_Entry]:
        count = self._joiner.choose([entry.rows for entry in group.entries], self._most)
        taken, group.entries = group.entries[:count], group.entries[count:]
        return taken

    def _begin(self, entries: list[_Entry], group: _Group) -> None:
        rows = sum(entry.rows for entry in entries)
        self._record(rows, "full" if rows >= self._most else group.reason or "waited")
        task = asyncio.get_running_loop().create_task(self._call(entries))
        self._calls.add(task)
        task.add_done_callback(self._end)

    def _forget(self, key: Hashable, group: _Group) -> None:
        if group.timer is not None:
            group.timer.cancel()
        del self._due[key], self._groups[key]

    def _end(self, task: "asyncio.Task[None]") -> None:
        self._calls.discard(task)
        self._launch()

    async def _call(self, entries: list[_Entry]) -> None:
        if len(entries) == 1:
            await self._alone(entries[0])
            return
        requests = [entry.feeds for entry in entries]
        RIDES.set(tuple(ride for entry in entries for ride in entry.rides))
        try:
            outputs = await self._runner.run(self._joiner.join(requests))
            parts = self._joiner.part(outputs, requests)
        except Exception as error:  # noqa: BLE001 # handed to whoever waits
            if _may_be_one(error):
                await asyncio.gather(*(self._alone(entry) for entry in entries))
                return
            for entry in entries:
                _fail(entry, error)
            return
        for entry, part in zip(entries, parts, strict=True):
            if not entry.result.done():
                entry.result.set_result(part)

    async def _alone(self, entry: _Entry) -> None:
        RIDES.set(entry.rides)
        try:
            outputs = await self._runner.run(entry.feeds)
        except Exception as error:  # noqa: BLE001 # handed to whoever waits
            _fail(entry, error)
            return
        if not entry.result.done():
            entry.result.set_result(outputs)


def _may_be_one(error: Exception) -> bool:
    if isinstance(error, RequestError):
        return error.status in _ITS_OWN_FAULT
    return True


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.result.done():
        entry.result.set_exception(error)
