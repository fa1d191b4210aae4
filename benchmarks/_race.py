"""One fresh process of a race: every runner opened, then timed call by call in turn.

Called as `python benchmarks/_race.py SPEC.json OUT.json` by the benchmark scripts; the spec names
the runners, the inputs (.npz by input name) and the number of rounds.
"""

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _peers

SETTLE_S = 0.02


def main() -> None:
    """Run the race that the spec describes; write milliseconds per runner, opening and round.

    Two openings of one model can differ by a few per cent, perhaps because of where their memory
    lies. So runners are opened anew several times, torch excepted, which compiles for a minute.
    """
    spec = json.loads(Path(sys.argv[1]).read_text())
    with np.load(spec["feeds"]) as arrays:
        feeds = dict(arrays)
    failed, found, kept = {}, {}, {}
    for turn in range(spec.get("openings", 1)):
        runners = {}
        for entry in spec["runners"]:
            name = entry["name"]
            try:
                runners[name] = kept.get(name) or _open(entry, feeds, spec["threads"])
            except Exception as error:  # noqa: BLE001 # peers raise what they like; it is reported
                failed[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            if entry["kind"] == "torch":
                kept[name] = runners[name]
        for answer in runners.values():
            for _ in range(spec["warmup"]):
                answer(feeds)
        for name, times in _race(
            runners, feeds, spec | {"seed": spec["seed"] * 100 + turn}
        ).items():
            found.setdefault(name, []).append(times)
    Path(sys.argv[2]).write_text(json.dumps({"times_ms": found, "failed": failed}))


def _race(runners: dict, feeds: dict, spec: dict) -> dict[str, list[float]]:
    """Return the median of a short run of calls per round; every round has a new random order."""
    order = np.random.default_rng(spec["seed"])
    names, times = list(runners), {name: [] for name in runners}
    gc.disable()
    for _ in range(spec["rounds"]):
        for index in order.permutation(len(names)):
            answer, calls = runners[names[index]], []
            _settle(answer, feeds)
            for _ in range(spec["calls"]):
                start = time.perf_counter()
                answer(feeds)
                calls.append((time.perf_counter() - start) * 1000)
            times[names[index]].append(float(np.median(calls)))
    gc.enable()
    return times


def _settle(answer: _peers.Answer, feeds: dict) -> None:
    """Call until the caches are this runner's again, and the last one's threads have gone to sleep.

    Engines let idle threads spin for some milliseconds, in hope of the next call. Whoever runs
    alone is never beside them, so who comes next must not be timed while they do.
    """
    start = time.perf_counter()
    answer(feeds)
    while time.perf_counter() - start < SETTLE_S:
        answer(feeds)


def _open(entry: dict, feeds: dict, threads: int) -> _peers.Answer:
    if entry["kind"] == "ingot":
        return _open_ingot(entry)
    if entry["kind"] == "torch":
        return _open_torch(entry, list(feeds), threads)
    name = entry["name"].partition("@")[0]  # what follows tells runners of one kind apart
    return _peers.open_peer(name, Path(entry["path"]), threads, feeds)


def _open_ingot(entry: dict) -> _peers.Answer:
    from ingot.models.store import open_model
    from ingot.runtime.engine import EngineConfig
    from ingot.runtime.engines import open_session

    model = open_model(Path(entry["path"]))
    return open_session(model, EngineConfig.from_json(entry["config"])).run


def _open_torch(entry: dict, order: list[str], threads: int) -> _peers.Answer:
    import _nets

    module = getattr(_nets, entry["factory"])()
    if entry.get("weights"):
        from safetensors.torch import load_file

        module.load_state_dict(load_file(entry["weights"]))
    return _peers.open_torch(entry["name"], module, order, threads)


if __name__ == "__main__":
    main()
