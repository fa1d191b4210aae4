import ctypes
import sys
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
from ingot.runtime import cpu, openvino_engine
from ingot.runtime._signal_stack import _Stack
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.openvino_engine import OpenVinoEngine
from ingot.testing.check_engine import check_engine

pytest.importorskip("openvino")
ONE = EngineConfig("openvino", threads=1)


def quantized(model, inputs, root):
    data = Data({"calibration": Split(inputs)}, Task.NONE, "sha256:" + "0" * 64)
    return Recipe((QuantizeStatic(),)).apply(model, data, root=root)


def each(session):
    """Return the sessions behind one with buckets that are open by now."""
    return [*session._fixed.values(), *([session._rest] if session._rest else [])]


def acme_model(root):
    spec = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    node = helper.make_node("Foo", ["x"], ["y"], name="my_foo", domain="com.acme")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    graph = helper.make_graph([node], "g", spec[:1], spec[1:])
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return store_model(proto, lineage=Lineage("onnx"), root=root)


def test_openvino_keeps_the_contract_on_a_cnn(cnn, images):
    check_engine(OpenVinoEngine(), cnn, {"image": images[0]})


def test_openvino_keeps_the_contract_on_an_encoder(encoder, tokens):
    check_engine(OpenVinoEngine(), encoder, tokens)


def test_openvino_keeps_the_contract_with_buckets(encoder, tokens):
    width = tokens["attention_mask"].shape[1]
    config = EngineConfig("openvino", threads=1, buckets=(width // 2, width))

    check_engine(OpenVinoEngine(), encoder, tokens, config=config)


def test_a_row_as_wide_as_a_bucket_runs_in_a_graph_of_that_shape_alone(encoder, tokens):
    width = tokens["attention_mask"].shape[1]
    config = EngineConfig("openvino", threads=1, buckets=(width,))
    session = OpenVinoEngine().open(encoder, config)
    shapes = [[tuple(i.partial_shape) for i in s._compiled.inputs] for s in each(session)]

    session.run({name: array[:1] for name, array in tokens.items()})
    after_one = len(each(session))
    session.run(tokens)

    assert {(1, width)} == {tuple(axis.get_length() for axis in s) for s in shapes[0]}
    assert (after_one, len(each(session))) == (1, 2)


@pytest.mark.parametrize("buckets", [(0, 8), (8, 4), (4, 4)])
def test_openvino_refuses_buckets_that_do_not_ascend_before_it_compiles(
    encoder, buckets, monkeypatch
):
    monkeypatch.setattr(openvino_engine, "OpenVinoSession", None)

    with pytest.raises(EngineError, match="positive and ascending"):
        OpenVinoEngine().open(encoder, EngineConfig("openvino", threads=1, buckets=buckets))


def test_openvino_ignores_buckets_where_no_mask_says_what_is_padding(cnn, images):
    config = EngineConfig("openvino", threads=1, buckets=(4,))

    session = OpenVinoEngine().open(cnn, config)

    assert isinstance(session, openvino_engine.OpenVinoSession)


def test_openvino_computes_what_the_reference_evaluator_computes(cnn, images):
    wanted = ReferenceEvaluator(str(cnn.onnx_path)).run(None, {"image": images[0]})

    found = OpenVinoEngine().open(cnn, ONE).run({"image": images[0]})

    np.testing.assert_allclose(found["logits"], wanted[0], atol=1e-4)


def test_every_quantized_layer_of_a_cnn_is_an_integer_kernel_in_openvino(cnn, images, tmp_path):
    small = quantized(cnn, {"image": images[0]}, tmp_path / "store")

    nodes = OpenVinoEngine().open(small, ONE).executed()

    products = [n for n in nodes if n.kind in {"Convolution", "FullyConnected"}]
    assert sorted(n.kind for n in products) == ["Convolution", "Convolution", "FullyConnected"]
    assert all(n.is_integer for n in products)


def test_every_linear_layer_of_an_encoder_is_an_integer_kernel_in_openvino(
    encoder, tokens, tmp_path
):
    small = quantized(encoder, tokens, tmp_path / "store")

    nodes = OpenVinoEngine().open(small, ONE).executed()

    linear = {n.name: n.is_integer for n in nodes if n.kind == "FullyConnected"}
    assert linear == {f"MatMul_{x}_mm": True for x in ("q", "k", "v", "a", "up", "ff")}


def test_openvino_does_not_count_sums_and_layout_changes_as_integer_kernels(cnn, images, tmp_path):
    small = quantized(cnn, {"image": images[0]}, tmp_path / "store")

    nodes = OpenVinoEngine().open(small, ONE).executed()

    assert {n.kind for n in nodes if n.is_integer} == {"Convolution", "FullyConnected"}


def test_a_float_model_has_no_integer_kernel_in_openvino(cnn):
    assert not any(n.is_integer for n in OpenVinoEngine().open(cnn, ONE).executed())


def test_openvino_names_an_unknown_operator_and_its_node(tmp_path):
    model = acme_model(tmp_path / "store")

    with pytest.raises(EngineError, match=r"com\.acme:Foo in node 'my_foo'"):
        OpenVinoEngine().open(model, ONE)


def test_openvino_refuses_bf16_on_a_cpu_without_it(cnn, monkeypatch):
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)

    with pytest.raises(EngineError, match="bf16 must be supported by the CPU"):
        OpenVinoEngine().open(cnn, replace(ONE, precision="bf16"))


def test_openvino_offers_bf16_only_where_the_cpu_has_it(cnn, monkeypatch):
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: False)
    without = OpenVinoEngine().precisions(cnn)
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: True)

    assert (without, OpenVinoEngine().precisions(cnn)) == (("fp32",), ("fp32", "bf16"))


