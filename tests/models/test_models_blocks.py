import numpy as np
import onnx
import onnxruntime

from ingot.compress.quantize.prepare import prepare
from ingot.models.blocks import drop_blocks, find_blocks
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_tokens


def _encoder(layers):
    proto = tiny_transformer(layers=layers)
    prepare(proto)
    return proto


def _answer(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, toy_tokens(4))[0]


def test_each_layer_of_a_transformer_is_a_block_of_one_run():
    blocks = find_blocks(_encoder(3))

    assert [(b.start, b.end, b.run) for b in blocks] == [
        ("x", "y", 0),
        ("y", "y1", 0),
        ("y1", "y2", 0),
    ]


def test_a_network_without_repetition_has_no_blocks():
    proto = tiny_cnn()
    prepare(proto)

    assert find_blocks(proto) == ()
    assert find_blocks(_encoder(1)) == ()


def test_layers_of_another_width_are_no_repetition():
    proto = _encoder(2)
    wide = np.zeros((32, 96), np.float32)
    for weight in proto.graph.initializer:
        if weight.name == "w_u1":
            weight.CopyFrom(onnx.numpy_helper.from_array(wide, "w_u1"))

    assert find_blocks(proto) == ()


def test_a_network_without_its_first_layer_is_one_whose_first_layer_never_was():
    proto = _encoder(2)
    blocks = find_blocks(proto)
    small = drop_blocks(proto, blocks[:1])

    only_second = tiny_transformer(layers=2)
    for node in only_second.graph.node:
        for i, name in enumerate(node.input):
            if name == "y":
                node.input[i] = "x"
    np.testing.assert_allclose(_answer(small), _answer(only_second), atol=1e-6)
    assert len(small.graph.node) == len(proto.graph.node) - len(blocks[0].nodes)
    assert not {w.name for w in small.graph.initializer} & {"w_q", "w_u"}


def test_neighbours_can_be_dropped_together_and_the_given_graph_stays():
    proto = _encoder(4)
    before = proto.SerializeToString(deterministic=True)
    small = drop_blocks(proto, find_blocks(proto)[1:3])

    onnx.checker.check_model(small)
    assert [b.start for b in find_blocks(small)] == ["x", "y"]
    assert proto.SerializeToString(deterministic=True) == before
