import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.core.errors import ModelError
from ingot.models.transformer.recognize import recognize
from ingot.models.transformer.refusal import NotRecognized
from ingot.testing.tiny import tiny_cnn, tiny_transformer

LONGEST = 32


def reason(proto):
    with pytest.raises(NotRecognized) as caught:
        recognize(proto, longest=LONGEST)
    return caught.value.reason


def node_that_makes(proto, tensor):
    return next(n for n in proto.graph.node if tensor in n.output)


def insert(proto, tensor, operator, *others, before=None, **options):
    """Put a node behind a tensor: readers, or one of them, read its result instead."""
    made = f"{tensor}_{operator}"
    for node in proto.graph.node:
        if before is None or node.output[0] == before:
            for i, name in enumerate(node.input):
                node.input[i] = made if name == tensor else name
    node = helper.make_node(operator, [tensor, *others], [made], f"added_{operator}", **options)
    place = max(
        (i + 1 for i, n in enumerate(proto.graph.node) if {tensor, *others} & set(n.output)),
        default=0,
    )
    proto.graph.node.insert(place, node)
    return made


def constant(proto, name, value):
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def test_the_untouched_network_is_recognized():
    found = recognize(tiny_transformer(layers=2), longest=LONGEST)

    assert (found.spec.layers, found.spec.pool, found.spec.position) == (2, "mean", "none")


def test_a_cnn_is_refused_at_its_first_node():
    assert "Conv (node 'Conv_c1')" in reason(tiny_cnn())


def test_an_unknown_activation_is_named():
    proto = tiny_transformer(layers=3)
    gelu = node_that_makes(proto, "gelu2")
    gelu.op_type = "HardSwish"
    del gelu.input[:]
    gelu.input.append("up2")

    assert reason(proto) == (
        "block 2, MLP: the activation between up and down is HardSwish (node 'Mul_gelu2')"
    )


def test_an_activation_of_known_operators_but_unknown_shape_is_refused():
    proto = tiny_transformer()
    for weight in proto.graph.initializer:
        if weight.name == "half":
            weight.CopyFrom(numpy_helper.from_array(np.array(0.51, np.float32), "half"))

    assert "none of gelu, gelu-tanh" in reason(proto)


def test_a_gelu_that_is_cut_far_from_zero_is_refused():
    proto = tiny_transformer()
    insert(proto, "gelu", "Clip", constant(proto, "far", np.float32(-1000)))

    assert "Clip (node 'added_Clip')" in reason(proto)


def test_a_second_output_is_refused():
    proto = tiny_transformer()
    proto.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))

    assert "2 outputs, 'embedding', 'sum'" in reason(proto)


def test_cross_attention_is_refused():
    proto = tiny_transformer()
    info = helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["batch", "sequence", 32])
    proto.graph.input.append(info)
    node_that_makes(proto, "k_mm").input[0] = "memory"
    node_that_makes(proto, "v_mm").input[0] = "memory"

    assert "'memory' has 3 axes" in reason(proto)


def test_a_third_table_that_another_input_picks_from_is_refused():
    proto = tiny_transformer()
    for name in ("more", "most"):
        info = helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        proto.graph.input.append(info)
        table = constant(proto, f"{name}_table", np.ones((9, 32), np.float32))
        proto.graph.node.insert(0, helper.make_node("Gather", [table, name], [f"{name}_rows"]))
        insert(proto, "x" if name == "more" else "x_Add", "Add", f"{name}_rows")

    assert "neither token ids, their mask nor their types" in reason(proto)


def test_keys_from_another_block_are_refused():
    proto = tiny_transformer(layers=2)
    node_that_makes(proto, "kt1").input[0] = "k"

    assert reason(proto).startswith("block 1, attention")


