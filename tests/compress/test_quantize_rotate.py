import numpy as np
import onnx
import pytest
from graph_answers import answer, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.compress.quantize._rotations import hadamard_rotation, mean_keeping_rotation
from ingot.compress.quantize.rotate import Rotate
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.run import Run
from ingot.core.errors import RecipeError
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_tokens

WIDTH, HEADS, LENGTH, VOCAB = 48, 4, 7, 40
TOKENS = {"ids": np.random.default_rng(1).integers(0, VOCAB, (24, LENGTH))}


class Decoder:
    """A pre-norm network by hand: embeddings, attention, feed-forward, final norm, head."""

    def __init__(self, seed=0, *, fused=False, biases=True, loud=1.0):
        self.rng, self.nodes, self.weights = np.random.default_rng(seed), [], {}
        self.fused, self.biases, self.row = fused, biases, 1 / loud
        table = self.rng.normal(size=(VOCAB, WIDTH))
        table[:, 5] *= loud  # one channel of the stream, against the rows that read it
        self.weight("table", table)
        self.weight("places", 0.3 * self.rng.normal(size=(LENGTH, WIDTH)))
        self.weight("last", np.array(-1), np.int64)
        self.node("Gather", "table ids", "x0")
        self.node("Add", "x0 places", "x1")
        self.node("Add", f"x1 {self.attention(self.norm('x1', 'n1'))}", "x2")
        self.node("Add", f"x2 {self.feed_forward(self.norm('x2', 'n2'))}", "x3")
        self.node("Gather", f"{self.norm('x3', 'n3')} last", "token", axis=1)
        self.linear("token", "head", WIDTH, VOCAB, bias=False)

    def weight(self, name, value, kind=np.float32):
        self.weights[name] = np.asarray(value, kind)

    def node(self, op, inputs, output, **options):
        self.nodes.append(helper.make_node(op, inputs.split(), [output], name=output, **options))
        return output

    def norm(self, source, name):
        self.weight(f"{name}_g", self.rng.normal(1, 0.3, WIDTH))
        self.weight(f"{name}_b", self.rng.normal(0, 0.3, WIDTH))
        return self.node("LayerNormalization", f"{source} {name}_g {name}_b", name, axis=-1)

    def linear(self, source, name, inner, out, *, bias=None):
        value = self.rng.normal(size=(inner, out)) / np.sqrt(inner)
        if name in ("qkv", "q", "k", "v", "up", "head"):
            value[5] *= self.row  # what reads the loud channel
        self.weight(f"w_{name}", value)
        if not (self.biases if bias is None else bias):
            return self.node("MatMul", f"{source} w_{name}", name)
        self.node("MatMul", f"{source} w_{name}", f"{name}_mm")
        self.weight(f"b_{name}", 0.3 * self.rng.normal(size=out))
        return self.node("Add", f"{name}_mm b_{name}", name)

    def attention(self, x):
        size = WIDTH // HEADS
        self.weight("split", np.array([0, LENGTH, 3, HEADS, size]), np.int64)
        self.weight("heads", np.array([0, LENGTH, HEADS, size]), np.int64)
        self.weight("join", np.array([0, LENGTH, WIDTH]), np.int64)
        if self.fused:
            self.linear(x, "qkv", WIDTH, 3 * WIDTH)
            self.node("Reshape", "qkv split", "parts")
            self.node("Transpose", "parts", "moved", perm=[2, 0, 3, 1, 4])
            for i, name in enumerate("qkv"):
                self.weight(f"at{i}", np.array(i), np.int64)
                self.node("Gather", f"moved at{i}", f"{name}h", axis=0)
        else:
            for name in "qkv":
                self.linear(x, name, WIDTH, WIDTH)
                self.node("Reshape", f"{name} heads", f"{name}r")
                self.node("Transpose", f"{name}r", f"{name}h", perm=[0, 2, 1, 3])
        self.node("Transpose", "kh", "kt", perm=[0, 1, 3, 2])
        self.node("MatMul", "qh kt", "scores")
        self.node("Softmax", "scores", "p", axis=-1)
        self.node("MatMul", "p vh", "c")
        self.node("Transpose", "c", "ct", perm=[0, 2, 1, 3])
        self.node("Reshape", "ct join", "context")
        return self.linear("context", "o", WIDTH, WIDTH)

    def feed_forward(self, x):
        self.linear(x, "up", WIDTH, 2 * WIDTH)
        self.node("Relu", "up", "act")
        return self.linear("act", "down", 2 * WIDTH, WIDTH)

    def proto(self, *, outputs=("head",)):
        made = helper.make_model(
            helper.make_graph(
                self.nodes,
                "decoder",
                [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", LENGTH])],
                [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
                [numpy_helper.from_array(v, n) for n, v in self.weights.items()],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
        )
        made.ir_version = 8
        return onnx.shape_inference.infer_shapes(made, data_prop=True)


class Vision(Decoder):
    """Patches of a picture, one pre-norm block, the mean of all rows, a head."""

    def __init__(self, seed=0):
        self.rng, self.nodes, self.weights = np.random.default_rng(seed), [], {}
        self.biases, self.row = True, 1.0
        self.weight("kernel", self.rng.normal(size=(WIDTH, 3, 4, 4)))
        self.weight("offset", self.rng.normal(size=WIDTH))
        self.weight("rows", np.array([0, WIDTH, -1]), np.int64)
        self.weight("places", self.rng.normal(size=(1, 4, WIDTH)))
        self.node("Conv", "image kernel offset", "conv", strides=[4, 4])
        self.node("Reshape", "conv rows", "flat")
        self.node("Transpose", "flat", "patches", perm=[0, 2, 1])
        self.node("Add", "patches places", "x1")
        self.node("Add", f"x1 {self.feed_forward(self.norm('x1', 'n1'))}", "x2")
        self.node("ReduceMean", self.norm("x2", "n2"), "mean", axes=[1], keepdims=0)
        self.linear("mean", "head", WIDTH, 5)

    def proto(self):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
        made = super().proto()
        made.graph.input[0].CopyFrom(image)
        return onnx.shape_inference.infer_shapes(made, data_prop=True)


def apply(proto, method=None, run=None):
    found = onnx.ModelProto.FromString(proto.SerializeToString())
    made = (method or Rotate()).apply(OnnxNetwork(found), None, run or Run()).proto
    onnx.checker.check_model(made, full_check=True)
    return made


def assert_same(made, proto, feeds=TOKENS):
    truth = answer(proto, feeds)
    np.testing.assert_allclose(answer(made, feeds), truth, atol=1e-5 * abs(truth).max())


@pytest.mark.parametrize("size", [1, 2, 3, 8, 12, 24, 32, 96])
def test_head_rotations_are_orthogonal(size):
    found = hadamard_rotation(size, np.random.default_rng(0))

    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("size", [2, 32, 64])
def test_head_rotations_of_powers_of_two_have_entries_of_one_magnitude(size):
    found = hadamard_rotation(size, np.random.default_rng(0))

    np.testing.assert_allclose(np.abs(found), 1 / np.sqrt(size))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 100), st.integers(0, 100))
def test_stream_rotations_are_orthogonal_and_keep_the_mean(size, seed):
    found = mean_keeping_rotation(size, np.random.default_rng(seed))

    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-10)
    np.testing.assert_allclose(found @ np.ones(size), 1, atol=1e-10)


