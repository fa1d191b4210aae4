"""What `_realtime.py` measures, as claims beside what was asked for."""

from pathlib import Path

from _minilm import exact
from _realtime import _installed, measure_kills, measure_overhead
from _results import Claim, Section


def overhead(shared: Path, work: Path) -> Section:
    """Measure CPU and requests per second of a model that does nothing, ours and the peers'."""
    del shared, work
    found = measure_overhead()
    mine = found["ingot"]
    peers = {n: row["cpu_us"]["median"] for n, row in found.items() if n != "ingot"}
    cpu = mine["cpu_us"]
    section = Section([Claim(
        "CPU per request with keys, metrics and log, OIP JSON body", cpu["median"], cpu["low"],
        cpu["high"], "us", 5, "<= 120 us", met=cpu["high"] <= 120,
        peers={name: round(value, 1) for name, value in peers.items()},
        note="least and most of 5 rounds; peers as they come, without keys and log",
    )])  # fmt: skip
    section.rows["overhead"] = [
        [name, *(f"{row[what]['median']:.0f} [{row[what]['low']:.0f}, {row[what]['high']:.0f}]"
                 for what in ("cpu_us", "requests_per_s"))]
        for name, row in found.items()
    ]  # fmt: skip
    rates = {name: row["requests_per_s"] for name, row in found.items() if name != "ingot"}
    if rates:
        best = max(rates, key=lambda name: rates[name]["median"])
        ours, theirs = mine["requests_per_s"], rates[best]
        low, high = ours["low"] / theirs["high"], ours["high"] / theirs["low"]
        section.claims.append(Claim(
            "requests/s of one process, a model that does nothing: ours / best peer",
            ours["median"] / theirs["median"], low, high, "x", 5, ">= 3", met=low >= 3,
            peers={name: round(row["median"]) for name, row in rates.items()}, note=f"best: {best}",
        ))  # fmt: skip
    return section


def lost(shared: Path, work: Path) -> Section:
    """Kill one of two workers again and again under load, ours and LitServe's."""
    del shared, work
    section = Section()
    for name in ("ingot", "litserve"):
        if name not in _installed():
            continue
        kills = 20 if name == "ingot" else 4  # a peer that loses its service needs no more
        found = measure_kills(name, requests=6000 if name == "ingot" else 1200, kills=kills)
        section.rows.setdefault("lost", []).append(
            [name, found["requests"], found["kills"], found["lost"]]
        )
        if name == "ingot":
            section.claims.append(exact(
                "requests lost while one of two workers is killed again and again", found["lost"],
                "requests", "0", met=found["lost"] == 0,
                note=f"{found['requests']} requests of 20 ms, {found['kills']} kills -9",
            ))  # fmt: skip
    others = [row for row in section.rows["lost"] if row[0] != "ingot"]
    section.claims[0].peers.update({row[0]: float(row[3]) for row in others})
    return section
