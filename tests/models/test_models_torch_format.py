import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ingot.core.errors import ModelError
from ingot.models.load import load_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session

torch = pytest.importorskip("torch")
LABEL = "nets_for_models:dense"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])


def state():
    from nets_for_models import dense

    return dense().state_dict()


def test_a_factory_becomes_a_model_that_gives_the_same_numbers(tmp_path):
    from nets_for_models import dense

    model = load_model(LABEL, root=tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.onnx_path)

    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], dense()(torch.from_numpy(x)).detach().numpy(), atol=1e-5
    )
    assert model.signature.inputs[0].shape == ("batch", 4)
    assert model.lineage.builder == LABEL
    assert model.weights_path is not None


def test_the_keys_of_a_networks_answer_name_the_outputs(tmp_path):
    from nets_for_models import named

    model = load_model("nets_for_models:named", root=tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.onnx_path)
    logits, hidden = session.run(["logits", "hidden"], {"x": x})
    engine = EngineConfig("torch-eager", threads=torch.get_num_threads())
    answer = open_session(model, engine, factory=named).run({"x": x})

    assert [spec.name for spec in model.signature.outputs] == ["logits", "hidden"]
    assert (logits.shape, hidden.shape) == ((3, 3), (3, 8))
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(answer["hidden"], hidden, atol=1e-5)


def test_equal_networks_have_equal_digests(tmp_path):
    assert load_model(LABEL, root=tmp_path).digest == load_model(LABEL, root=tmp_path / "b").digest


@pytest.mark.parametrize("kind", ["w.pt", "w.npz", "w.safetensors"])
def test_weights_of_every_kind_are_read_and_lose_the_parallel_prefix(tmp_path, kind):
    from safetensors.torch import save_file

    from ingot.models.torch_format import build_module

    wanted = {f"module.{k}": torch.full_like(v, 0.5) for k, v in state().items()}
    path = tmp_path / kind
    if kind == "w.pt":
        torch.save({"state_dict": wanted}, path)
    elif kind == "w.npz":
        np.savez(path, **{k: v.numpy() for k, v in wanted.items()})
    else:
        save_file(wanted, path)

    module = build_module(LABEL, path)

    assert all(bool((p == 0.5).all()) for p in module.parameters())


def test_weights_that_do_not_fit_are_listed(tmp_path):
    from ingot.models.torch_format import build_module

    wrong = state()
    wrong["extra"] = wrong.pop("head.bias")
    wrong["first.weight"] = torch.zeros(2, 2)
    torch.save(wrong, tmp_path / "w.pt")

    with pytest.raises(
        ModelError,
        match=r"1 missing: head\.bias; 1 unexpected: extra; 1 of another shape: first\.weight",
    ):
        build_module(LABEL, tmp_path / "w.pt")


def test_a_factory_must_return_a_module():
    from ingot.models.torch_format import build_module

    with pytest.raises(ModelError, match="got int"):
        build_module("nets_for_models:not_a_module", None)


def test_an_unknown_factory_gets_a_suggestion():
    with pytest.raises(ModelError, match="Did you mean 'dense'"):
        load_model("nets_for_models:dens")


def test_nan_weights_are_refused_by_name(tmp_path):
    wrong = state()
    wrong["head.bias"][0] = float("nan")
    torch.save(wrong, tmp_path / "w.pt")

    with pytest.raises(ModelError, match=r"'head\.bias' holds NaN"):
        load_model(LABEL, weights=tmp_path / "w.pt", root=tmp_path)


def test_a_stored_network_can_be_rebuilt(tmp_path):
    from nets_for_models import Dense

    from ingot.models.torch_format import rebuild_module

    module = rebuild_module(load_model(LABEL, root=tmp_path), Dense)

    assert torch.equal(module.state_dict()["head.weight"], state()["head.weight"])


def test_an_onnx_model_cannot_be_rebuilt(cnn):
    from ingot.models.torch_format import rebuild_module

    with pytest.raises(ModelError, match=r"needs weights\.safetensors"):
        rebuild_module(cnn, torch.nn.Identity)


def test_a_pt2_file_becomes_a_model(tmp_path):
    from nets_for_models import dense

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        dense().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "net.pt2")

    model = load_model(tmp_path / "net.pt2", root=tmp_path)

    assert model.signature.inputs[0].shape == ("batch", 4)
    assert model.lineage.source == "pt2"