def test_stream_rotations_of_powers_of_four_have_entries_of_one_magnitude():
    found = mean_keeping_rotation(64, np.random.default_rng(0))

    np.testing.assert_allclose(np.abs(found), 1 / 8)


def test_one_loud_channel_of_384_is_spread_over_all():
    found = mean_keeping_rotation(384, np.random.default_rng(0))

    assert np.abs(found).max() < 0.2


def test_layer_norm_commutes_with_a_rotation_that_keeps_the_mean():
    x = np.random.default_rng(2).normal(3, 5, (10, 24))
    rotation = mean_keeping_rotation(24, np.random.default_rng(0))

    def norm(rows):
        centred = rows - rows.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)

    np.testing.assert_allclose(norm(x @ rotation), norm(x) @ rotation, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    "method",
    [Rotate(), Rotate(stream=False), Rotate(values=False)],
    ids=["both", "values", "stream"],
)
def test_answers_of_a_pre_norm_network_stay_the_same(fused, biases, method):
    proto = Decoder(fused=fused, biases=biases).proto()

    assert_same(apply(proto, method), proto)


def test_a_convolution_that_cuts_patches_writes_to_the_stream():
    proto, run = Vision().proto(), Run()
    feeds = {"image": np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype(np.float32)}
    made = apply(proto, run=run)
    facts = dict(run.records)["stream at n1"]

    assert_same(made, proto, feeds)
    assert (facts["norms"], facts["writers"], facts["readers"]) == (2, 2, 2)
    assert np.abs(weight(made, "conv") - weight(proto, "conv")).max() > 0.1


def test_norms_hand_their_gain_and_shift_to_the_layers_that_read_them():
    made = apply(Decoder().proto())

    for name in ("n1", "n2", "n3"):
        np.testing.assert_array_equal(weight(made, name, 1), 1)
        np.testing.assert_array_equal(weight(made, name, 2), 0)


