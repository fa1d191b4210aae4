"""Post-training compression, measured: `python benchmarks/post_training.py [SECTION ...]`.

Runs every section, or those named, and writes `results/post_training.json` from all that have been
run. Run it alone: two cores are not enough for a benchmark and anything else. Needs the shared
data (`--data FOLDER`, `../shared/data` unless said) and the extra `peers`.
"""

import argparse
import os
import time
import traceback
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "post_training"
os.environ.setdefault("INGOT_HOME", str(WORK / "home"))
os.environ["PYTHONPATH"] = str(HERE)  # factories are named by module, in children too

import _rungs  # noqa: E402 # the environment comes first
import _systems  # noqa: E402
from _contest import contest  # noqa: E402
from _results import assemble, keep  # noqa: E402
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
SECTIONS = {
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


def main() -> None:
    """Run the sections and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], metavar="SECTION")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data must be a folder with stsb and cifar10; {options.data} is not there")
    for name in options.sections or SECTIONS:
        begin = time.monotonic()
        print(f"{name} ...", flush=True)
        work = WORK / name
        work.mkdir(parents=True, exist_ok=True)
        try:
            section = SECTIONS[name](options.data, work)
        except Exception:  # noqa: BLE001 # one failed section must not cost the hours of the rest
            traceback.print_exc()
            continue
        keep(section, WORK / f"{name}.json")
        for claim in section.claims:
            mark = "met   " if claim.met else "MISSED"
            print(f"  {mark} {claim.claim}: {claim.value:.4g} [{claim.low:.4g}, {claim.high:.4g}]"
                  f" {claim.unit} ({claim.target})  {claim.note}")  # fmt: skip
        print(f"  took {time.monotonic() - begin:.0f} s", flush=True)
    done = {n: WORK / f"{n}.json" for n in SECTIONS if (WORK / f"{n}.json").exists()}
    print(assemble("post_training", done, COLUMNS))


if __name__ == "__main__":
    main()
