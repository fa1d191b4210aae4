from dataclasses import replace

import numpy as np
import pytest

from ingot.core.errors import EngineError
from ingot.models.load import load_model
from ingot.runtime import cpu, torch_engine
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.torch_engine import TorchEngine
from ingot.testing.check_engine import check_engine

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402 - needs torch

from ingot_workloads.digits.model import digits_cnn  # noqa: E402 - needs torch

EAGER = EngineConfig("torch-eager", threads=1)


@pytest.fixture(autouse=True)
def _threads_of_torch():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):

    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    save_file(digits_cnn().state_dict(), folder / "weights.safetensors")
    return load_model(
        "ingot_workloads.digits.model:digits_cnn",
        weights=folder / "weights.safetensors",
        root=folder / "store",
    )


def pictures(rows=4):
    return {"image": np.random.default_rng(0).random((rows, 1, 8, 8), np.float32)}


def test_torch_eager_keeps_the_contract(digits):
    check_engine(TorchEngine(digits_cnn, compiled=False), digits, pictures())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")  # torch's own
def test_torch_compiled_keeps_the_contract(digits):
    check_engine(TorchEngine(digits_cnn, compiled=True), digits, pictures())


def test_torch_computes_what_onnxruntime_computes(digits):
    wanted = open_session(digits, EngineConfig(threads=1)).run(pictures())

    found = open_session(digits, EAGER, factory=digits_cnn).run(pictures())

    assert list(found) == list(wanted)
    np.testing.assert_allclose(found["output"], wanted["output"], atol=1e-4)


def test_torch_takes_read_only_and_reversed_arrays(digits):
    session = open_session(digits, EAGER, factory=digits_cnn)
    array = pictures()["image"]
    wanted = session.run({"image": array})["output"]
    array.setflags(write=False)

    found = session.run({"image": array[::-1]})["output"]

    np.testing.assert_allclose(found[::-1], wanted, atol=1e-5)


@pytest.mark.skipif(not cpu.has_bf16(), reason="this CPU does not multiply bf16")
def test_torch_in_bf16_answers_in_float32(digits):
    exact = open_session(digits, EAGER, factory=digits_cnn).run(pictures())["output"]

    config = replace(EAGER, precision="bf16")
    rough = open_session(digits, config, factory=digits_cnn).run(pictures())["output"]

    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max() + 0.05


def test_torch_refuses_bf16_on_a_cpu_without_it(digits, monkeypatch):
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)

    with pytest.raises(EngineError, match="bf16 must be supported by the CPU"):
        open_session(digits, replace(EAGER, precision="bf16"), factory=digits_cnn)


def test_torch_offers_bf16_only_where_the_cpu_has_it(digits, monkeypatch):
    monkeypatch.setattr(torch_engine, "has_bf16", lambda: False)

    assert TorchEngine(digits_cnn, compiled=False).precisions(digits) == ("fp32",)


def test_torch_refuses_a_model_without_torch_weights(cnn):
    with pytest.raises(EngineError, match="must have torch weights.*is ONNX only"):
        open_session(cnn, EAGER, factory=digits_cnn)


def test_torch_executes_its_leaf_modules(digits):
    nodes = open_session(digits, EAGER, factory=digits_cnn).executed()

    assert ("stem", "Conv2d") in {(n.name, n.kind) for n in nodes}
    assert not any(n.is_integer for n in nodes)


def test_a_closed_torch_session_does_not_say_what_it_executes(digits):
    session = open_session(digits, EAGER, factory=digits_cnn)
    session.close()

    with pytest.raises(EngineError, match="closed"):
        session.executed()


def test_a_missing_torch_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(torch_engine, "is_installed", lambda name: False)

    status = TorchEngine(digits_cnn, compiled=False).available()

    assert not status.ok
    assert "ingot[compress]" in status.reason


def test_compiling_without_a_compiler_is_not_available(monkeypatch):
    monkeypatch.setattr(torch_engine.shutil, "which", lambda name: None)

    assert "g++" in TorchEngine(digits_cnn, compiled=True).available().reason
    assert TorchEngine(digits_cnn, compiled=False).available().ok
