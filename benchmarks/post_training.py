"""Post-training compression, measured: `python benchmarks/post_training.py [SECTION ...]`.

Runs every section, or those named, and writes `results/post_training.json` from all that have been
run. Run it alone: two cores are not enough for a benchmark and anything else. Needs the shared
data (`--data FOLDER`, `../shared/data` unless said) and the extra `peers`.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "post_training"
os.environ.setdefault("INGOT_HOME", str(WORK / "home"))
os.environ["PYTHONPATH"] = str(HERE)  # factories are named by module, in children too

import _rungs  # noqa: E402 # the environment comes first
import _systems  # noqa: E402
from _contest import contest  # noqa: E402
from _results import Section, run_sections  # noqa: E402
from _zoo import NETWORKS  # noqa: E402

COLUMNS = {
    "summary": ["network", "ours", "ms", "best peer that keeps the claim, ms", "ours / peer",
                "fp32 / ours, bytes", "claim"],
    "contest": [
        "network", "runner", "quality", "keeps the claim", "latency, ms", "MB", "cold start, s",
        "peak MB", "note",
    ],
    "rungs": ["network", "recipe", "runs on", "MB", "latency, ms", "quality", "keeps the claim",
              "why"],
    "words": ["network", "in words"],
    "sizes": ["network", "form", "MB", "fp32 / small", "Spearman x 100", "lost, points"],
    "throughput": ["way", "sentences/s"],
    "observers": ["network", "observer", "fp32", "int8", "lost, points"],
    "zeroquant": ["form", "cosine with fp32", "Spearman x 100", "seconds"],
    "drawn": ["what", "median over layers", "note"],
    "rewrites": ["network", "form", "in front", "found"],
    "scale": ["layers", "parameters, 1e9", "float, GB", "float / small", "CPU seconds", "peak GiB",
              "layers in 4 bits", "cosine of logits"],
    "roofline": ["network", "GMAC", "latency, ms", "TOPS", "of the peak"],
}  # fmt: skip
PARTS = {
    **{name: partial(contest, network) for name, network in NETWORKS.items()},
    "fooled": _rungs.fooled,
    "sizes": _rungs.sizes,
    "start": _rungs.start,
    "throughput": _rungs.throughput,
    "ladder": _rungs.ladder,
    "planted": _rungs.planted,
    "zeroquant": _rungs.zeroquant,
    "data_free": _systems.data_free,
    "equalization": _systems.equalization,
    "scale": _systems.scale,
    "roofline": _systems.roofline,
    "together": _systems.together,
}


def _in_folder(name: str, section: Callable[[Path, Path], Section]):
    """Return the section, run in a folder of its own."""

    def run(shared: Path, work: Path) -> Section:
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        return section(shared, folder)

    return run


SECTIONS = {name: _in_folder(name, section) for name, section in PARTS.items()}

if __name__ == "__main__":
    run_sections("post_training", SECTIONS, COLUMNS, WORK, about=__doc__)
