"""Run a batch to its end, or go on where an earlier run of it stopped."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from ingot.core.digest import Json, digest_json
from ingot.core.errors import DataError, IngotError, ServeError
from ingot.core.files import digest_file, need_room, written_whole
from ingot.core.progress import SILENT, Progress
from ingot.core.units import show_number
from ingot.runtime.machine import describe_machine
from ingot.search.journal import Journal
from ingot.serve.batch.batch import Batch, BatchSummary
from ingot.serve.batch.feeding import MisfitError
from ingot.serve.batch.folder import Places, changes, write_manifest
from ingot.serve.batch.parts import Waiting
from ingot.serve.batch.plan import Plan, plan_batch, stamps_of
from ingot.serve.batch.pool import answer_here, answer_in_processes
from ingot.serve.batch.work import SHOWN, Done

_STARTED = "started"
FILES_NAMED = 100  # in a manifest; the digest of the input covers all of them


@dataclass(slots=True)
class _Tally:
    """What is finished so far."""

    rows: int = 0
    errors: int = 0
    parts: int = 0
    resumed: int = 0
    seconds: float = 0.0
    bad: dict[int, tuple[str, ...]] = field(default_factory=dict)  # part -> its first refused rows

    def add(self, done: Done) -> None:
        self.rows += done.rows
        self.errors += done.errors
        self.parts += 1
        self.seconds += done.seconds
        if done.errors:
            self.bad[done.index] = done.first


def run_batch(
    batch: Batch,
    *,
    progress: Progress = SILENT,
    fresh: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSummary:
    """Answer every row of a batch once, in order; parts that an earlier run finished are kept.

    Args:
        batch: What to do.
        progress: Told after every part.
        fresh: Forget what an earlier run left at the output.
        now: UTC time, for the manifest.
        clock: Seconds.

    Raises:
        DataError: The input does not fit, or more rows than allowed were refused.
        EngineError: The engine cannot run the model.
        IngotError: The disk is full; finished parts stay.
        ServeError: An earlier run of another batch is at this output, processes died again and
            again, or the input changed meanwhile.
    """
    started = clock()
    plan = plan_batch(batch)
    found = None if fresh else _check_earlier(plan)
    if found is not None:
        return _summary(plan, found, resumed=int(found["parts"]), seconds=clock() - started)
    plan.places.check_free()
    with plan.places.locked():
        if fresh:
            plan.places.forget()
            plan.places.check_free()  # a folder may hold more than the batch that was forgotten
        if not plan.places.notes:
            Journal(plan.places.work).write(_STARTED, {"time": _text(now())})
            plan.places.begin(plan.facts)
        plan.places.clean()
        tally = _answer(plan, progress)
        progress.step("writing the output", plan.scan.rows, plan.scan.rows)
        manifest = _finish(plan, tally, now=now, seconds=clock() - started)
    return _summary(plan, manifest, resumed=tally.resumed, seconds=clock() - started)


def finished_parts(plan: Plan) -> int:
    """Return how many parts an earlier run has left, for a look before the start.

    Raises:
        ServeError: They are of another batch.
    """
    found = _check_earlier(plan)
    return int(found["parts"]) if found else len(plan.places.notes)


def _check_earlier(plan: Plan) -> Mapping[str, Any] | None:
    """Return the manifest if the batch is finished already; refuse what is of another batch."""
    manifest = plan.places.read_manifest()
    before = manifest or (plan.places.read_facts() if plan.places.notes else None)
    if before is None:
        return None
    differs = changes({k: v for k, v in before.items() if k in plan.facts}, plan.facts)
    if differs:
        raise ServeError(
            f"The output {plan.places.target.name!r} must be of the same batch to go on with it; "
            f"changed: {'; '.join(differs)}. Use another output, or --fresh to begin again."
        )
    if manifest is not None and not plan.places.target.exists():
        raise ServeError(
            f"The output {plan.places.target.name!r} must be beside its manifest; it is gone. "
            "Put it back, or use --fresh to begin again."
        )
    return manifest


def _answer(plan: Plan, progress: Progress) -> _Tally:
    """Answer every part that is not finished, and stop when too many rows are refused."""
    tally, total = _Tally(), plan.scan.rows
    progress.step("answering rows", 0, total)
    try:
        for done in _answers(plan, tally):
            plan.places.finish(done)
            tally.add(done)
            progress.step("answering rows", tally.rows, max(total, tally.rows))
    except MisfitError:
        if not tally.resumed and tally.rows == tally.errors:  # nothing is worth keeping
            plan.places.vanish()
        raise
    except IngotError as error:
        if type(error) is IngotError:  # the disk is full, which is all that the base itself says
            raise IngotError(f"{error} Finished parts stay: run the command again.") from error
        raise
    if tally.errors > plan.batch.max_errors:
        raise _too_many(plan, tally)
    if stamps_of(plan.work.source) != plan.stamps:
        raise ServeError(
            f"The input {plan.batch.source.name!r} must stay as it is while it is read; it "
            "changed. Begin again with --fresh when nobody writes to it."
        )
    return tally


def _answers(plan: Plan, tally: _Tally) -> Iterator[Done]:
    """Count what an earlier run finished, and give the rest as it is answered."""
    work, columns = plan.work, plan.work.roles.needed if plan.work.numbered else _needed(plan)
    finished = _resume(plan, tally)
    waiting = Waiting(work.source, columns, plan.batch.part_rows, finished)

    def may_go_on(_: object = None) -> bool:
        return tally.errors <= plan.batch.max_errors

    if plan.batch.on == "ray":
        from ingot.serve.batch.on_ray import answer_on_ray

        return answer_on_ray(waiting, work, plan.processes, may_go_on=may_go_on)
    parts = takewhile(may_go_on, waiting)
    if plan.processes == 1:
        return answer_here(parts, work)
    return answer_in_processes(parts, work, plan.processes)


def _resume(plan: Plan, tally: _Tally) -> frozenset[int]:
    numbers = (int(path.stem.removeprefix("part-")) for path in plan.places.notes)
    found = [plan.places.finished(index, plan.work.part_path(index)) for index in numbers]
    for done in filter(None, found):
        tally.add(done)
        tally.resumed += 1
    return frozenset(done.index for done in found if done is not None)


def _needed(plan: Plan) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*plan.work.table.keys, *plan.work.roles.needed]))


def _too_many(plan: Plan, tally: _Tally) -> DataError:
    _join_errors(plan, tally)
    first = [why for index in sorted(tally.bad) for why in tally.bad[index]][:SHOWN]
    return DataError(
        f"At most {show_number(plan.batch.max_errors, 'row')} may be refused; got {tally.errors}: "
        f"{'; '.join(first)}. All are in {plan.places.errors.name!r}. Raise --max-errors to go on "
        f"without them ({show_number(tally.parts, 'finished part')} kept), or repair the input and "
        "begin again with --fresh."
    )


def _finish(
    plan: Plan, tally: _Tally, *, now: Callable[[], datetime], seconds: float
) -> dict[str, Json]:
    """Put the parts together and write the manifest."""
    places, parts = plan.places, [_kept(plan, index) for index in range(tally.parts)]
    size = sum(part.size_bytes for part in parts)
    digest = digest_json([part.digest for part in parts])
    if places.parts != places.target:
        _need_room(places, size)
        with written_whole(places.target) as stream:
            plan.work.table.join([plan.work.part_path(part.index) for part in parts], stream)
        size, digest = places.target.stat().st_size, digest_file(places.target)
    _join_errors(plan, tally)
    begun = Journal(places.work).read(_STARTED) or {}
    manifest: dict[str, Json] = plan.facts | {
        "first_files": dict(plan.scan.files[:FILES_NAMED]),
        "rows": tally.rows,
        "answered": tally.rows - tally.errors,
        "errors": tally.errors,
        "parts": tally.parts,
        "output": {"bytes": size, "digest": digest},
        "started": begun.get("time"),
        "finished": _text(now()),
        "seconds": {"all_parts": tally.seconds, "last_run": seconds},
        "processes": plan.processes,
        "machine": describe_machine(),
    }
    write_manifest(places, manifest)
    return manifest


def _kept(plan: Plan, index: int) -> Done:
    done = plan.places.finished(index, plan.work.part_path(index))
    if done is None:
        raise ServeError(
            f"Part {index} must be as it was written; it was changed. Run the same command again: "
            "this part is answered anew."
        )
    return done


def _need_room(places: Places, size: int) -> None:
    try:
        need_room(places.target.parent, size, f"{places.target.name!r}")
    except IngotError as error:
        raise IngotError(
            f"{error} All {places.work.name!r} stay: run the command again."
        ) from error


def _join_errors(plan: Plan, tally: _Tally) -> None:
    if not tally.bad:
        plan.places.errors.unlink(missing_ok=True)
        return
    with written_whole(plan.places.errors) as stream:
        for index in sorted(tally.bad):
            with plan.work.errors_path(index).open("rb") as part:
                shutil.copyfileobj(part, stream)


def _summary(
    plan: Plan, manifest: Mapping[str, Any], *, resumed: int, seconds: float
) -> BatchSummary:
    places, errors = plan.places, int(manifest["errors"])
    return BatchSummary(
        int(manifest["rows"]),
        int(manifest["answered"]),
        errors,
        int(manifest["parts"]),
        resumed,
        seconds,
        places.target,
        places.manifest,
        places.errors if errors else None,
    )


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
