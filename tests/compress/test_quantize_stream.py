"""Models whose weights stay on disk, quantized one layer at a time."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.compress.quantize import qparams
from ingot.compress.quantize.groups import Granularity, group_scales, round_groups
from ingot.compress.quantize.nearest import BLOCK, round_nearest, round_table
from ingot.compress.quantize.qparams import sqnr_db, weight_grid
from ingot.compress.quantize.stream import quantize_stream
from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.errors import IngotError, ModelError, RecipeError
from ingot.data.data import NOTHING, Split
from ingot.data.splits import make_data
from ingot.models.external import ExternalData, is_external
from ingot.models.inspect import inspect_model
from ingot.models.load import load_model
from ingot.models.network import OnnxNetwork
from ingot.models.onnx_format import open_onnx, read_onnx
from ingot.models.store import open_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.testing.check_method import check_method
from ingot.testing.tiny import tiny_transformer, toy_tokens

SETTINGS = [
    {"bits": 4, "granularity": "k:32"},
    {"bits": 4, "granularity": "rows:16", "embeddings": 4},
    {"bits": 8, "granularity": "k:32", "embeddings": 0},
    {"bits": 8, "granularity": "row"},
]
MAPS = Path("/proc/self/maps")


def save_beside(proto, path, *, threshold=0, **options):
    """Save a graph with its weights in a file beside it, as exporters of large models do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        proto, path, save_as_external_data=True, size_threshold=threshold,
        location=f"{path.name}.weights", **options,
    )  # fmt: skip
    return path


@pytest.fixture
def beside(tmp_path):
    return save_beside(tiny_transformer(width=64, vocab=200), tmp_path / "big" / "wide.onnx")


