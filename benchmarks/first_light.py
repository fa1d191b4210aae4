"""First light, measured: `python benchmarks/first_light.py [SECTION ...]`.

Runs every section, or those named, and writes `results/first_light.json` from all that have been
run. Run it alone: two cores are not enough for a benchmark and anything else. Needs the shared
data (`--data FOLDER`, `../shared/data` unless said) and the extra `peers`.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "first_light"
os.environ.setdefault("INGOT_HOME", str(WORK / "home"))
os.environ["PYTHONPATH"] = str(HERE)  # factories are named by module, in children too

import _minilm  # noqa: E402 # the environment comes first
import _vision  # noqa: E402
from _endpoint_overhead import measure_endpoint_overhead  # noqa: E402
from _overhead import measure_overhead  # noqa: E402
from _results import Claim, Section, run_sections  # noqa: E402

COLUMNS = {
    "peers": ["network and shape", "runner", "latency, ms", "latency / ingot"],
    "quality": ["network and data", "runner", "fp32", "int8", "lost, points"],
    "minilm_trials": [
        "recipe", "engine", "MB", "latency, ms", "Spearman x 100", "keeps the claim", "why",
    ],
}  # fmt: skip


def overheads(shared: Path, work: Path) -> Section:
    """Measure what Session.run and the endpoint add to the engine, and what an import pulls."""
    del shared, work
    claims = []
    for engine, row in measure_overhead().items():
        claims.append(
            Claim(
                f"Session.run on {engine} beyond the bare call",
                *(row["value"], row["low"], row["high"], "us", row["n"]),
                target="<= 5 us",
                met=row["high"] <= 5,
                note=f"bare call {row['bare_us']:.0f} us",
            )
        )
    alone = "; asleep between requests, the process pays a wake-up and cold caches for each"
    kinds = (("16 at once", "cpu_us", ""), ("one at a time", "cpu_us_one_at_a_time", alone))
    for label, key, why in kinds:
        runs = sorted(measure_endpoint_overhead()[key] for _ in range(5))
        claims.append(
            Claim(
                f"Endpoint: CPU per request beside the model, {label}",
                *(runs[2], runs[0], runs[-1], "us", len(runs)),
                target="<= 150 us",
                met=runs[-1] <= 150,
                note="median and range of five servers" + why,
            )
        )
    code = "import sys, ingot; print(len(sys.modules), *({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *heavy = done.stdout.split()
    claims.append(
        _minilm.exact(
            "`import ingot`: modules",
            int(count),
            "",
            "<= 120, no torch, no numpy",
            met=int(count) <= 120 and not heavy,
        )
    )
    return Section(claims)


SECTIONS = {
    "minilm_latency": _minilm.latency,
    "minilm_quality": _minilm.quality_and_size,
    "resnet50": _vision.resnet50,
    "resnet20": _vision.resnet20,
    "starts": _minilm.starts,
    "overheads": overheads,
    "search": _minilm.search,
    "mobilenet": _vision.mobilenet,
    "gpt2": _vision.gpt2,
}


if __name__ == "__main__":
    run_sections("first_light", SECTIONS, COLUMNS, WORK, about=__doc__)
