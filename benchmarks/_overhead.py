"""What Session.run adds to the bare call of its engine, in microseconds, on a tiny model."""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ingot.data.data import Array
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.testing.tiny import tiny_transformer, toy_tokens

BLOCK = 50
RESAMPLES = 2000
Call = Callable[[], object]


def measure_overhead(calls: int = 20_000) -> dict[str, dict]:
    """Return, per engine, how much longer `Session.run` takes than the bare call.

    Ours and the bare call take turns in blocks of 50; each pair of neighbouring blocks gives one
    difference of medians, so what slows the machine down slows both. The bare call is the one that
    a user of the library writes: names to arrays for ONNX Runtime, `infer(feeds,
    share_inputs=True)` of a request made beforehand, with its outputs taken, for OpenVINO.

    Args:
        calls: Calls of each kind.

    Returns:
        `{"onnxruntime": {"value", "low", "high", "unit", "n", "bare_us"}, "openvino": ...}`: the
        median difference with its 95 % bootstrap interval over pairs of blocks.
    """
    feeds = {name: array[:1] for name, array in toy_tokens().items()}
    with tempfile.TemporaryDirectory() as folder:
        model = store_model(tiny_transformer(), lineage=Lineage("onnx"), root=Path(folder))
        found = {}
        for name, make in (("onnxruntime", _bare_onnxruntime), ("openvino", _bare_openvino)):
            session = open_session(model, EngineConfig(name, threads=1))
            bare = make(model.onnx_path, feeds)
            found[name] = _difference(lambda s=session: s.run(feeds), bare, calls)
            session.close()
    return found


def _bare_onnxruntime(path: Path, feeds: Mapping[str, Array]) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run
    names = ["embedding"]
    return lambda: run(names, feeds)


def _bare_openvino(path: Path, feeds: Mapping[str, Array]) -> Call:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True).to_tuple()


def _difference(ours: Call, bare: Call, calls: int) -> dict:
    for call in (ours, bare):
        _block(call)
    gc.disable()
    try:
        pairs = []
        for i in range(max(2, calls // BLOCK)):
            times = {call: _block(call) for call in ((ours, bare) if i % 2 else (bare, ours))}
            pairs.append((times[ours], times[bare]))
    finally:
        gc.enable()
    both = np.array(pairs) / 1e3
    gaps = both[:, 0] - both[:, 1]
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(gaps, (RESAMPLES, len(gaps))), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "value": float(np.median(gaps)),
        "low": float(low),
        "high": float(high),
        "unit": "us",
        "n": len(gaps) * BLOCK,
        "bare_us": float(np.median(both[:, 1])),
    }


def _block(call: Call) -> float:
    """Return the median time of one call, in nanoseconds."""
    times = []
    for _ in range(BLOCK):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_overhead(), indent=2) + "\n")
