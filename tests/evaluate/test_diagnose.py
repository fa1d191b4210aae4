import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import ingot
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import DataError
from ingot.evaluate.diagnose import (
    explain_difference,
    first_difference,
    node_errors,
    worst_nodes,
)
from ingot.models.model import Lineage
from ingot.models.onnx_format import read_onnx
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.measure import Candidate
from ingot.testing.tiny import toy_images

ONE = EngineConfig(threads=1)
FLOAT = onnx.TensorProto.FLOAT


def chain(tmp_path, name, *, second=2.0, third=3.0, last="y"):
    """Store y = x @ 1 * second * third, with a name for every tensor."""
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "one"),
        numpy_helper.from_array(np.float32(second), "two"),
        numpy_helper.from_array(np.float32(third), "three"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "two"], ["b"], name="second"),
        helper.make_node("Mul", ["b", "three"], [last], name="third"),
    ]
    ends = [helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in ("x", last)]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / f"{name}.onnx"
    onnx.save(proto, path)
    return ingot.load_model(path)


@pytest.fixture
def split():
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    return ingot.Split({"x": rows})


def sides(*models):
    return [Candidate(model.name, model, ONE) for model in models]


def test_the_node_that_makes_an_error_is_the_first_that_differs(tmp_path, split):
    errors = node_errors(*sides(chain(tmp_path, "a"), chain(tmp_path, "b", third=4.5)), split)

    assert [(e.node, round(e.before, 6), round(e.after, 6)) for e in errors] == [
        ("first", 0, 0),
        ("second", 0, 0),
        ("third", 0, 0.5),
    ]
    assert first_difference(errors, 0.3).node == "third"
    assert first_difference(errors, 0.6) is None


def test_an_error_that_is_handed_on_is_not_made_twice(tmp_path, split):
    errors = node_errors(*sides(chain(tmp_path, "a"), chain(tmp_path, "b", second=4.0)), split)

    assert [e.node for e in worst_nodes(errors, 1)] == ["second"]
    assert errors[2].before == pytest.approx(1)
    assert errors[2].growth == pytest.approx(0)


def test_a_factor_that_moved_to_the_next_node_is_no_error(tmp_path, split):
    moved = chain(tmp_path, "b", second=3.0, third=2.0)
    errors = node_errors(*sides(chain(tmp_path, "a"), moved), split)

    assert errors[1].after == pytest.approx(0.5)
    assert max(e.lasting for e in errors) < 1e-6


def test_quantized_tensors_count_as_their_readers_see_them(cnn, tmp_path):
    images, _ = toy_images(32)
    data = ingot.make_data({"calibration": ingot.Split({"image": images})}, task="none")
    small = Recipe((QuantizeStatic(),)).apply(cnn, data)
    proto = read_onnx(small.onnx_path)
    made = next(
        n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] != "image"
    )
    scale = next(w for w in proto.graph.initializer if w.name == made.input[1])
    coarse = numpy_helper.from_array(numpy_helper.to_array(scale) * 40, scale.name)
    scale.CopyFrom(coarse)
    broken = store_model(proto, lineage=Lineage("onnx"), name="broken", root=tmp_path / "store")

    errors = node_errors(*sides(cnn, broken), data.split("calibration"))
    culprit = next(n for n in read_onnx(cnn.onnx_path).graph.node if made.input[0] in n.output)
    assert worst_nodes(errors, 1)[0].node == culprit.name
    sentence = explain_difference(cnn, Candidate("b", broken, ONE), data.split("calibration"))
    assert sentence.startswith(f"Most of the error is made at {culprit.name} (")


def test_networks_without_a_common_tensor_are_refused(tmp_path, split):
    other = chain(tmp_path, "b", last="z")
    proto = read_onnx(other.onnx_path)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"a": "c", "b": "d"}.get(name, name) for name in names]
    renamed = store_model(proto, lineage=Lineage("onnx"), name="c", root=tmp_path / "store")

    with pytest.raises(DataError, match="share none"):
        node_errors(*sides(chain(tmp_path, "a"), renamed), split)


def test_an_error_is_shown_as_json_and_as_text(tmp_path, split):
    errors = node_errors(*sides(chain(tmp_path, "a"), chain(tmp_path, "b", third=4.5)), split)

    assert str(errors[2]) == "third (Mul): error 0 before, 0.5 after"
    assert errors[2].to_json() == {
        "node": "third",
        "operator": "Mul",
        "before": 0.0,
        "after": pytest.approx(0.5),
        "lasting": pytest.approx(0.5),
    }
