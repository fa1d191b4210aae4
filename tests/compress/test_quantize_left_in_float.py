import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.compress.quantize.dynamic import QuantizeDynamic
from ingot.compress.quantize.left_in_float import FloatNode, left_in_float, list_left, show_left
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeGroups, QuantizeWeights
from ingot.compress.run import Run
from ingot.data.data import Data, Split, Task
from ingot.models.network import OnnxNetwork
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_images, toy_tokens

IMAGES = {"image": toy_images(32)[0]}
TOKENS = toy_tokens(16)


def left(method, proto, inputs):
    given = Data({"calibration": Split(inputs)}, Task.NONE, "digest")
    made = method.apply(OnnxNetwork(proto), given, Run()).proto
    return left_in_float(made, (method,))


def reasons(rows):
    return {row.name: row.reason for row in rows}


def test_a_cnn_that_is_integers_throughout_leaves_nothing():
    assert left(QuantizeStatic(), tiny_cnn(), IMAGES) == ()


def test_a_graph_without_integers_has_left_nothing():
    assert left_in_float(tiny_transformer(), ()) == ()


def test_what_a_transformer_leaves_is_named_with_its_reason():
    found = reasons(left(QuantizeStatic(), tiny_transformer(), TOKENS))

    assert found["Softmax_p"] == found["LayerNormalization_h"] == "no integer kernel"
    assert found["MatMul_s0"] == found["MatMul_c"] == "product of two activations"
    assert found["Add_r1"] == "beside no integer layer"


def test_biases_of_integer_layers_and_what_only_moves_values_are_not_counted():
    found = reasons(left(QuantizeStatic(), tiny_transformer(), TOKENS))

    assert {n for n in found if n.startswith("Add_")} == {"Add_s2", "Add_r1", "Add_up_1", "Add_r2"}
    assert not {"Transpose_kt", "Unsqueeze_bias3", "Unsqueeze_mask3", "Cast_mask"} & found.keys()


def test_with_attention_the_product_before_softmax_is_no_longer_left():
    found = reasons(left(QuantizeStatic(attention=True), tiny_transformer(), TOKENS))

    assert "MatMul_s0" not in found
    assert found["MatMul_c"] == "product of two activations"


def test_a_layer_and_a_table_named_in_skip_say_so():
    skip = ("MatMul_up_mm", "table")
    rows = left(QuantizeStatic(skip=skip), tiny_transformer(), TOKENS)

    assert reasons(rows)["MatMul_up_mm"] == reasons(rows)["table"] == "named in skip"
    assert [row.parameters for row in rows[:2]] == [32 * 64, 50 * 32]


def test_layers_of_other_operators_say_so():
    found = reasons(left(QuantizeStatic(operators=("Gemm",)), tiny_cnn(), IMAGES))

    assert found["Conv_c1"] == found["Add_r1"] == "left out by operators"
    assert not any(name.startswith("Gemm") for name in found)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("method", [QuantizeDynamic, QuantizeWeights, QuantizeGroups])
def test_where_only_weights_are_integers_only_layers_with_weights_are_listed(method, bits):
    assert left(method(embeddings=bits), tiny_transformer(), TOKENS) == ()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_scales_of_a_large_table_are_no_table(bits):
    assert left(QuantizeWeights(embeddings=bits), tiny_transformer(vocab=2000), TOKENS) == ()


def test_tables_left_by_choice_say_so():
    (row,) = left(QuantizeWeights(embeddings=0), tiny_transformer(), TOKENS)

    assert (row.name, row.reason) == ("table", "embeddings=0")


def test_dynamic_leaves_convolutions_with_their_weights():
    rows = left(QuantizeDynamic(), tiny_cnn(), IMAGES)

    assert [(r.operator, r.reason) for r in rows] == [("Conv", "left out by operators")] * 2
    assert rows[0].parameters == 8 * 8 * 3 * 3


def recurrent():
    """Return `x W` followed by a GRU and, in a branch, another product."""
    rng = np.random.default_rng(0)
    sizes = {"w": (16, 16), "wx": (1, 48, 16), "wh": (1, 48, 16), "v": (16, 16)}
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in sizes.items()
    ]
    branches = [_branch(name) for name in ("yes", "no")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "front"),
        helper.make_node("GRU", ["h", "wx", "wh"], ["", "state"], "gru", hidden_size=16),
        helper.make_node("If", ["flag"], ["y"], "if", then_branch=branches[0],
                         else_branch=branches[1]),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "rows", 16]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "rows", 16])
    graph = helper.make_graph(nodes, "recurrent", inputs, [output], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(proto)
    return proto


def _branch(name):
    node = helper.make_node("MatMul", ["state", "v"], [f"{name}_out"], f"inner_{name}")
    out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
    return helper.make_graph([node], name, [], [out])


def test_an_operator_without_an_integer_kernel_is_named_even_if_only_weights_are_integers():
    rows = left(QuantizeWeights(), recurrent(), {})

    assert rows[0] == FloatNode("gru", "GRU", "no integer kernel", 2 * 48 * 16)


def test_layers_inside_a_branch_are_named():
    found = reasons(left(QuantizeWeights(), recurrent(), {}))

    assert found["inner_yes"] == found["inner_no"] == "inside a branch or loop"
    assert "front" not in found


def test_weights_of_half_precision_are_named():
    proto = tiny_cnn()
    graph = proto.graph
    node = next(n for n in graph.node if n.op_type == "Conv")
    weight = next(w for w in graph.initializer if w.name == node.input[1])
    half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "half")
    graph.initializer.append(half)
    graph.node.insert(0, helper.make_node("Relu", ["half"], ["positive"], "r"))
    graph.node.insert(1, helper.make_node("Cast", ["positive"], ["wide"], "w", to=1))
    node.input[1] = "wide"

    found = reasons(left(QuantizeStatic(), proto, IMAGES))

    assert found[node.name or "Conv_c1"] == "weights are no float32 constants"


def test_counts_are_by_reason_and_operator():
    rows = [
        FloatNode("a", "Softmax", "no integer kernel", 0),
        FloatNode("b", "Conv", "named in skip", 9),
        FloatNode("c", "Softmax", "no integer kernel", 0),
    ]

    assert show_left(rows) == "named in skip: 1 Conv; no integer kernel: 2 Softmax"
    assert show_left([]) == list_left([]) == "nothing"
