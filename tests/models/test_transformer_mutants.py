"""Changed networks are refused, or are what they are said to be: never taken for another."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from ingot.models.external import ExternalData
from ingot.models.transformer.recognize import recognize
from ingot.models.transformer.reference import float_forward
from ingot.models.transformer.refusal import NotRecognized
from ingot.testing.tiny import tiny_transformer

ONE = ("Erf", "Tanh", "Relu", "Neg", "Sigmoid", "Sqrt", "Abs", "Exp", "Identity", "HardSwish")
TWO = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
ENDS = (11, 9, 3)


def mutant(rng):
    """Return a network with one operator exchanged or added, or one weight changed."""
    proto = tiny_transformer(layers=int(rng.integers(1, 3)))
    graph, kind = proto.graph, rng.integers(3)
    node = graph.node[rng.integers(len(graph.node))]
    if kind == 0 and node.op_type in (*ONE, *TWO):
        node.op_type = str(rng.choice(ONE if node.op_type in ONE else TWO))
    elif kind == 1:
        floats = [w for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
        weight = floats[rng.integers(len(floats))]
        value = numpy_helper.to_array(weight) * np.float32(rng.choice([0.5, 1.01, 2, -1, 0]))
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    else:
        source, place = node.output[0], list(graph.node).index(node) + 1
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                reader.input[i] = f"{source}_new" if name == source else name
        added = helper.make_node(str(rng.choice(ONE)), [source], [f"{source}_new"])
        graph.node.insert(place, added)
    return proto


def opened(proto):
    """Return a session without optimizations, or None if the network is none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options)
    except (RuntimeError, onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        return None
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph:
        return None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some mutants overflow
def test_no_mutant_is_taken_for_another_network():
    rng, outcomes = np.random.default_rng(0), {"refused": 0, "right": 0}
    for _ in range(60):
        proto = mutant(rng)
        session = opened(proto)
        if session is None:
            continue
        try:
            found = recognize(proto, longest=12)
        except NotRecognized:
            outcomes["refused"] += 1
            continue
        ids = rng.integers(0, found.spec.vocab, (3, 11))
        mask = (np.arange(11) < np.array(ENDS)[:, None]).astype(np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask}
        given = {i.name for i in session.get_inputs()}
        theirs = session.run(None, {n: v for n, v in feeds.items() if n in given})[0]
        for row, end in enumerate(ENDS):
            ours = float_forward(found.spec, found.tensors, ids[row, :end])
            np.testing.assert_allclose(ours, theirs[row], rtol=1e-3, atol=1e-4)
        outcomes["right"] += 1

    assert outcomes["refused"] > 10  # both happen, or nothing was tried
    assert outcomes["right"] > 10


def test_weights_on_disk_are_read_where_they_lie(tmp_path):
    proto = tiny_transformer()
    with ExternalData(tmp_path, inline_below=64) as files:
        kept = [files.keep(weight) for weight in proto.graph.initializer]
        outside = onnx.ModelProto.FromString(proto.SerializeToString())
        del outside.graph.initializer[:]
        outside.graph.initializer.extend(kept)

        found = recognize(outside, files=files, longest=12)

        expected = recognize(proto, longest=12).tensors
        assert all(np.array_equal(found.tensors[name], expected[name]) for name in expected)
