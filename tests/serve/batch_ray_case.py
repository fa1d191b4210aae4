"""One batch on Ray in a process of its own, as Ray puts its marks on the one that starts it."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import batch_cases as cases

from ingot.core.errors import DataError, IngotError
from ingot.serve.batch.on_ray import answer_on_ray
from ingot.serve.batch.parts import Waiting
from ingot.serve.batch.plan import plan_batch
from ingot.serve.batch.work import Part, Worker
from ingot.serve.ray_start import start_ray

TEXTS = cases.sentences(80)


@dataclass(frozen=True)
class BreaksOff:
    """Parts of an input that stops being readable after the second."""

    parts: Waiting
    folder: Path

    def __iter__(self) -> Iterator[Part]:
        for part in self.parts:
            if part.index == 2:
                raise DataError("broken off")
            yield part


class KillsTheReader(BreaksOff):
    """Parts of an input whose third kills whoever reads it."""

    def __iter__(self) -> Iterator[Part]:
        for part in self.parts:
            if part.index == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield part


class Counted(BreaksOff):
    """Many parts, all like the first; writes down how many were read."""

    def __iter__(self) -> Iterator[Part]:
        first = next(iter(self.parts))
        for index in range(40):
            (self.folder / f"read-{index}").touch()
            yield replace(first, index=index)


class Lags(Worker):
    """Takes its time, and writes down how many parts were read while it did."""

    def answer(self, part: Part):
        time.sleep(0.1)
        done = super().answer(part)
        read = len(list(self._work.errors.glob("read-*")))
        return replace(done, rows=read)


INPUTS = {
    "Whole": None,
    "BreaksOff": BreaksOff,
    "KillsTheReader": KillsTheReader,
    "Counted": Counted,
}
OPENERS = {"Worker": Worker, "Lags": Lags, "DiesOnce": cases.DiesOnce, "Raises": cases.Raises,
           "DiesAlways": cases.DiesAlways}  # fmt: skip


def answer(folder: Path, given: str, opener: str) -> dict:
    """Answer an input of 5 parts by 2 actors; return what came, and the error."""
    source = cases.write_csv(folder / "in.csv", TEXTS)
    model = cases.text_model(folder / "model")
    work = plan_batch(cases.small(model, source, folder / "out.csv")).work
    work.folder.mkdir()
    parts = Waiting(work.source, ("text",), 16)
    if (kind := INPUTS[given]) is not None:
        parts = kind(parts, work.errors)
    found = {"done": [], "rows": [], "error": ""}
    try:
        for done in answer_on_ray(parts, work, 2, opener=OPENERS[opener]):
            found["done"].append(done.index)
            found["rows"].append(done.rows)
    except IngotError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    found["left"] = [path.name for path in work.errors.glob("ray-*")]
    return found


def main() -> None:
    """Answer one batch, or be a cluster until stdin ends."""
    if sys.argv[1:] != ["cluster"]:
        sys.stdout.write(json.dumps(answer(Path(sys.argv[1]), *sys.argv[2:])))
        return
    ray = start_ray(4, store_bytes=0)
    sys.stdout.write(ray.get_runtime_context().gcs_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    import batch_ray_case  # actors import it by this name

    batch_ray_case.main()
