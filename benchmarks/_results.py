"""One results file per benchmark: claims with their targets, tables, and what it ran on."""

import argparse
import json
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ingot.core.files import write_atomic
from ingot.runtime.machine import describe_machine, physical_cores

HERE = Path(__file__).parent
ROOT = HERE.parent
NO_RESULTS = ":(exclude)benchmarks/results"  # a section changes them while others run


@dataclass
class Claim:
    """One row that a reader can hold us to.

    Attributes:
        claim: What is claimed, in words.
        value: The measurement; `low` and `high` are its 95 % interval, equal for exact figures.
        unit: Unit of the three; `x` for ratios.
        n: How many independent measurements stand behind the interval.
        target: What was asked for, e.g. `<= 1.03`.
        met: Whether the bad end of the interval keeps the target.
        peers: Figures that the value was compared with.
        note: How it was measured, or why it was missed.
    """

    claim: str
    value: float
    low: float
    high: float
    unit: str
    n: int
    target: str
    met: bool
    peers: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class Section:
    """What one part of a benchmark found: claims, and rows of tables by table name."""

    claims: list[Claim] = field(default_factory=list)
    rows: dict[str, list[list]] = field(default_factory=dict)


def run_sections(
    benchmark: str,
    sections: Mapping[str, Callable[[Path, Path], Section]],
    columns: dict[str, list[str]],
    work: Path,
    *,
    about: str,
) -> None:
    """Run the sections named on the command line, or all, and write the results.

    A section that fails is reported and left out; what it found earlier stays.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("sections", nargs="*", choices=[[], *sections], metavar="SECTION")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data must be a folder with stsb and cifar10; {options.data} is not there")
    failed = []
    for name in options.sections or sections:
        begin = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            section = sections[name](options.data, work)
        except Exception:  # noqa: BLE001 # one failed section must not cost the hours of the rest
            traceback.print_exc()
            failed.append(name)
            continue
        keep(section, work / f"{name}.json")
        for claim in section.claims:
            mark = "met   " if claim.met else "MISSED"
            print(f"  {mark} {claim.claim}: {claim.value:.4g} [{claim.low:.4g}, {claim.high:.4g}]"
                  f" {claim.unit} ({claim.target})  {claim.note}")  # fmt: skip
        print(f"  took {time.monotonic() - begin:.0f} s", flush=True)
    done = {n: work / f"{n}.json" for n in sections if (work / f"{n}.json").exists()}
    print(assemble(benchmark, done, columns))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def keep(section: Section, path: Path) -> None:
    """Store what a section found, with the commit it ran on."""
    found = asdict(section) | {"commit": commit(), "date": today()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(found, indent=1).encode())


def assemble(name: str, parts: dict[str, Path], columns: dict[str, list[str]]) -> Path:
    """Write `results/NAME.json` from the stored sections and return its path.

    Args:
        name: Name of the benchmark.
        parts: Stored sections by name, in the order of their claims.
        columns: Columns of every table by its name.
    """
    found = {part: json.loads(path.read_text()) for part, path in parts.items()}
    hardware = describe_machine() | {"cores": physical_cores()}
    result = {
        "benchmark": name,
        "commit": commit(),
        "date": today(),
        "hardware": hardware,
        "command": f"python benchmarks/{name}.py",
        "seed": 0,
        "sections": {p: {"commit": f["commit"], "date": f["date"]} for p, f in found.items()},
        "claims": [claim for f in found.values() for claim in f["claims"]],
        "tables": {
            table: {
                "columns": heads,
                "rows": [row for f in found.values() for row in f["rows"].get(table, [])],
            }
            for table, heads in columns.items()
        },
    }
    target = HERE / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1).replace(f"{ROOT}/", "")  # messages of peers name files
    write_atomic(target, (text + "\n").encode())
    return target


def commit() -> str:
    """Return the commit of the clone, marked where files other than results differ from it."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", NO_RESULTS)
    return f"{head}-dirty" if changed else head or "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def today() -> str:
    """Return the date in UTC."""
    return datetime.now(UTC).date().isoformat()
