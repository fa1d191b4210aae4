"""An engine for tests: it doubles, and dies, hangs or refuses when its input says so."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from ingot.core.errors import EngineError
from ingot.runtime.engine import Availability

DIE_ONCE, DIE, HANG, REFUSE, BREAK, SLOW = -1, -2, -3, -4, -5, -6


class FragileEngine:
    """Doubles `x` and says which process did."""

    name = "fragile"

    def available(self):
        return Availability(ok=True)

    def precisions(self, model):
        return ("fp32",)

    def open(self, model, config):
        if (Path(model.path) / "unusable").exists():
            raise EngineError("A model must be usable; this one is not. Use another.")
        while (Path(model.path) / "stuck").exists():
            time.sleep(0.02)
        return FragileSession(model, config)


class FragileSession:
    def __init__(self, model, config):
        self.config, self._mark = config, Path(model.path) / "died"
        self._broken = Path(model.path) / "broken"

    def run(self, feeds):
        if self._broken.exists():
            raise EngineError("the engine must run; it does not. Restart it.")
        order = feeds["x"][0, 0]
        if order == DIE or (order == DIE_ONCE and not self._mark.exists()):
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if order == HANG:
            time.sleep(600)
        if order == REFUSE:
            raise EngineError("token 99 is beyond the vocabulary")
        if order == BREAK:
            raise RuntimeError("secret detail of the engine")
        if order == SLOW:
            time.sleep(0.4)
        rows = len(feeds["x"])
        pids = np.full((rows, 1), os.getpid(), np.int64)
        return {"y": feeds["x"] * np.float32(2), "pid": pids}

    def executed(self):
        return ()

    def close(self):
        return