def test_everything_that_touches_the_stream_is_counted():
    run = Run()
    apply(Decoder().proto(), Rotate(values=False), run)

    facts = dict(run.records)["stream at n1"]
    # o and down write; q, k, v, up and the head read
    assert (facts["norms"], facts["writers"], facts["readers"]) == (3, 2, 5)


@pytest.mark.parametrize("fused", [False, True])
def test_each_head_keeps_what_its_two_projections_do_together(fused):
    proto = Decoder(fused=fused).proto()
    made = apply(proto, Rotate(stream=False))
    name, size = ("qkv_mm" if fused else "v_mm"), WIDTH // HEADS
    before, after = (weight(p, name)[:, -WIDTH:] for p in (proto, made))

    assert np.abs(before - after).max() > 0.1
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        np.testing.assert_allclose(
            after[:, part] @ weight(made, "o_mm")[part],
            before[:, part] @ weight(proto, "o_mm")[part],
            atol=1e-5,
        )


def test_queries_and_keys_are_left_alone():
    proto = Decoder(fused=True).proto()
    made = apply(proto, Rotate(stream=False))

    left = weight(made, "qkv_mm")[:, : 2 * WIDTH]
    np.testing.assert_array_equal(left, weight(proto, "qkv_mm")[:, : 2 * WIDTH])


@pytest.mark.parametrize("layers", [1, 2])
def test_a_post_norm_network_gets_its_values_rotated_and_says_why_no_more(layers):
    proto, tokens, run = tiny_transformer(layers=layers), toy_tokens(16), Run()
    made = apply(proto, run=run)
    reasons = [facts["left"] for _, facts in run.records if "left" in facts]

    assert_same(made, proto, tokens)
    assert sum("values" in facts.values() for _, facts in run.records) == layers
    assert any("a post-norm network" in reason for reason in reasons)


def test_a_stream_that_is_given_out_stays():
    proto, run = Decoder().proto(outputs=("head", "x3")), Run()
    made = apply(proto, run=run)

    assert dict(run.records)["n1"]["left"] == "'x3' is an output"
    np.testing.assert_array_equal(weight(made, "x0", 0), weight(proto, "x0", 0))


@pytest.mark.parametrize("output", ["n3", "pooled"])
def test_a_last_norm_that_no_layer_reads_is_rotated_back(output):
    decoder, run = Decoder(), Run()
    decoder.nodes = [n for n in decoder.nodes if n.name not in ("token", "head")]
    decoder.node("ReduceMax", "n3", "pooled", axes=[1], keepdims=0)
    proto = decoder.proto(outputs=(output,))
    made = apply(proto, run=run)

    assert dict(run.records)["stream at n1"]["rotated_back"] == 1
    assert_same(made, proto)
    assert [o.name for o in made.graph.output] == [output]


def test_a_norm_of_embeddings_alone_is_left():
    decoder, run = Decoder(), Run()
    decoder.weight("g", np.ones(WIDTH))
    decoder.weight("b", np.zeros(WIDTH))
    at = next(i for i, n in enumerate(decoder.nodes) if n.name == "x1")
    norm = helper.make_node("LayerNormalization", ["x0", "g", "b"], ["e"], name="e")
    decoder.nodes[at].input[0] = "e"
    decoder.nodes.insert(at, norm)
    apply(decoder.proto(), run=run)
    logged = dict(run.records)

    assert logged["e"]["left"] == "no linear layer reads it"
    assert logged["n1"]["left"] == "LayerNormalization 'e' writes to it"


def test_a_norm_that_layers_and_others_read_stops_the_stream():
    decoder, run = Decoder(), Run()
    decoder.node("Tanh", "n2", "side")
    apply(decoder.proto(outputs=("head", "side")), run=run)

    reason = dict(run.records)["n1"]["left"]
    assert reason == "Tanh reads the result of a norm beside linear layers"


def test_a_stream_that_an_activation_reads_stays():
    decoder, run = Decoder(), Run()
    decoder.node("Sigmoid", "x2", "gate")
    proto = decoder.proto(outputs=("head", "gate"))
    apply(proto, run=run)

    assert dict(run.records)["n1"]["left"] == "Sigmoid 'gate' reads it"


def test_values_that_are_given_out_stay():
    proto = Decoder().proto(outputs=("head", "vh"))
    with pytest.raises(RecipeError, match="'o_mm': 'vh' has other readers"):
        apply(proto, Rotate(stream=False))


@pytest.mark.parametrize("width", [32, 48])
def test_a_rotation_in_front_of_the_second_half_of_a_feed_forward_changes_no_answer(width):
    proto, tokens, run = tiny_transformer(width=width, layers=2), toy_tokens(16), Run()
    made = apply(proto, Rotate(values=False, stream=False, online=True), run)
    logged = [facts for _, facts in run.records if facts.get("rotated") == "input"]

    assert_same(made, proto, tokens)
    assert [facts["block"] for facts in logged] == [2 * width & -(2 * width)] * 2


