"""Parts answered by Ray Data: on this machine, or on every machine of a cluster.

A task reads the input and gives its parts as a stream, and a pool of actors answers them. Ray Data
keeps a reader that is ahead waiting, so a few parts are in memory, whatever the size of the input.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from ingot.core.errors import IngotError, ServeError
from ingot.core.extras import need
from ingot.serve.batch.parts import PART_BYTES
from ingot.serve.batch.pool import TRIES, Hand, Opener, deadly
from ingot.serve.batch.work import Done, Part, Work, Worker
from ingot.serve.ray_start import join_ray

_HELD = 4  # parts on their way, per actor
_READING = "reading"
_COLUMN = "item"


def answer_on_ray(
    parts: Iterable[Part],
    work: Work,
    processes: int,
    *,
    opener: Opener = Worker,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Done]:
    """Answer parts by actors of Ray, in whatever order they finish.

    What dies and what fails is treated as in `answer_in_processes`. Where `RAY_ADDRESS` names a
    cluster, its machines must see input, model and output under the same paths.

    Args:
        parts: Iterated by a task of Ray, which is given a copy.
        work: What every actor opens first.
        processes: How many actors.
        opener: Makes the worker in its actor; importable by name there.
        may_go_on: Asked after every part; if not, no other part is begun.

    Raises:
        MissingExtraError: The extra `ray` is not installed.
        ServeError: Every actor that was given some part died, or Ray gave up.
        IngotError: What a worker raised, or the reader of the input.
    """
    if not may_go_on():
        return
    cpus = max(1, work.config.threads)
    ray = join_ray(processes * cpus, store_bytes=processes * _HELD * PART_BYTES)
    marks = _Marks(work.errors)
    marks.clear()
    expected, count, failure = -1, 0, None
    try:
        with closing(_stream(parts, work, opener, (processes, cpus))) as stream:
            for found in stream:
                if isinstance(found, int):
                    expected = found
                elif isinstance(found, Done):
                    count += 1
                    yield found
                elif failure is None:
                    failure = found
                if failure is not None or not may_go_on():
                    marks.stop()
        # Ray Data ends the stream without an error where a reader that is repeated fails
        if failure is None and not marks.is_stopped and count != expected:
            failure = _lost(marks, count)
    except ray.exceptions.RayError as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise _gave_up(why) from error
    finally:
        ray.shutdown()
        marks.clear()
    if failure is not None:
        raise failure


def _stream(
    parts: Iterable[Part], work: Work, opener: Opener, share: tuple[int, int]
) -> Generator[Any]:  # Any: what `_Answering` gives
    data: Any = need("ray.data", extra="ray", what="A batch on Ray")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised, once
    processes, cpus = share
    context = data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # every part by itself, as soon as it is there
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = TRIES
    with data.DataContext.current(context):
        # Without a processor of its own the reader is not made one with an actor
        items = data.read_datasource(_source(parts, work), override_num_blocks=1, num_cpus=0)
        answers = items.map_batches(
            _Answering,
            fn_constructor_args=(work, opener),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=data.ActorPoolStrategy(size=processes),
            num_cpus=cpus,
        )
        batches = answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        with closing(iter(batches)) as tables:  # its threads end before Ray does
            for table in tables:
                yield from filter(None.__ne__, map(_unpack, table[_COLUMN]))


def _source(parts: Iterable[Part], work: Work) -> Any:  # a Datasource
    data: Any = need("ray.data", extra="ray", what="A batch on Ray")
    blocks: Any = need("ray.data.block", extra="ray", what="A batch on Ray")

    class Source(data.Datasource):  # type: ignore[misc] # ray is untyped here
        def get_read_tasks(self, *_: object, **__: object) -> list[Any]:
            unknown = blocks.BlockMetadata(None, None, None, None)
            return [data.ReadTask(lambda: map(_pack, _read(parts, work)), unknown)]

        def estimate_inmemory_data_size(self) -> None:
            return None

    return Source()


def _read(parts: Iterable[Part], work: Work) -> Iterator[Part | IngotError | int]:
    """Give parts, and last how many they were, or why the input broke off."""
    marks, count = _Marks(work.errors), 0
    if marks.begin(_READING) > TRIES:
        return  # without a last word, which the parent knows how to read
    try:
        for part in parts:
            if marks.is_stopped:
                break
            count += 1
            yield part
        yield count
    except IngotError as error:  # what is under way is finished first
        yield error
    marks.end(_READING)


class _Answering:
    """What an actor does with everything the reader gives."""

    def __init__(self, work: Work, opener: Opener) -> None:
        self._hand, self._marks = Hand(work, opener), _Marks(work.errors)

    def __call__(self, batch: Any) -> Any:  # tables of Arrow with one row
        found = _unpack(batch[_COLUMN][0])
        return _pack(self._answer(found) if isinstance(found, Part) else found)

    def _answer(self, part: Part) -> Done | Exception | None:
        if self._marks.is_stopped:
            return None
        if self._marks.begin(str(part.index)) > TRIES:
            return deadly(part)
        found = self._hand.answer(part)
        self._marks.end(str(part.index))
        return found


@dataclass(frozen=True, slots=True)
class _Marks:
    """Files by which reader, actors and parent know of each other: Ray repeats without end.

    Attributes:
        folder: Where finished parts are noted too.
    """

    folder: Path

    def begin(self, what: str) -> int:
        """Return how often this was begun and not ended, this time included."""
        with (self.folder / f"ray-{what}").open("ab") as stream:
            stream.write(b".")
            return stream.tell()

    def end(self, what: str) -> None:
        (self.folder / f"ray-{what}").unlink(missing_ok=True)

    def stop(self) -> None:
        (self.folder / "ray-stop").touch()

    @property
    def is_stopped(self) -> bool:
        return (self.folder / "ray-stop").exists()

    def clear(self) -> None:
        for path in self.folder.glob("ray-*"):
            path.unlink(missing_ok=True)


def _lost(marks: _Marks, count: int) -> ServeError:
    if marks.begin(_READING) <= TRIES:
        return _gave_up(f"only {count} parts came back")
    return ServeError(
        f"The input must be read by a process that lives; {TRIES} died one after another. Look "
        "for a file that the reader cannot bear. Parts that are finished stay."
    )


def _gave_up(why: str) -> ServeError:
    return ServeError(
        f"Ray must carry a batch to its end; it gave up ({why}). Parts that are finished stay: run "
        "the same command again, or leave --on ray out."
    )


# The form in which processes of one program send each other objects
def _pack(item: object) -> Any:  # a pyarrow.Table
    arrow: Any = need("pyarrow", extra="ray", what="A batch on Ray")
    return arrow.table(
        {_COLUMN: arrow.array([bytes(ForkingPickler.dumps(item))], arrow.large_binary())}
    )


def _unpack(item: Any) -> Any:  # a pyarrow.LargeBinaryScalar
    return ForkingPickler.loads(item.as_buffer())