@pytest.mark.skipif(not cpu.has_bf16(), reason="this CPU does not multiply bf16")
def test_openvino_in_bf16_is_near_fp32_but_not_equal(encoder, tokens):
    exact = OpenVinoEngine().open(encoder, ONE).run(tokens)["embedding"]

    rough = OpenVinoEngine().open(encoder, replace(ONE, precision="bf16")).run(tokens)["embedding"]

    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_openvino_refuses_a_precision_it_does_not_have(cnn):
    with pytest.raises(EngineError, match="must run in fp32 or bf16; got 'fp8'"):
        OpenVinoEngine().open(cnn, replace(ONE, precision="fp8"))


def test_openvino_refuses_a_mask_of_another_length_than_its_tokens(encoder):
    session = OpenVinoEngine().open(encoder, ONE)
    ids = np.ones((2, 4), np.int64)

    with pytest.raises(EngineError, match="Axis 'sequence' must have one size"):
        session.run({"input_ids": ids, "attention_mask": np.ones((2, 5), np.int64)})


def test_a_closed_openvino_session_does_not_say_what_it_executes(cnn):
    session = OpenVinoEngine().open(cnn, ONE)
    session.close()

    with pytest.raises(EngineError, match="closed"):
        session.executed()


def test_a_missing_openvino_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(openvino_engine, "is_installed", lambda name: False)

    status = OpenVinoEngine().available()

    assert not status.ok
    assert "ingot[openvino]" in status.reason


def test_a_batch_size_that_is_known_ahead_runs_in_a_graph_of_that_shape(cnn, images):
    inputs, _ = images
    plain = open_session(cnn, EngineConfig("openvino", threads=1))
    session = open_session(cnn, EngineConfig("openvino", threads=1, batch_sizes=(1, 4)))

    assert list(session._fixed) == [(1,), (4,)]
    for rows in (1, 4):
        found = session.run({"image": inputs[:rows]})
        np.testing.assert_allclose(
            found["logits"], plain.run({"image": inputs[:rows]})["logits"], atol=1e-5
        )
    assert session._rest is None
    assert session.run({"image": inputs[:3]})["logits"].shape == (3, 4)
    assert session._rest is not None


def test_batch_sizes_must_ascend(cnn):
    with pytest.raises(EngineError, match="Batch sizes must be positive and ascending"):
        open_session(cnn, EngineConfig("openvino", threads=1, batch_sizes=(4, 1)))


def test_batch_sizes_are_written_down_and_read_again():
    config = EngineConfig("openvino", threads=1, batch_sizes=(1,))

    assert EngineConfig.from_json(config.to_json()) == config
    assert config.label == "openvino fp32 x1 for 1 at once"
    assert "batch_sizes" not in EngineConfig("openvino").to_json()


def signal_stack():
    found = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.start, found.size


@pytest.mark.skipif(sys.platform != "linux", reason="the plugin replaces it on Linux")
def test_opening_leaves_the_signal_stack_as_it_was(cnn):
    before = signal_stack()

    session = OpenVinoEngine().open(cnn, EngineConfig("openvino", threads=1))

    assert signal_stack() == before
    session.close()
