"""Every matrix of an encoder inside the engine, as a share of the machine's eight-bit peak."""

import csv
import subprocess
from pathlib import Path

from _minilm import exact
from _results import ROOT, Section

PARTS = ("qkv", "attention", "o", "up", "down", "whole")
UP = "up, GELU"
BIG = ("BERT-base shape", "32 x 128")


def layers(shared: Path, work: Path) -> Section:
    """Build the engine's own bench, run it, and set each part against the peak measured by it."""
    del shared
    build = work / "layers"
    for command in (
        ["cmake", "-S", str(ROOT / "native"), "-B", str(build), "-DINGOT_TESTS=ON"],
        ["cmake", "--build", str(build), "-j2", "--target", "layers_bench"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    bench = build / "layers_bench"
    done = subprocess.run([str(bench)], capture_output=True, text=True, check=True)
    (_, isa, peak), *lines = csv.reader(done.stdout.splitlines(), delimiter="\t")
    rows = sorted(lines, key=_place(lines))
    table = [_row(line, float(peak)) for line in rows]
    table.append(["products on registers alone", "", "one core", 1, "", "", f"{float(peak):.3f}",
                  "100 %"])  # fmt: skip
    whole = next(r for r in lines if tuple(r[:2]) == BIG and r[2] == "whole" and r[3] != "1")
    share = _rate(whole) / (float(peak) * int(whole[3]))
    # The peak of tiles is not measured here, so this row cannot be met, only shown.
    return Section([exact(
        f"{BIG[0]}, {BIG[1]}: products per second, share of the {isa} peak", 100 * share, "%",
        ">= 25 % of the peak of AMX", met=False,
        note="there is no AMX here: the share is of what the cores' own eight-bit products can do, "
        f"{float(peak):.3f} TOPS each",
    )], {"layers": table})  # fmt: skip


def _place(lines: list[list[str]]):
    order = list(dict.fromkeys(tuple(line[:2]) for line in lines))
    return lambda line: (order.index(tuple(line[:2])), PARTS.index(line[2]), int(line[3]))


def _rate(line: list[str]) -> float:
    return float(line[4]) / float(line[5]) / 1e12


def _row(line: list[str], peak: float) -> list:
    network, batch, part, threads, operations, seconds, _ = line
    share = f"{100 * _rate(line) / (peak * int(threads)):.0f} %"
    return [
        network, batch, UP if part == "up" else part, int(threads),
        f"{float(operations) / 2e9:.3g}", f"{1e3 * float(seconds):.3g}", f"{_rate(line):.3f}",
        "" if part == "attention" else share,
    ]  # fmt: skip
