"""What `_realtime.py` measures, as claims beside what was asked for."""

from pathlib import Path

from _minilm import exact
from _realtime import KILLED, installed, measure_kills, measure_overhead
from _results import Claim, Section

from ingot.runtime.quantiles import quantile_interval


def overhead(shared: Path, work: Path) -> Section:
    """Measure CPU and requests per second of a model that does nothing, ours and the peers'."""
    del shared, work
    found = measure_overhead()
    figures = {
        name: {what: quantile_interval(values, 0.5) for what, values in row.items()}
        for name, row in found.items()
    }
    rounds = len(found["ingot"]["cpu_us"])
    value, low, high = figures["ingot"]["cpu_us"]
    section = Section([Claim(
        "CPU per request with keys, metrics and log, OIP JSON body", value, low, high, "us",
        rounds, "<= 120 us", met=high <= 120,
        peers={n: round(row["cpu_us"][0], 1) for n, row in figures.items() if n != "ingot"},
        note=f"median of {rounds} rounds; peers as they come, without keys and log",
    )])  # fmt: skip
    section.rows["overhead"] = [
        [name, *("{:.0f} [{:.0f}, {:.0f}]".format(*row[what]) for what in row)]
        for name, row in figures.items()
    ]
    rates = {n: row["requests_per_s"] for n, row in figures.items() if n != "ingot"}
    if rates:
        best = max(rates, key=lambda name: rates[name][0])
        pairs = zip(*(found[name]["requests_per_s"] for name in ("ingot", best)), strict=True)
        value, low, high = quantile_interval([mine / theirs for mine, theirs in pairs], 0.5)
        section.claims.append(Claim(
            "requests/s of one process, a model that does nothing: ours / best peer",
            value, low, high, "x", rounds, ">= 3", met=low >= 3,
            peers={name: round(row[0]) for name, row in rates.items()},
            note=f"best: {best}; median of the ratios of {rounds} rounds",
        ))  # fmt: skip
    return section


def lost(shared: Path, work: Path) -> Section:
    """Kill one of two workers again and again under load, ours and the peers'."""
    del shared, work
    rows, peers = [], {}
    for name in installed(KILLED):
        kills = 4 if name == "litserve" else 20  # it loses its service: more would say no more
        found = measure_kills(name, requests=300 * kills, kills=kills)
        rows.append([name, found["requests"], found["kills"], found["lost"]])
        peers[name] = float(found["lost"])
    mine = rows[0]
    claim = exact(
        "requests lost while one of two workers is killed again and again", peers.pop("ingot"),
        "requests", "0", met=mine[3] == 0,
        note=f"{mine[1]} requests of 20 ms, {mine[2]} kills -9",
    )  # fmt: skip
    claim.peers.update(peers)
    return Section([claim], {"lost": rows})
