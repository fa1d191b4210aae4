"""Cold start in real fresh processes; what can go wrong in them."""

import importlib.util
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from fake_engines import FakeClock, FakeSession

from ingot.core.errors import EngineError
from ingot.runtime import _child
from ingot.runtime.cold_start import ColdStart, cold_start, footprint, peak_rss
from ingot.runtime.engine import EngineConfig

needs_engines = pytest.mark.skipif(
    importlib.util.find_spec("ingot.runtime.engines") is None, reason="no engines in this build"
)


@needs_engines
def test_a_fresh_process_answers_without_torch_and_tells_its_memory(cnn):
    found = cold_start(cnn, EngineConfig(threads=1), runs=1)

    assert found.seconds[0] > 0
    assert found.peak_rss_bytes[0] > 10_000_000
    assert not found.has_torch


@needs_engines
def test_a_model_that_cannot_be_opened_gives_the_last_words_of_the_process(cnn):
    (cnn.path / "signature.json").unlink()

    with pytest.raises(EngineError, match=r"exit status 1: .*ModelError.*signature\.json"):
        cold_start(cnn, EngineConfig(), runs=1)


def _replies(monkeypatch, *, seconds, rss):
    """Make every child answer from a list, on a clock that starts at zero."""
    rows = iter(zip(seconds, rss, strict=True))
    requests = []

    def run(command, **options):
        requests.append(json.loads(command[-1]))
        second, size = next(rows)
        line = json.dumps({"stamp_ns": second * 1e9, "peak_rss_bytes": size, "torch": False})
        return subprocess.CompletedProcess(command, 0, f"noise of a library\n{line}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: 0)
    return requests


def test_the_first_process_only_fills_the_page_cache(cnn, monkeypatch):
    _replies(monkeypatch, seconds=[9, 1, 3, 2], rss=[9, 1, 3, 2])
    found = cold_start(cnn, EngineConfig(), runs=3)

    assert found == ColdStart((1.0, 3.0, 2.0), (1, 3, 2), False)
    assert found.median_s == 2.0


def test_peak_memory_is_the_median_over_processes(cnn, monkeypatch):
    requests = _replies(monkeypatch, seconds=[0] * 4, rss=[99, 10, 30, 20])

    assert peak_rss(cnn, EngineConfig(), runs=3, calls=7) == 20
    assert requests[0]["calls"] == 7


def test_a_process_that_hangs_is_given_up(cnn, monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)

    with pytest.raises(EngineError, match="within 3 s"):
        cold_start(cnn, EngineConfig(), timeout_s=3)


def test_no_run_is_refused(cnn):
    with pytest.raises(EngineError, match="got runs=0"):
        cold_start(cnn, EngineConfig(), runs=0)


def test_footprint_counts_the_graph_and_the_tokenizer(cnn):
    before = footprint(cnn)
    (cnn.path / "tokenizer.json").write_bytes(b"12345")

    assert before == cnn.onnx_path.stat().st_size
    assert footprint(cnn) == before + 5


def test_peak_is_read_from_the_process_status(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    12 kB\n")

    assert _child.peak_rss(status) == 12 * 1024


def test_peak_falls_back_to_resource_usage(tmp_path):
    assert _child.peak_rss(tmp_path / "missing") > 1_000_000


def test_opening_a_stored_model_does_not_import_onnx_or_torch(cnn):
    code = (
        "import sys; from pathlib import Path; from ingot.models.store import open_model; "
        "open_model(Path(sys.argv[1])); "
        "print(sorted({'onnx', 'torch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cnn.path)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_the_child_answers_as_often_as_asked_and_reports_last(cnn, monkeypatch, tmp_path, capsys):
    clock = FakeClock()
    session = FakeSession(clock, "fake", lambda _: 1.0)
    engines = types.ModuleType("ingot.runtime.engines")
    engines.open_session = lambda model, config: session
    monkeypatch.setitem(sys.modules, "ingot.runtime.engines", engines)
    np.savez(tmp_path / "feeds.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    request = {"model": str(cnn.path), "config": EngineConfig().to_json(), "calls": 3}
    request["feeds"] = str(tmp_path / "feeds.npz")
    monkeypatch.setattr(sys, "argv", ["-c", json.dumps(request)])
    _child.main()
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    assert session.calls == 3
    assert sorted(report) == ["peak_rss_bytes", "stamp_ns", "torch"]
