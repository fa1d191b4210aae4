"""A peer in a fresh process, from its start to its first answer: `_cold.py NAME FILE FEEDS`."""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _peers

name, path, source = sys.argv[1:]
with np.load(source) as arrays:
    feeds = dict(arrays)
_peers.open_peer(name, Path(path), 2, feeds)(feeds)
stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(line for line in lines if line.startswith("VmHWM:"))
sys.stdout.write("\n" + json.dumps({"stamp_ns": stamp, "rss": int(peak.split()[1]) * 1024}) + "\n")
