"""An asynchronous endpoint over a small convolutional network, for `_jobs.py` to start and kill.

`python _jobs_server.py FOLDER COOLDOWN_S WORK_S`; it prints its address when it is ready. WORK_S is
what each answer takes longer than the network needs.
"""

import sys
from functools import partial
from pathlib import Path

from _slow import open_slow

from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.server import run_jobs
from ingot.serve.jobs.settings import AsyncSettings, open_endpoint
from ingot.testing.tiny import tiny_cnn
from ingot.twin.policy import ScalingPolicy

NAME = "small"


def main() -> None:
    """Serve until told to stop."""
    folder, cooldown_s, work_s = sys.argv[1:]
    root = Path(folder)
    model = store_model(tiny_cnn(), lineage=Lineage("onnx"), name=NAME, root=root / "store")
    config = EngineConfig("onnxruntime", threads=1)
    version = Version(NAME, 1, model.digest, model.digest, config, "2026-01-01T00:00:00Z", 0)
    seconds = float(cooldown_s)
    policy = ScalingPolicy(in_cooldown_s=seconds, out_cooldown_s=seconds)
    opened = partial(open_slow, work_s=float(work_s)) if float(work_s) else open_endpoint
    settings = AsyncSettings(root / "jobs", policy=policy, open_session=opened)
    endpoint = Endpoint(version, model, port=0)
    run_jobs(endpoint, settings, on_ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
