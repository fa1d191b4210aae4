"""Sessions that processes of the tests open by name: y = 2 x, and some values that do harm."""

import os
import signal
import time

import numpy as np

from ingot.core.errors import EngineError
from ingot.runtime.engine import EngineConfig

BREAK, KILL, SLEEP, HANG, BUG = -1.0, -2.0, -3.0, -4.0, -5.0


class Doubler:
    config = EngineConfig()

    def run(self, feeds):
        first = float(feeds["x"].ravel()[0])
        if first == BREAK:
            raise EngineError("secret detail of the engine")
        if first == BUG:
            raise KeyError("secret detail of a bug")
        if first == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == SLEEP:
            time.sleep(0.4)
        if first == HANG:
            time.sleep(60)
        return {"y": feeds["x"] * np.float32(2), "kept": feeds["mask"] > 0}

    def executed(self):
        return ()

    def close(self):
        pass


def open_doubler(endpoint):
    return Doubler()


def open_nothing(endpoint):
    raise EngineError("An engine must be installed; it is not. Install it.")


def open_stuck(endpoint):
    while (endpoint.model.path / "stuck").exists():
        time.sleep(0.02)
    return Doubler()


def die_at_start(endpoint):
    os._exit(3)