def test_all_three_rotations_go_together():
    proto = Decoder(fused=True).proto()

    assert_same(apply(proto, Rotate(online=True)), proto)


def test_no_quantizer_takes_a_rotation_for_a_layer():
    proto, tokens = tiny_transformer(), toy_tokens(16)
    made = apply(proto, Rotate(online=True))
    data = Data({"calibration": Split(tokens)}, Task.NONE, "")
    small = QuantizeStatic(attention=True).apply(OnnxNetwork(made), data, Run()).proto

    rotation = next(n for n in small.graph.node if n.name == "gelu_rotated_blocks")
    stored = next(w for w in small.graph.initializer if w.name == rotation.input[0])
    assert stored.data_type == TensorProto.FLOAT
    assert rotation.input[1] == "gelu_blocks"
    quantized = {n.input[0] for n in small.graph.node if n.op_type == "QuantizeLinear"}
    assert "gelu_rotated" in quantized
    assert "gelu" not in quantized


def test_a_loud_channel_of_a_feed_forward_costs_less_after_rotation():
    proto = tiny_transformer()
    for found in proto.graph.initializer:
        value = numpy_helper.to_array(found).copy()
        if found.name in ("w_u", "b_u"):
            value[..., 3] *= 40
        elif found.name == "w_d":
            value[3] /= 40
        found.CopyFrom(numpy_helper.from_array(value, found.name))
    tokens, method = toy_tokens(24), Rotate(values=False, stream=False, online=True)

    assert error(apply(proto, method), INT8, tokens) < 0.6 * error(proto, INT8, tokens)


def test_the_seed_decides():
    proto = Decoder().proto()
    one, two, again = (apply(proto, run=Run(seed=s)) for s in (0, 1, 0))

    assert one.SerializeToString() == again.SerializeToString()
    assert np.abs(weight(one, "up_mm") - weight(two, "up_mm")).max() > 0.1


def test_networks_without_attention_or_a_stream_are_refused():
    with pytest.raises(RecipeError, match="got neither"):
        apply(tiny_cnn())


def test_a_recipe_that_rotates_nothing_is_refused():
    with pytest.raises(RecipeError, match="values, streams or activations"):
        Rotate(values=False, stream=False)


def error(proto, method, feeds):
    data = Data({"calibration": Split(feeds)}, Task.NONE, "")
    found = onnx.ModelProto.FromString(proto.SerializeToString())
    small = method.apply(OnnxNetwork(found), data, Run()).proto
    truth = answer(proto, feeds)
    return np.linalg.norm(answer(small, feeds) - truth) / np.linalg.norm(truth - truth.mean(axis=0))


INT8, INT4 = QuantizeStatic(observer="min-max", embeddings=0), QuantizeWeights(bits=4, embeddings=0)


@pytest.mark.parametrize(("method", "loud"), [(INT8, 40), (INT4, 1 / 10)], ids=["int8", "int4"])
def test_an_outlier_in_the_stream_or_its_weights_costs_less_after_rotation(method, loud):
    protos = [Decoder(seed, loud=loud).proto() for seed in range(3)]
    plain = sum(error(proto, method, TOKENS) for proto in protos)
    rotated = sum(error(apply(proto), method, TOKENS) for proto in protos)

    assert rotated < 0.7 * plain


@pytest.mark.parametrize("method", [INT8, INT4], ids=["int8", "int4"])
def test_a_loud_channel_of_the_values_costs_less_after_rotation(method):
    proto = tiny_transformer()
    for found in proto.graph.initializer:
        value = numpy_helper.to_array(found).copy()
        if found.name in ("w_v", "b_v"):
            value[..., 3] *= 40
        elif found.name == "w_o":
            value[3] *= 40 if method is INT4 else 1
        found.CopyFrom(numpy_helper.from_array(value, found.name))
    tokens = toy_tokens(24)

    assert error(apply(proto), method, tokens) < 0.8 * error(proto, method, tokens)


@pytest.mark.parametrize("method", [Rotate(), Rotate(online=True)])
def test_rotate_keeps_the_contract_on_an_encoder(method, encoder, tokens):
    check_method(method, encoder, ingot.make_data({"test": ingot.Split(tokens)}, task="none"))


def test_rotate_keeps_the_contract_on_a_decoder(tmp_path):
    path = tmp_path / "decoder.onnx"
    onnx.save(Decoder(fused=True).proto(), path)
    data = ingot.make_data({"test": ingot.Split(TOKENS)}, task="none")

    small = check_method(Rotate(), ingot.load_model(path), data)
    assert_same(onnx.load(small.onnx_path), Decoder(fused=True).proto())
