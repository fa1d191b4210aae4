"""What several tests of this room say in one word."""

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
