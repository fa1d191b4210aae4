import numpy as np
import onnx
import pytest
from nets_of_transformers import gap
from onnx import helper, numpy_helper

from ingot.compress.quantize.dynamic import QuantizeDynamic
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.run import Run
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.models.transformer.recognize import recognize
from ingot.testing.tiny import tiny_transformer, toy_tokens

LONGEST = 24
LINEAR = tuple(f"layers.{i}.{part}" for i in (0, 1) for part in ("q", "k", "v", "o", "up", "down"))


def quantized(method):
    data = Data({"calibration": Split(toy_tokens())}, Task.NONE, "")
    net = OnnxNetwork(tiny_transformer(layers=2))
    return method.apply(net, data, Run()).proto


@pytest.mark.parametrize(
    ("method", "width"),
    [
        (QuantizeWeights(), 0),
        (QuantizeWeights(granularity="tensor"), 0),
        (QuantizeWeights(bits=4, granularity="k:16"), 16),
        (QuantizeWeights(bits=4, granularity="row", embeddings=4), 0),
        (QuantizeWeights(bits=8, granularity="k:16", embeddings=0), 16),
    ],
    ids=["int8", "int8-tensor", "int4-k16", "int4-table", "int8-k16"],
)
def test_stored_integers_are_kept_with_their_scales(method, width):
    proto = quantized(method)

    found = recognize(proto, longest=LONGEST)

    for name in LINEAR:
        weight, scale = found.tensors[f"{name}.weight"], found.tensors[f"{name}.weight_scale"]
        assert weight.dtype == np.int8
        assert scale.shape == (len(weight), weight.shape[1] // width if width else 1)
    assert gap(found, proto, optimized=False) < 1e-5


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (4, 7)])
def test_tables_of_integers_are_kept_with_their_scales(bits, largest):
    found = recognize(quantized(QuantizeWeights(embeddings=bits)), longest=LONGEST).tensors

    exact = recognize(tiny_transformer(layers=2), longest=LONGEST).tensors["embed.tokens"]
    codes, scale = found["embed.tokens"], found["embed.tokens_scale"]
    assert codes.dtype == np.int8
    assert scale.shape == (len(codes), 1)
    assert np.abs(codes).max() == largest
    step = np.abs(exact).max(axis=1, keepdims=True) / largest
    assert (np.abs(codes * scale - exact) <= step).all()


@pytest.mark.parametrize("method", [QuantizeDynamic(), QuantizeStatic(observer="min-max")])
def test_integer_layers_have_the_integers_of_weights_that_are_only_stored(method):
    stored = recognize(quantized(QuantizeWeights()), longest=LONGEST).tensors

    found = recognize(quantized(method), longest=LONGEST).tensors

    for name in LINEAR:
        np.testing.assert_array_equal(found[f"{name}.weight"], stored[f"{name}.weight"])
        np.testing.assert_allclose(
            found[f"{name}.weight_scale"], stored[f"{name}.weight_scale"], rtol=1e-6
        )


@pytest.mark.parametrize("attention", [False, True])
def test_ranges_of_activations_are_left_out_and_said_to_be(attention):
    method = QuantizeStatic(observer="min-max", attention=attention)

    found = recognize(quantized(method), longest=LONGEST)

    assert found.notes == ("ranges of quantized activations were left out",)
    assert recognize(tiny_transformer(), longest=LONGEST).notes == ()


def test_factors_of_smoothed_inputs_go_into_the_weights():
    proto = quantized(QuantizeStatic(observer="min-max", smooth=0.5))
    exact = recognize(tiny_transformer(layers=2), longest=LONGEST).tensors

    found = recognize(proto, longest=LONGEST).tensors

    weight = found["layers.0.up.weight"]
    assert weight.dtype == np.float32
    gap_of_weights = np.abs(weight - exact["layers.0.up.weight"])
    assert gap_of_weights.max() < 0.02 * np.abs(weight).max()


def test_blocks_of_four_bits_that_a_vendor_packs_are_unpacked():
    proto, integers = tiny_transformer(), np.random.default_rng(0).integers(-7, 8, (32, 32))
    shifted = (integers + 8).astype(np.uint8).reshape(32, 2, 16)
    packed = shifted[..., 0::2] | (shifted[..., 1::2] << 4)
    scales = np.random.default_rng(1).uniform(0.01, 0.02, (32, 2)).astype(np.float32)
    node = next(n for n in proto.graph.node if n.output[0] == "q_mm")
    for name, value in (("packed", packed), ("scales", scales.reshape(-1))):
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    node.input[1] = "packed"
    node.input.append("scales")
    for key, value in (("N", 32), ("K", 32), ("bits", 4), ("block_size", 16)):
        node.attribute.append(helper.make_attribute(key, value))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    found = recognize(onnx.ModelProto.FromString(proto.SerializeToString()), longest=LONGEST)

    np.testing.assert_array_equal(found.tensors["layers.0.q.weight"], integers)
    np.testing.assert_array_equal(found.tensors["layers.0.q.weight_scale"], scales)
    assert gap(found, proto) < 1e-5
