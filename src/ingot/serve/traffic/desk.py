"""The traffic of one name at work: dealt, judged, decided, recorded."""

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ingot.core.digest import Json, digest_json
from ingot.core.errors import ServeError
from ingot.registry.version import Version
from ingot.serve.routing import Route
from ingot.serve.traffic.agreement import Sums
from ingot.serve.traffic.dealing import Dealer, Table
from ingot.serve.traffic.plan import Traffic
from ingot.serve.traffic.record import Recorded, TrafficRecord
from ingot.serve.traffic.shadow import Copies
from ingot.serve.traffic.split import Split, check_served
from ingot.twin.canary import Decision, Memory
from ingot.twin.tally import Seen

log = logging.getLogger(__name__)

TICK_S = 1.0
RULE = "canary"  # who decides when nobody does


@dataclass(slots=True)
class _Position:
    """Where the traffic stands.

    Attributes:
        state: `split`, `running`, `done`, `rolled back` or `by hand`.
        memory: Of the canary.
        agreed: Copies compared and agreed when the step began.
    """

    state: str
    memory: Memory
    agreed: tuple[int, int] = (0, 0)


class TrafficDesk:
    """Deals the requests for one name and decides about its canary.

    Servers that share a record each judge the requests that they answer themselves, so a step is
    of one server; a roll-back, or what somebody sets by hand, holds for all of them within
    `TICK_S`. A version that keeps its claims is rolled back with a chance of at most alpha for
    each server.

    Args:
        plan: What was asked for.
        versions: Those of the name that are served; the first answers without a plan.
        copies: The shadow at work, if the plan has one.
        clock: UTC seconds since 1970; `steady_utc()` if not given: a jump must not end a step.

    Attributes:
        name: Of the model.
        plan: What was asked for.

    Raises:
        ServeError: The plan names a version that is not served.
        LedgerError: The record cannot be opened.
    """

    def __init__(
        self,
        plan: Traffic,
        versions: Sequence[Version],
        *,
        copies: Copies | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.plan, self.name, self._clock = plan, versions[0].name, clock or steady_utc()
        self._versions = {version.number: version for version in versions}
        self._copies, self._lock, self._stop = copies, threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._dealer: Dealer | None = None
        self._rng = random.Random(plan.seed)  # noqa: S311 # chance for a study, not a secret
        self._base = self._base_split()
        for number in self._named():
            check_served({number}, set(self._versions), self.name)
        self._digest = self._plan_digest()
        self._record = None if plan.record is None else TrafficRecord(plan.record)
        self._at = self._begin()
        self._mine: set[int] = set()  # rows behind `_heard` that this desk wrote
        self._heard = max((row.row for row in self._read(limit=1)), default=0)
        restored = self._restore()
        self._table = self._lay(restored or self._planned())
        if restored is None:
            self._note("start", "", "as planned")

    @property
    def table(self) -> Table:
        """What requests are dealt by now."""
        return self._table

    @property
    def state(self) -> str:
        """`split`, `running`, `done`, `rolled back` or `by hand`."""
        return self._at.state

    @property
    def sums(self) -> Sums | None:
        """What became of copies; None without a shadow."""
        return None if self._copies is None else self._copies.sums

    def dealer(self, routes: Mapping[int, Route]) -> Dealer:
        """Return what answers for the name.

        Args:
            routes: What answers for each version.
        """
        self._dealer = Dealer(self._table, routes, self._rng)
        return self._dealer

    def start(self, is_draining: Callable[[], bool]) -> None:
        """Look after the canary once a second, in a thread; nothing is decided while draining.

        Without a canary it only hears what other servers with the same record are told by hand.
        """
        if self._record is None:
            return
        if self.plan.canary is not None:
            import scipy.stats  # noqa: F401 # takes a second to import: not at the first look

        self._thread = threading.Thread(
            target=self._watch, args=(is_draining,), name="ingot-traffic", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End looking, and the shadow."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._copies is not None:
            self._copies.close()
        if self._record is not None:
            self._record.close()

    def tick(self) -> Decision | None:
        """Check the canary now; what it decides holds for the next request."""
        with self._lock:
            self._hear()
            canary = self.plan.canary
            if canary is None or self._at.state != "running":
                return None
            decision = canary.decide(self._seen(canary.version), self._at.memory)
            self._at.memory = decision.memory
            if decision.action != "stay":
                self._at = _Position(decision.memory.state, decision.memory)
                self._put(self._base.raised(canary.version, decision.weight))
            if decision.judgements:
                self._note(decision.action, RULE, decision)
            return decision

    def set_weights(self, weights: Mapping[int, float], who: str) -> None:
        """Deal by these shares from now on; a canary is no longer looked after.

        Args:
            weights: Share of each version, all together 1.
            who: Who asks.

        Raises:
            ServeError: They do not sum to 1, or a version is not served.
        """
        split = Split(tuple(weights.items()), self._base.salt)
        check_served(set(weights), set(self._versions), self.name)
        with self._lock:
            self._at = _Position("by hand", self._at.memory)
            self._put(split)
            self._note("weights", who, "weights set by hand")

    def roll_back(self, who: str) -> None:
        """Take the canary out.

        Raises:
            ServeError: There is none.
        """
        with self._lock:
            canary = self._need_canary()
            memory = Memory(state="rolled back", step=self._at.memory.step)
            self._at = _Position("rolled back", memory)
            self._put(self._base.raised(canary, 0.0))
            self._note("roll back", who, "rolled back by hand")

    def restart(self, who: str) -> None:
        """Begin the canary again at its first step, whatever became of it.

        Raises:
            ServeError: There is none.
        """
        with self._lock:
            self._need_canary()
            self._at = self._begin()
            self._put(self._planned())
            self._note("start", who, "started again by hand")

    def describe(self, *, limit: int = 200) -> dict[str, Json]:
        """Return plan, weights, counts and decisions as JSON.

        Args:
            limit: Most decisions, the newest of them.
        """
        canary, table = self.plan.canary, self._table
        counts = {number: tally.counts() for number, tally in table.tallies.items()}
        return {
            "name": self.name,
            "state": self._at.state,
            "weights": {str(number): weight for number, weight in table.split.weights},
            "salt": self._base.salt,
            "counts": {
                str(number): {"requests": one.requests, "errors": one.errors}
                for number, one in counts.items()
            },
            "canary": None if canary is None else asdict(canary),
            "step": None if canary is None else self._at.memory.step + 1,
            "shadow": None if self.plan.shadow is None else asdict(self.plan.shadow),
            "copies": None if self.sums is None else self.sums.to_json(),
            "decisions": [row.to_json() for row in self._read(limit=limit)],
            "next": self.advice(),
        }

    def advice(self) -> str:
        """Return the command to run when the canary has ended; empty before."""
        canary = self.plan.canary
        if canary is None or self._at.state not in {"done", "rolled back"}:
            return ""
        label = self._versions[canary.version].label
        if self._at.state == "done":
            return f"ingot promote {label} STAGE"
        return f"ingot serve {self._versions[self._base.main].label}"

    def _watch(self, is_draining: Callable[[], bool]) -> None:
        while not self._stop.wait(TICK_S):
            try:
                if not is_draining():
                    self.tick()
            except Exception:  # the watch must go on: a canary that nobody looks after is a danger
                log.exception("the canary of %s could not be checked", self.name)

    def _seen(self, number: int) -> Seen:
        tallies, baseline = self._table.tallies, self._base.main
        compared, agreed = self._compared()
        return Seen(
            self._clock(),
            tallies[number].counts(),
            tallies[baseline].counts() if baseline in tallies else None,
            compared - self._at.agreed[0],
            agreed - self._at.agreed[1],
        )

    def _compared(self) -> tuple[int, int]:
        return (0, 0) if self._copies is None else self._copies.compared()

    def _begin(self) -> _Position:
        canary = self.plan.canary
        if canary is None:
            return _Position("split", Memory())
        return _Position("running", canary.start(self._clock()))

    def _put(self, split: Split) -> None:
        self._at.agreed = self._compared()
        self._table = self._lay(split)
        if self._dealer is not None:
            self._dealer.table = self._table

    def _lay(self, split: Split) -> Table:
        shadow = self.plan.shadow
        if shadow is None:
            return Table(split)
        return Table(split, self._copies, shadow=shadow.version, share=shadow.share)

    def _base_split(self) -> Split:
        if self.plan.split is not None:
            return self.plan.split
        canary = None if self.plan.canary is None else self.plan.canary.version
        others = [number for number in self._versions if number != canary]
        if not others:
            raise ServeError(
                f"A canary must have a version beside it; {self.name!r} has version {canary} "
                "alone here. Serve the one that it shall replace too."
            )
        return Split(((others[0], 1.0),))

    def _named(self) -> set[int]:
        parts = (self.plan.canary, self.plan.shadow)
        return {part.version for part in parts if part is not None} | set(dict(self._base.weights))

    def _need_canary(self) -> int:
        if self.plan.canary is None:
            raise ServeError(
                f"{self.name!r} must have a canary for this; it has none. Set weights instead."
            )
        return self.plan.canary.version

    def _canary_digest(self) -> str:
        canary = self.plan.canary
        return "" if canary is None else self._versions[canary.version].digest

    def _plan_digest(self) -> str:
        plan = asdict(self.plan) | {"record": None, "seed": None}
        served = {str(number): self._versions[number].digest for number in sorted(self._named())}
        return digest_json({"plan": plan, "base": asdict(self._base), "versions": served})

    def _planned(self) -> Split:
        canary = self.plan.canary
        if canary is None:
            return self._base
        return self._base.raised(canary.version, canary.steps[0])

    def _restore(self) -> Split | None:
        """Return the split that was last decided on, if that was about this plan or canary."""
        if self._record is None:
            return None
        row = self._record.last(self.name, plan=self._digest, canary=self._canary_digest())
        return None if row is None else self._follow(row)

    def _hear(self) -> None:
        """Follow what another server with this record has decided for all."""
        try:
            rows = self._read(after=self._heard)
        except sqlite3.Error as error:  # the canary here must be looked after all the same
            log.warning("the record of %s could not be read: %s", self.name, error)
            return
        if not rows:
            return
        # servers judge what they see themselves, but one that sees harm sees it for all
        for_all = [row for row in rows if row.who != RULE or row.action == "roll back"]
        mine, self._mine, self._heard = self._mine, set(), rows[-1].row
        if not for_all or for_all[-1].row in mine:
            return
        split = self._follow(for_all[-1])
        if split is None:
            return
        self._put(split)
        reason = f"by another server: {for_all[-1].reason}"
        if rows[-1] is for_all[-1]:
            log.warning("traffic of %s: %s: %s", self.name, for_all[-1].action, reason)
        else:  # a decision of this desk crossed it: the newest is what a restart goes by
            self._note(for_all[-1].action, for_all[-1].who, reason)

    def _read(self, *, after: int = 0, limit: int = 1000) -> list[Recorded]:
        if self._record is None:
            return []
        return self._record.read(self.name, after=after, limit=limit)

    def _follow(self, row: Recorded) -> Split | None:
        """Stand where a decision put the traffic, if it is about this plan or canary."""
        canary, memory = self.plan.canary, Memory.from_json(row.memory)
        weights = {int(number): weight for number, weight in row.weights.items()}
        if row.plan == self._digest and set(weights) <= set(self._versions):
            # counts begin anew with the process; what was spent on looks stays spent
            self._at = _Position(row.state, replace(memory, looked_at=0, was_ripe=False))
            return Split(tuple(weights.items()), self._base.salt)
        is_same = row.canary == self._canary_digest()
        if canary is not None and is_same and memory.state == "rolled back":
            # another plan for the version that failed: somebody must say so, see `restart`
            self._at = _Position("rolled back", memory)
            return self._base.raised(canary.version, 0.0)
        return None

    def _note(self, action: str, who: str, why: Decision | str) -> None:
        """Write down where the traffic stands."""
        judgements = [] if isinstance(why, str) else [j.to_json() for j in why.judgements]
        reason = why if isinstance(why, str) else why.reason
        level = logging.WARNING if action == "roll back" else logging.INFO
        log.log(level, "traffic of %s: %s: %s", self.name, action, reason)
        if self._record is None:
            return
        # Any: JSON, from values of our own
        found: dict[str, Any] = {"memory": self._at.memory.to_json(), "judgements": judgements}
        weights = {str(number): weight for number, weight in self._table.split.weights}
        row = Recorded(
            self._clock(), action, who, reason, weights, self._digest, self._canary_digest(),
            self._at.state, **found,
        )  # fmt: skip
        self._mine.add(self._record.add(self.name, row))


def steady_utc(
    utc: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Return a clock of UTC seconds that goes on from now and never jumps.

    Args:
        utc: Seconds since 1970.
        steady: Seconds that never run backwards.

    Examples:
        >>> utc, steady = iter([1000.0, 9999.0]), iter([5.0, 7.5])
        >>> steady_utc(lambda: next(utc), lambda: next(steady))()
        1002.5
    """
    ahead = utc() - steady()
    return lambda: ahead + steady()
