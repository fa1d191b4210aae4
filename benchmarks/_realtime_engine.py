"""Two engines for measuring a server: one that does nothing, and one that takes 20 ms."""

import os
import time
from pathlib import Path

import numpy as np

from ingot.runtime.engine import Availability

MODEL_S = 0.02


class NoOpEngine:
    """Answers a constant."""

    name = "noop"
    seconds = 0.0

    def available(self):
        """Say yes."""
        return Availability(ok=True)

    def precisions(self, model):
        """Return fp32."""
        return ("fp32",)

    def open(self, model, config):
        """Return a session, and leave a file that says which process has it."""
        (Path(model.path) / f"worker.{os.getpid()}").touch()
        return _Session(config, self.seconds)


class SlowEngine(NoOpEngine):
    """Answers a constant after 20 ms."""

    name = "slow"
    seconds = MODEL_S


class _Session:
    def __init__(self, config, seconds):
        self.config, self._seconds = config, seconds
        self._answer = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)

    def run(self, feeds):
        time.sleep(self._seconds) if self._seconds else None
        return {"y": np.broadcast_to(self._answer, feeds["x"].shape)}

    def executed(self):
        return ()

    def close(self):
        return