@pytest.fixture
def stored_beside(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("ingot.models.load.INLINE_LIMIT", 1)
    return load_model(beside, root=tmp_path / "store")


def gemm_net():
    """Return Transpose + MatMul, a transposed and scaled Gemm, and weights in a Constant node."""
    rng = np.random.default_rng(3)
    weights = {
        "w1": rng.normal(size=(96, 64)), "w2": rng.normal(size=(32, 96)), "b2": np.ones(32),
    }  # fmt: skip
    constant = numpy_helper.from_array(rng.normal(size=(32, 64)).astype(np.float32), "value")
    nodes = [
        helper.make_node("Transpose", ["w1"], ["w1t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w1t"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["g"], transB=1, alpha=0.5),
        helper.make_node("Constant", [], ["w3"], value=constant),
        helper.make_node("MatMul", ["g", "w3"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    graph = helper.make_graph(nodes, "gemms", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def values_of(model):
    """Return every constant of a stored model by name."""
    proto = onnx.load(model.onnx_path)
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def whole_values(path, settings):
    """Return what QuantizeWeights stores when the whole model is in memory."""
    net = OnnxNetwork(read_onnx(path))
    proto = QuantizeWeights(**settings).apply(net, NOTHING, Run()).proto
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def answer(model, engine="onnxruntime"):
    session = open_session(model, EngineConfig(engine, threads=1))
    return session.run(toy_tokens(16, seed=5, vocab=200))["embedding"]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_numbers_are_those_of_the_method_in_memory(beside, tmp_path, settings):
    found = values_of(quantize_stream(beside, tmp_path / "store", **settings))

    wanted = whole_values(beside, settings)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_weights_that_are_rewritten_first_give_the_same_numbers(tmp_path):
    path = save_beside(gemm_net(), tmp_path / "big" / "gemms.onnx", convert_attribute=True)
    settings = {"bits": 4, "granularity": "k:32"}

    found = values_of(quantize_stream(path, tmp_path / "store", **settings))

    wanted = whole_values(path, settings)
    assert sum(name.endswith("_int4") for name in found) == 3
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_run_what_was_streamed(beside, tmp_path, engine):
    small = quantize_stream(beside, tmp_path / "store")

    whole = load_model(beside, root=tmp_path / "other")
    wanted = Recipe((QuantizeWeights(bits=4, granularity="k:32"),)).apply(whole)
    np.testing.assert_allclose(answer(small, engine), answer(wanted, engine), atol=1e-5)


def test_linear_layers_run_in_four_bits_from_the_file(beside, tmp_path):
    small = quantize_stream(beside, tmp_path / "store")

    session = open_session(small, EngineConfig("onnxruntime", threads=1))
    assert sum(node.kind == "MatMulNBits" for node in session.executed()) == 6


def test_the_weights_lie_beside_the_graph_and_start_on_pages(beside, tmp_path):
    small = quantize_stream(beside, tmp_path / "store")

    proto = onnx.load(small.onnx_path, load_external_data=False)
    outside = [t for t in proto.graph.initializer if is_external(t)]
    places = [{e.key: e.value for e in t.external_data} for t in outside]
    assert {place["location"] for place in places} == {"model.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)


def test_the_digest_covers_the_weights_beside_the_graph(beside, tmp_path):
    small = quantize_stream(beside, tmp_path / "store")
    assert open_model(small.path).digest == small.digest

    data = small.path / "model.onnx.data"
    data.write_bytes(b"\x01" + data.read_bytes()[1:])

    with pytest.raises(ModelError, match="files were changed"):
        open_model(small.path)


def test_the_same_file_gives_the_same_digest(beside, tmp_path):
    first = quantize_stream(beside, tmp_path / "one")
    second = quantize_stream(beside, tmp_path / "two")

    assert first.digest == second.digest
    assert first.lineage.parent == second.lineage.parent
    assert first.lineage.parent is not None


def test_the_source_is_left_alone(beside, tmp_path):
    before = {p.name: p.read_bytes() for p in beside.parent.iterdir()}

    quantize_stream(beside, tmp_path / "store")

    assert {p.name: p.read_bytes() for p in beside.parent.iterdir()} == before


def test_skipped_layers_stay_in_float(beside, tmp_path):
    small = quantize_stream(beside, tmp_path / "store", skip=("MatMul_up_mm", "table"))

    values = values_of(small)
    assert values["w_u"].dtype == np.float32
    assert values["table"].dtype == np.float32


def test_a_stored_model_with_weights_beside_it_is_the_same_network(beside, stored_beside):
    assert (stored_beside.path / "model.onnx.data").is_file()

    wanted = {t.name: numpy_helper.to_array(t) for t in read_onnx(beside).graph.initializer}
    found = values_of(stored_beside)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


def test_weights_in_several_files_become_one(tmp_path, monkeypatch):
    folder = tmp_path / "big"
    folder.mkdir()
    several = {"all_tensors_to_one_file": False, "size_threshold": 0}
    proto = tiny_transformer(width=64, vocab=200)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, **several)
    monkeypatch.setattr("ingot.models.load.INLINE_LIMIT", 1)

    stored = load_model(folder / "m.onnx", root=tmp_path / "store")

    proto = tiny_transformer(width=64, vocab=200)
    wanted = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert sorted(p.name for p in stored.path.glob("model.onnx*")) == [
        "model.onnx",
        "model.onnx.data",
    ]
    assert all(np.array_equal(v, wanted[n]) for n, v in values_of(stored).items())


def test_a_recipe_streams_a_model_whose_weights_lie_beside_it(stored_beside, tmp_path):
    recipe = Recipe((QuantizeWeights(bits=4, granularity="k:32"),))

    small = recipe.apply(stored_beside, root=tmp_path / "store")

    assert (small.path / "model.onnx.data").is_file()
    assert small.lineage.parent == stored_beside.digest
    assert small.lineage.data is None
    wanted = whole_values(stored_beside.onnx_path, {"bits": 4, "granularity": "k:32"})
    found = values_of(small)
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


def test_the_method_keeps_its_contract_on_weights_beside_the_graph(stored_beside):
    data = make_data({"test": Split(toy_tokens(4, vocab=200))}, task="none")

    check_method(QuantizeWeights(bits=4, granularity="k:32"), stored_beside, data)


@dataclass(frozen=True)
class Careless(QuantizeWeights):
    """Rounds weights that are on disk in another way."""

    def apply(self, net, data, run):
        chosen = replace(self, granularity="row") if net.files is not None else self
        return QuantizeWeights(chosen.bits, chosen.granularity).apply(net, data, run)


def test_a_method_whose_numbers_depend_on_where_weights_lie_breaks_its_contract(encoder):
    data = make_data({"test": Split(toy_tokens(4))}, task="none")

    with pytest.raises(AssertionError, match="must make the same constants of weights on disk"):
        check_method(Careless(bits=4, granularity="k:8"), encoder, data)


def test_a_method_that_needs_the_whole_model_refuses_one_that_is_too_large(
    stored_beside, monkeypatch
):
    from ingot.compress.quantize.dynamic import QuantizeDynamic

    monkeypatch.setattr("ingot.compress.recipe.INLINE_LIMIT", 1)

    with pytest.raises(RecipeError, match="QuantizeDynamic must have the whole model"):
        Recipe((QuantizeDynamic(),)).apply(stored_beside)


def test_a_method_that_needs_the_whole_model_still_gets_a_small_one(stored_beside):
    from ingot.compress.quantize.dynamic import QuantizeDynamic

    small = Recipe((QuantizeDynamic(),)).apply(stored_beside)

    assert not (small.path / "model.onnx.data").exists()


def test_a_method_that_reads_data_must_be_given_some(encoder):
    from ingot.compress.quantize.static import QuantizeStatic

    with pytest.raises(RecipeError, match="QuantizeStatic must be given data"):
        Recipe((QuantizeStatic(),)).apply(encoder)


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux lists what is mapped")
def test_no_weight_is_mapped_when_the_next_one_is_read(beside, tmp_path):
    mapped = []

    class Look:
        def step(self, message, done, total):
            mapped.append(MAPS.read_text().count("wide.onnx.weights"))

    with open_onnx(beside, scratch=tmp_path) as net:
        weight = net.files.read(next(filter(is_external, net.proto.graph.initializer)))
        assert "wide.onnx.weights" in MAPS.read_text()
        del weight
        QuantizeWeights(bits=4, granularity="k:32").apply(net, NOTHING, Run(progress=Look()))

    assert mapped == [0] * 6


def test_the_graph_itself_never_holds_a_large_weight(beside, tmp_path):
    with open_onnx(beside, scratch=tmp_path) as net:
        proto = QuantizeWeights(bits=4, granularity="k:32").apply(net, NOTHING, Run()).proto

        assert all(len(t.raw_data) < 4096 for t in proto.graph.initializer)


@pytest.mark.parametrize("place", ["../w.bin", "/etc/hostname", "gone.bin"])
def test_weights_outside_the_folder_or_missing_are_refused(beside, tmp_path, place):
    proto = onnx.load(beside, load_external_data=False)
    entry = next(e for e in proto.graph.initializer[0].external_data if e.key == "location")
    entry.value = place
    beside.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError, match="External data"):
        quantize_stream(beside, tmp_path / "store")
    assert list((tmp_path / "store").glob("*")) == []


def test_a_short_file_of_weights_is_refused_before_work_starts(beside, tmp_path):
    data = beside.with_name("wide.onnx.weights")
    data.write_bytes(data.read_bytes()[:-5000])

    with pytest.raises(ModelError, match="It is truncated"):
        quantize_stream(beside, tmp_path / "store")
    assert list((tmp_path / "store").glob("*")) == []


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    proto = tiny_transformer(width=64, vocab=200)
    tensor = next(t for t in proto.graph.initializer if t.name == "w_u")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 4] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, "w_u"))
    path = save_beside(proto, tmp_path / "big" / "bad.onnx")

    with pytest.raises(ModelError, match="'w_u' holds 1 NaN"):
        quantize_stream(path, tmp_path / "store")


def test_a_full_disk_is_noticed_before_work_starts(beside, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    steps = []

    class Log:
        def step(self, message, done, total):
            steps.append(message)

    with pytest.raises(IngotError, match="quantized model must fit on the disk"):
        quantize_stream(beside, tmp_path / "store", progress=Log())
    assert steps == []


def test_a_copy_that_does_not_fit_is_refused(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("ingot.models.load.INLINE_LIMIT", 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))

    with pytest.raises(IngotError, match="'wide.onnx' in the store must fit on the disk"):
        load_model(beside, root=tmp_path / "store")


def test_an_interrupted_run_leaves_nothing(beside, tmp_path):
    class Stop:
        def step(self, message, done, total):
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_stream(beside, tmp_path / "store", progress=Stop())

    assert list((tmp_path / "store").glob("**/*")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk always full")
def test_a_disk_that_fills_up_meanwhile_is_explained(tmp_path):
    value = np.ones(10_000, np.float32)
    with ExternalData(tmp_path) as files, Path("/dev/full").open("r+b", buffering=0) as full:
        files._scratch = full

        with pytest.raises(IngotError, match="must fit on the disk"):
            files.keep_array("w", value)


def test_writing_that_fails_halfway_leaves_nothing(beside, tmp_path, monkeypatch):
    def fail(self, place, target):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ExternalData, "_copy", fail)

    with pytest.raises(IngotError, match="must fit on the disk"):
        quantize_stream(beside, tmp_path / "store")
    assert list((tmp_path / "store").glob("**/*")) == []


@pytest.mark.parametrize("text", ["k:32", "row", "rows:2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_in_blocks_gives_the_bits_of_the_whole_layer(text, bits):
    weight = np.random.default_rng(0).normal(size=(2 * BLOCK // 512 + 6, 512)).astype(np.float32)
    parts = Granularity.parse(text)

    found = round_nearest(np.asfortranarray(weight), bits, parts)

    scale = group_scales(weight, bits, parts)
    integers = round_groups(weight, scale, bits, hessian=None, how="nearest")
    width = 512 // found.scale.shape[1]
    np.testing.assert_array_equal(found.integers, integers)
    np.testing.assert_array_equal(np.repeat(found.scale, width, axis=1), scale)
    assert found.sqnr_db == pytest.approx(sqnr_db(weight, integers * scale))


def test_tables_in_blocks_are_those_of_the_whole_table():
    table = np.random.default_rng(0).normal(size=(2 * BLOCK // 64 + 3, 64)).astype(np.float32)

    found = round_table(table)

    grid = weight_grid(table, 0)
    np.testing.assert_array_equal(found.integers, grid.quantize(table))
    np.testing.assert_array_equal(found.scale[:, 0], grid.scale)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_grids_in_parts_give_the_numbers_of_the_whole(axis):
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(300, 500)) * rng.uniform(0.1, 9, (300, 1))).astype(np.float32)
    assert weight.size > qparams.BLOCK
    grid = weight_grid(weight, axis)
    scale = grid.scale.astype(np.float64)
    scale = scale.reshape({None: (), 0: (-1, 1), 1: (1, -1)}[axis])

    found = grid.quantize(weight)

    wanted = np.clip(np.rint(weight.astype(np.float64) / scale), -127, 127)
    np.testing.assert_array_equal(found, wanted)
    restored = (wanted * scale).astype(np.float32)
    np.testing.assert_array_equal(grid.dequantize(found), restored)
    noise = np.linalg.norm(weight.astype(np.float64) - restored)
    ratio = np.linalg.norm(weight.astype(np.float64)) / noise
    assert sqnr_db(weight, restored) == pytest.approx(20 * np.log10(ratio))


def test_old_files_that_list_weights_as_inputs_are_streamed(tmp_path):
    proto = tiny_transformer(width=64, vocab=200)
    proto.ir_version = 3
    proto.opset_import[0].version = 17
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    path = save_beside(proto, tmp_path / "big" / "old.onnx")

    small = quantize_stream(path, tmp_path / "store")

    assert [spec.name for spec in small.signature.inputs] == ["input_ids", "attention_mask"]
    assert np.isfinite(answer(small)).all()


def test_a_table_that_is_also_the_head_becomes_a_table_and_a_layer(tmp_path, monkeypatch):
    """A tied head is a transposed table: it is turned round however large it is."""
    monkeypatch.setattr("ingot.compress.quantize.prepare.FOLD_LIMIT", 1000)
    table = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "head"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 64])
    weights = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(nodes, "tied", [ids], [logits], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = save_beside(proto, tmp_path / "big" / "tied.onnx")

    values = values_of(quantize_stream(path, tmp_path / "store"))

    assert {name: str(value.dtype) for name, value in values.items()} == {
        "table_int8": "int8", "table_scale": "float32",
        "MatMul_logits_int4": "int4", "MatMul_logits_scale": "float32",
    }  # fmt: skip


def test_inspecting_leaves_the_weights_on_disk(beside, stored_beside, tmp_path, monkeypatch):
    monkeypatch.undo()
    whole = inspect_model(load_model(beside, root=tmp_path / "other"))

    assert inspect_model(stored_beside) == whole
    assert list(stored_beside.path.glob(".*")) == []


@pytest.mark.parametrize("kind", [0, 8, 999])
def test_weights_of_an_unknown_type_are_refused(beside, tmp_path, kind):
    proto = onnx.load(beside, load_external_data=False)
    proto.graph.initializer[0].data_type = kind
    beside.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError, match="must be numbers of a known type"):
        quantize_stream(beside, tmp_path / "store")


def test_four_bit_tensors_take_half_a_byte_on_disk(tmp_path):
    odd = helper.make_tensor("t", TensorProto.INT4, [3], b"\x21\x03", raw=True)
    with ExternalData(tmp_path, inline_below=1) as files:
        kept = files.keep(odd)

        np.testing.assert_array_equal(files.read(kept).astype(int), [1, 2, 3])


def test_the_command_streams_without_data(stored_beside, tmp_path):
    from click.testing import CliRunner

    from ingot.cli.main import ingot

    out = tmp_path / "out"
    arguments = ["compress", str(stored_beside.path), "--method", "quantize-weights",
                 "--set", "bits=4", "--out", str(out), "--json"]  # fmt: skip
    done = CliRunner().invoke(ingot, arguments)

    assert done.exit_code == 0, done.output
    assert (out / "model" / "model.onnx.data").is_file()
    assert json.loads(done.stdout)["model"] == open_model(out / "model").digest