def test_a_mask_that_the_ids_make_is_refused():
    proto = tiny_transformer()
    cast = node_that_makes(proto, "mask")
    zero = constant(proto, "zero", np.int64(0))
    proto.graph.node.insert(0, helper.make_node("Equal", ["input_ids", zero], ["is_padding"]))
    proto.graph.node.insert(1, helper.make_node("Not", ["is_padding"], ["is_token"]))
    cast.input[0] = "is_token"

    assert "depends on token ids" in reason(proto)


def test_a_mask_that_hides_the_first_token_is_refused():
    proto = tiny_transformer()
    insert(proto, "attention_mask", "Mul", constant(proto, "nothing", np.int64(0)))

    reason(proto)


def test_scores_with_a_soft_cap_are_refused():
    proto = tiny_transformer()
    insert(proto, "s2", "Tanh", before="p")

    assert "block 0, attention" in reason(proto)


def test_probabilities_that_are_changed_are_refused():
    proto = tiny_transformer()
    insert(proto, "p", "Mul", constant(proto, "share", np.float32(0.9)))

    assert "does not read the softmax" in reason(proto)


def test_a_residual_that_is_scaled_is_refused():
    proto = tiny_transformer()
    insert(proto, "a", "Mul", constant(proto, "share", np.float32(0.9)))

    assert "does not read the sum of attention and its input" in reason(proto)


def test_ids_that_are_raised_to_a_least_one_are_refused():
    proto = tiny_transformer()
    insert(proto, "input_ids", "Max", constant(proto, "three", np.int64(3)))

    assert "no input picks rows of a table of tokens: Max" in reason(proto)


def test_a_mean_that_counts_padding_is_refused():
    proto = tiny_transformer()
    node_that_makes(proto, "sum").input[0] = "y"

    assert "their mean over what is no padding" in reason(proto)


def test_a_norm_of_another_epsilon_is_refused():
    proto = tiny_transformer(layers=2)
    norm = node_that_makes(proto, "y1")
    norm.attribute.append(helper.make_attribute("epsilon", 1e-3))

    assert "another epsilon" in reason(proto)


def test_an_operator_of_a_vendor_is_refused_by_its_name():
    proto = tiny_transformer()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node = node_that_makes(proto, "gelu")
    node.op_type, node.domain = "FastGelu", "com.microsoft"
    del node.input[1:]

    assert "FastGelu" in reason(proto)


def test_a_graph_of_fixed_batch_is_refused():
    proto = tiny_transformer()
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1

    assert "batch axis is fixed at 1" in reason(proto)


def test_a_fixed_length_is_the_longest_sequence():
    proto = tiny_transformer()
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 16

    assert recognize(proto, longest=LONGEST).spec.positions == 16


def test_weights_that_blocks_share_are_given_to_each():
    proto = tiny_transformer(layers=2)
    node_that_makes(proto, "up1_mm").input[1] = "w_u"

    found = recognize(proto, longest=LONGEST)

    first, second = (found.tensors[f"layers.{i}.up.weight"] for i in (0, 1))
    assert np.array_equal(first, second)


def test_a_refusal_is_a_model_error_that_says_what_to_do():
    with pytest.raises(ModelError, match=r"Serve it with ONNX Runtime or OpenVINO\.$"):
        recognize(tiny_cnn())


def test_the_graph_is_not_changed():
    proto = tiny_transformer()
    before = proto.SerializeToString()

    recognize(proto, longest=LONGEST)

    assert proto.SerializeToString() == before
    assert isinstance(proto, onnx.ModelProto)


def test_a_mask_that_is_taken_from_another_row_is_refused():
    proto = tiny_transformer()
    order = constant(proto, "backwards", np.array([-1], np.int64))
    start = constant(proto, "start", np.array([-1], np.int64))
    stop = constant(proto, "stop", np.array([np.iinfo(np.int64).min], np.int64))
    axis = constant(proto, "rows", np.array([0], np.int64))
    insert(proto, "attention_mask", "Slice", start, stop, axis, order)

    assert "is not the scaled scores with a mask of padding" in reason(proto)
