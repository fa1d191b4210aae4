"""Serving, measured: `python benchmarks/serving.py [SECTION ...]`.

Run it alone: it kills what it starts, and times what it kills.
"""

import os
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "serving"
os.environ.setdefault("INGOT_HOME", str(WORK / "home"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

import _jobs  # noqa: E402 # the environment comes first
from _results import run_sections  # noqa: E402

COLUMNS = {
    "enqueue": ["synchronous", "jobs per commit", "survives", "jobs/s", "least", "most"],
    "trace": ["second", "backlog", "backlog per instance", "instances"],
}
SECTIONS = {
    "kills": _jobs.kills,
    "enqueue": _jobs.enqueue,
    "cold": _jobs.cold,
    "trace": _jobs.trace,
}

if __name__ == "__main__":
    run_sections("serving", SECTIONS, COLUMNS, WORK, about=__doc__)
