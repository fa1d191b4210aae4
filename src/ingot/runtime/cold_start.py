"""Cold start and footprint: what a model costs before and beside its answers."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.feeds import feeds_at

_SCRIPT = "from ingot.runtime._child import main; main()"
_SEQUENCE = 16  # a short request: cold start is about the start, not the request


@dataclass(frozen=True, slots=True)
class ColdStart:
    """What fresh processes reported.

    Attributes:
        seconds: From just before the process was created to its first answer, per run.
        peak_rss_bytes: Largest resident size of each process.
        has_torch: Whether any of them had imported torch.
    """

    seconds: tuple[float, ...]
    peak_rss_bytes: tuple[int, ...]
    has_torch: bool

    @property
    def median_s(self) -> float:
        """Median over the runs."""
        return statistics.median(self.seconds)


def cold_start(
    model: Model,
    config: EngineConfig,
    *,
    runs: int = 5,
    calls: int = 1,
    feeds: Mapping[str, Array] | None = None,
    timeout_s: float = 120.0,
) -> ColdStart:
    """Start fresh processes, each of which opens the model, checks its digest and answers once.

    One process runs first and is not counted, so files are in the page cache. Both ends read the
    system's monotonic clock: the parent before it creates the process, the child after the answer.

    Args:
        model: What to open.
        config: How.
        runs: Processes that count, at least 1.
        calls: Answers per process; more than one matters only to the peak of memory.
        feeds: Inputs; one row of 16 random tokens, or one random row, if not given.
        timeout_s: Patience with each process.

    Raises:
        EngineError: The child failed or took too long; its last words are in the message.
    """
    if runs < 1 or calls < 1:
        raise EngineError(
            f"cold_start() must make at least one run and one call; got runs={runs}, "
            f"calls={calls}. Raise them."
        )
    with tempfile.TemporaryDirectory(prefix="ingot-cold-") as folder:
        path = Path(folder) / "feeds.npz"
        inputs = feeds or feeds_at(model, 1, _SEQUENCE)
        np.savez(path, allow_pickle=False, **inputs)
        request = json.dumps(
            {
                "model": str(model.path),
                "config": config.to_json(),
                "feeds": str(path),
                "calls": calls,
            }
        )
        rows = [_once(request, config, timeout_s) for _ in range(runs + 1)][1:]
    return ColdStart(
        tuple(row[0] for row in rows), tuple(row[1] for row in rows), any(row[2] for row in rows)
    )


def peak_rss(
    model: Model,
    config: EngineConfig,
    feeds: Mapping[str, Array] | None = None,
    *,
    calls: int = 5,
    runs: int = 1,
) -> int:
    """Return the largest resident size in bytes of a fresh process that opens and runs the model.

    The interpreter, numpy and the engine's library are included: they are what serving pays.
    The median over `runs` processes.

    Raises:
        EngineError: The child failed.
    """
    found = cold_start(model, config, runs=runs, calls=calls, feeds=feeds)
    return int(statistics.median(found.peak_rss_bytes))


def footprint(model: Model) -> int:
    """Return the bytes on disk that serving needs: graph, weights beside it, tokenizer."""
    tokenizer = model.tokenizer_path
    return model.size_bytes + (tokenizer.stat().st_size if tokenizer else 0)


def _once(request: str, config: EngineConfig, timeout_s: float) -> tuple[float, int, bool]:
    start = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, request],
            capture_output=True,
            check=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "").strip().splitlines() or ["no message"]
        raise EngineError(
            f"A fresh process must answer with {config.label}; got exit status "
            f"{error.returncode}: {words[-1]}. Open the model in this process to see all of it."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"A fresh process must answer with {config.label} within {timeout_s:g} s; it did not. "
            "Raise timeout_s or try a smaller model."
        ) from error
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return (report["stamp_ns"] - start) / 1e9, int(report["peak_rss_bytes"]), report["torch"]
