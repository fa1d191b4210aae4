"""What several tests of this room say in one word."""

import time

JOBS = "/v2/models/doubler/jobs"


def request_of(*values: float) -> dict:
    """Return an infer request of one row per pair of values."""
    rows = len(values) // 2
    return {
        "inputs": [
            {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": list(values)},
            {"name": "mask", "shape": [rows], "datatype": "INT64", "data": [1] * rows},
        ]
    }


def wait_for(claim, timeout_s: float = 30.0):
    """Return the first true value of a claim."""
    until = time.monotonic() + timeout_s
    while not (found := claim()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)
    return found
