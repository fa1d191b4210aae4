from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import EngineError
from ingot.data.data import Data, Split, Task
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime import onnxruntime_engine
from ingot.runtime.engine import EngineConfig
from ingot.runtime.onnxruntime_engine import OnnxRuntimeEngine
from ingot.testing.check_engine import check_engine

ONE = EngineConfig("onnxruntime", threads=1)


def quantized(model, inputs, root):
    data = Data({"calibration": Split(inputs)}, Task.NONE, "sha256:" + "0" * 64)
    return Recipe((QuantizeStatic(),)).apply(model, data, root=root)


def acme_model(root):
    spec = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    node = helper.make_node("Foo", ["x"], ["y"], name="my_foo", domain="com.acme")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    graph = helper.make_graph([node], "g", spec[:1], spec[1:])
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return store_model(proto, lineage=Lineage("onnx"), root=root)


def test_onnxruntime_keeps_the_contract_on_a_cnn(cnn, images):
    check_engine(OnnxRuntimeEngine(), cnn, {"image": images[0]})


def test_onnxruntime_keeps_the_contract_on_an_encoder(encoder, tokens):
    check_engine(OnnxRuntimeEngine(), encoder, tokens)


def test_onnxruntime_computes_what_the_reference_evaluator_computes(cnn, images):
    wanted = ReferenceEvaluator(str(cnn.onnx_path)).run(None, {"image": images[0]})

    found = OnnxRuntimeEngine().open(cnn, ONE).run({"image": images[0]})

    np.testing.assert_allclose(found["logits"], wanted[0], atol=1e-4)


def test_every_quantized_layer_of_a_cnn_is_an_integer_kernel_in_onnxruntime(cnn, images, tmp_path):
    small = quantized(cnn, {"image": images[0]}, tmp_path / "store")

    kinds = [n.kind for n in OnnxRuntimeEngine().open(small, ONE).executed() if n.is_integer]

    assert kinds.count("QLinearConv") == 2
    assert kinds.count("QGemm") == 1


def test_a_quantized_cnn_has_no_float_product_left_in_onnxruntime(cnn, images, tmp_path):
    small = quantized(cnn, {"image": images[0]}, tmp_path / "store")

    kinds = {n.kind for n in OnnxRuntimeEngine().open(small, ONE).executed()}

    assert not kinds & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def test_every_linear_layer_of_an_encoder_is_an_integer_kernel(encoder, tokens, tmp_path):
    small = quantized(encoder, tokens, tmp_path / "store")

    nodes = OnnxRuntimeEngine().open(small, ONE).executed()

    integer = {n.name for n in nodes if n.is_integer}
    assert integer >= {f"MatMul_{layer}_mm" for layer in ("q", "k", "v", "a", "up", "ff")}


def test_a_float_model_has_no_integer_kernel_in_onnxruntime(cnn):
    assert not any(n.is_integer for n in OnnxRuntimeEngine().open(cnn, ONE).executed())


def test_onnxruntime_names_an_unknown_operator_and_its_node(tmp_path):
    model = acme_model(tmp_path / "store")

    with pytest.raises(EngineError, match=r"com\.acme:Foo in node 'my_foo'"):
        OnnxRuntimeEngine().open(model, ONE)


def test_onnxruntime_says_what_is_wrong_with_a_broken_file(cnn):
    cnn.onnx_path.write_bytes(b"\xff\xff broken")

    with pytest.raises(EngineError, match="it says"):
        OnnxRuntimeEngine().open(cnn, ONE)


def test_onnxruntime_refuses_bf16(cnn):
    with pytest.raises(EngineError, match="must run in fp32; got 'bf16'"):
        OnnxRuntimeEngine().open(cnn, replace(ONE, precision="bf16"))


def test_onnxruntime_refuses_inputs_with_different_numbers_of_rows(encoder):
    session = OnnxRuntimeEngine().open(encoder, ONE)
    ids = np.ones((2, 4), np.int64)

    with pytest.raises(EngineError, match="Axis 'batch' must have one size"):
        session.run({"input_ids": ids, "attention_mask": np.ones((1, 4), np.int64)})


def test_onnxruntime_says_when_it_fails_on_inputs_that_fit(encoder):
    session = OnnxRuntimeEngine().open(encoder, ONE)
    beyond = np.full((1, 4), 10_000, np.int64)

    with pytest.raises(EngineError, match="it failed"):
        session.run({"input_ids": beyond, "attention_mask": np.ones_like(beyond)})


def test_a_closed_onnxruntime_session_does_not_say_what_it_executes(cnn):
    session = OnnxRuntimeEngine().open(cnn, ONE)
    session.close()

    with pytest.raises(EngineError, match="closed"):
        session.executed()


def test_a_missing_onnxruntime_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(onnxruntime_engine, "is_installed", lambda name: False)

    status = OnnxRuntimeEngine().available()

    assert not status.ok
    assert "pip install onnxruntime" in status.reason
