"""Serving, measured: `python benchmarks/serving.py [SECTION ...]`.

Run it alone: it kills what it starts, and times what it kills.
"""

import os
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "serving"
os.environ.setdefault("INGOT_HOME", str(WORK / "home"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

import _batch  # noqa: E402 # the environment comes first
import _jobs  # noqa: E402
import _realtime_claims  # noqa: E402
import _stream  # noqa: E402
from _results import run_sections  # noqa: E402

COLUMNS = {
    "overhead": ["server", "CPU us per request", "requests/s"],
    "lost": ["server", "requests", "kills", "lost"],
    "enqueue": ["synchronous", "jobs per commit", "survives", "jobs/s", "least", "most"],
    **_batch.COLUMNS,
    "stream": ["callers", "server", "tokens/s", "first token, median ms", "first token, p95 ms"],
    "trace": ["second", "backlog", "backlog per instance", "instances"],
    "trace_live": ["second", "backlog", "backlog per instance", "instances"],
}
SECTIONS = {
    "overhead": _realtime_claims.overhead,
    "lost": _realtime_claims.lost,
    "kills": _jobs.kills,
    "enqueue": _jobs.enqueue,
    "cold": _jobs.cold,
    "trace": _jobs.trace,
    "batch": _batch.batch,
    "stream": _stream.stream,
}

if __name__ == "__main__":
    run_sections("serving", SECTIONS, COLUMNS, WORK, about=__doc__)
