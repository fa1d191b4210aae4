import logging
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from onnx import TensorProto, helper

from ingot.core.errors import EngineError
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime import engines as module
from ingot.runtime import openvino_engine
from ingot.runtime.buckets import BucketSession
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import ENGINE_GROUP, engines, get_engine, open_session
from ingot.runtime.onnxruntime_engine import OnnxRuntimeEngine
from ingot.runtime.openvino_engine import OpenVinoSession


class PlugIn(OnnxRuntimeEngine):
    name = "acme"


def fail():
    raise OSError("libacme.so is not there")


def plug_in(monkeypatch, target):
    entry = EntryPoint("acme", f"{__name__}:{target}", ENGINE_GROUP)
    monkeypatch.setattr(module, "entry_points", lambda group: [entry])


def test_the_built_in_engines_come_by_name():
    assert list(engines())[:2] == ["onnxruntime", "openvino"]


def test_a_factory_adds_the_torch_engines():
    assert {"torch-eager", "torch-compile"} <= set(engines(factory=lambda: None))


def test_a_plug_in_is_found_by_its_entry_point(monkeypatch):
    plug_in(monkeypatch, "PlugIn")

    assert isinstance(get_engine("acme"), PlugIn)


@pytest.mark.parametrize("target", ["fail", "not_there"])
def test_a_plug_in_that_fails_to_load_is_logged_and_left_out(monkeypatch, caplog, target):
    plug_in(monkeypatch, target)

    with caplog.at_level(logging.ERROR):
        found = engines()

    assert list(found) == ["onnxruntime", "openvino", "native"]
    assert "engine plug-in acme cannot be loaded" in caplog.text


def test_a_plug_in_cannot_take_the_name_of_a_built_in_engine(monkeypatch):
    entry = EntryPoint("acme", f"{__name__}:PlugIn", ENGINE_GROUP)
    monkeypatch.setattr(PlugIn, "name", "onnxruntime")
    monkeypatch.setattr(module, "entry_points", lambda group: [entry])

    assert type(engines()["onnxruntime"]) is OnnxRuntimeEngine


def test_an_unknown_engine_is_refused_with_the_nearest():
    with pytest.raises(EngineError, match="Did you mean 'openvino'"):
        get_engine("openvin")


def test_a_torch_engine_without_a_factory_says_that_it_needs_one():
    with pytest.raises(EngineError, match="need the model's factory"):
        get_engine("torch-eager")


def test_an_engine_that_is_not_installed_says_how_to_get_it(cnn, monkeypatch):
    monkeypatch.setattr(openvino_engine, "is_installed", lambda name: False)

    with pytest.raises(EngineError, match=r'must be installed.*pip install "ingot\[openvino\]"'):
        open_session(cnn, EngineConfig("openvino"))


def test_without_a_config_the_default_engine_runs_the_model(cnn, images):
    session = open_session(cnn)

    assert session.config == EngineConfig("onnxruntime")
    assert np.isfinite(session.run({"image": images[0]})["logits"]).all()


def test_without_a_config_the_next_engine_runs_what_the_default_cannot(cnn, monkeypatch):
    def refuse(*_):
        raise EngineError("onnxruntime must not run this; got a test. Go on.")

    monkeypatch.setattr(OnnxRuntimeEngine, "open", refuse)

    assert isinstance(open_session(cnn), OpenVinoSession)


def test_a_model_that_no_engine_runs_is_refused_with_every_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_engine, "is_installed", lambda name: False)
    spec = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    node = helper.make_node("Foo", ["x"], ["y"], name="my_foo", domain="com.acme")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    graph = helper.make_graph([node], "g", spec[:1], spec[1:])
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model = store_model(proto, lineage=Lineage("onnx"), root=tmp_path / "store")

    with pytest.raises(EngineError) as caught:
        open_session(model)

    words = str(caught.value)
    assert "com.acme:Foo in node 'my_foo'" in words
    assert 'openvino: pip install "ingot[openvino]"' in words


def test_buckets_in_the_config_wrap_the_session(encoder):
    assert isinstance(open_session(encoder, EngineConfig(buckets=(8,))), BucketSession)
