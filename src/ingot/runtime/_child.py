"""What a fresh process does from its start to its first answer; it imports the least it can."""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Open the model named in the arguments, answer, and report on the last line of stdout."""
    request = json.loads(sys.argv[1])
    import numpy as np

    from ingot.models.store import open_model
    from ingot.runtime.engine import EngineConfig
    from ingot.runtime.engines import open_session

    model = open_model(Path(request["model"]))
    session = open_session(model, EngineConfig.from_json(request["config"]))
    with np.load(request["feeds"], allow_pickle=False) as archive:
        feeds = {name: archive[name] for name in archive.files}
    session.run(feeds)
    stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for _ in range(request["calls"] - 1):
        session.run(feeds)
    report = {"stamp_ns": stamp, "peak_rss_bytes": peak_rss(), "torch": "torch" in sys.modules}
    sys.stdout.write("\n" + json.dumps(report) + "\n")


def peak_rss(status: Path = Path("/proc/self/status")) -> int:
    """Return the largest resident size of this process so far, in bytes."""
    if status.exists():
        # ru_maxrss survives exec on Linux, so a child would report its parent's peak
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), "")
        if peak:
            return int(peak.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
