"""Parent of a race: several fresh processes, each with every runner, and the ratios they give."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig

HERE = Path(__file__).parent
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Race:
    """What happened: milliseconds by runner, process and round, and who could not start."""

    rounds: dict[str, list[np.ndarray]]
    failed: dict[str, str]

    def best_peers(self) -> list[str]:
        """Return the runners that are not ours, the fastest first."""
        peers = [name for name in self.rounds if not name.startswith("ingot")]
        return sorted(peers, key=self.typical)

    def ratio(self, ours: str, other: str) -> tuple[float, float, float]:
        """Return latency of `ours` / `other`: geometric mean and 95 % t-interval over processes.

        Of a process it is the median over rounds of the ratio within the round: the machine is
        fast and slow by turns of seconds, and both sides of a round see the same.
        """
        pairs = zip(self.rounds[ours], self.rounds[other], strict=True)
        logs = np.array([np.median(np.log(a) - np.log(b)) for a, b in pairs])
        middle, n = float(logs.mean()), len(logs)
        half = float(stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / n**0.5) if n > 1 else np.inf
        return tuple(float(np.exp(v)) for v in (middle, middle - half, middle + half))

    def typical(self, name: str) -> float:
        """Return the geometric mean of a runner's medians in milliseconds."""
        return float(np.exp(np.mean([np.log(np.median(times)) for times in self.rounds[name]])))


def ours(name: str, model: Model, config: EngineConfig) -> dict:
    """Return the entry of one of our artefacts."""
    return {"name": name, "kind": "ingot", "path": str(model.path), "config": config.to_json()}


def peer(name: str, path: Path) -> dict:
    """Return the entry of a peer that runs a file."""
    return {"name": name, "kind": "peer", "path": str(path)}


def torch_peer(name: str, factory: str) -> dict:
    """Return the entry of a peer that runs a torch module of `_nets`."""
    return {"name": name, "kind": "torch", "factory": factory}


def race(
    runners: list[dict],
    feeds: Feeds,
    folder: Path,
    *,
    threads: int,
    processes: int = 5,
    rounds: int = 30,
    calls: int = 4,
    warmup: int = 3,
    openings: int = 1,
) -> Race:
    """Time all runners in fresh processes, interleaved within each.

    Args:
        runners: Entries made by `ours`, `peer` and `torch_peer`.
        feeds: Inputs of every call.
        folder: Where specs and raw times are kept.
        threads: Threads of every runner.
        processes: Fresh processes.
        rounds: Turns of every runner in a process.
        calls: Timed calls in a turn, after one that is not timed.
        warmup: Calls of each runner before the first turn.
        openings: How often every runner is opened anew in a process; each has all its rounds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "feeds.npz", allow_pickle=False, **feeds)
    times: dict[str, list[np.ndarray]] = {}
    failed: dict[str, str] = {}
    for seed in range(processes):
        spec, out = folder / f"spec{seed}.json", folder / f"times{seed}.json"
        facts = {"runners": runners, "feeds": str(folder / "feeds.npz"), "threads": threads}
        facts |= {"rounds": rounds, "calls": calls, "warmup": warmup, "seed": seed}
        facts |= {"openings": openings}
        spec.write_text(json.dumps(facts))
        command = [sys.executable, str(HERE / "_race.py"), str(spec), str(out)]
        subprocess.run(command, check=True)
        found = json.loads(out.read_text())
        failed |= found["failed"]
        for name, parts in found["times_ms"].items():
            times.setdefault(name, []).append(np.concatenate(parts))
    return Race({name: t for name, t in times.items() if name not in failed}, failed)


def final(run: Race, entries: list[dict], feeds: Feeds, folder: Path, **options: int) -> Race:
    """Race `ingot` again with the two best peers only: rounds are short, so pairs are close."""
    names = {"ingot", *run.best_peers()[:2]}
    return race([e for e in entries if e["name"] in names], feeds, folder, **options)


def table_rows(what: str, run: Race, order: list[str]) -> list[list]:
    """Return one row per runner: network, shape and runner, ms, ratio to `ingot` with interval."""
    rows = []
    for name in order:
        if name in run.failed:
            rows.append([what, name, "does not run", run.failed[name].splitlines()[0][:80]])
            continue
        value, low, high = run.ratio(name, order[0])
        ratio = "1" if name == order[0] else f"{value:.2f} [{low:.2f}, {high:.2f}]"
        rows.append([what, name, f"{run.typical(name):.2f}", ratio])
    return rows
