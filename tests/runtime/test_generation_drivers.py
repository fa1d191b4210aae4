import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.core.errors import DataError, EngineError
from ingot.core.files import home
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import compile_ahead, open_session
from ingot.runtime.generation.decoding import CacheFull, Decoding
from ingot.runtime.generation.drivers import open_decoding
from ingot.runtime.generation.generate import generate
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.scheduler import Scheduler
from ingot.runtime.native_engine import NativeEngine
from ingot.testing.tiny import tiny_decoder

ONNX_RUNTIME = EngineConfig("onnxruntime", threads=1)
STATUS = NativeEngine().available()
needs_native = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")


@pytest.fixture
def decoder(tmp_path):
    return store_model(
        tiny_decoder(layers=2), lineage=Lineage("onnx"), name="tiny", root=tmp_path / "store"
    )


@pytest.fixture
def small(decoder, tmp_path):
    return Recipe((QuantizeWeights(),)).apply(decoder, root=tmp_path / "store")


def greedy(model, config, prompt, count):
    """Return the likeliest continuation, by whole runs of a session."""
    session, tokens = open_session(model, config), list(prompt)
    for _ in range(count):
        scores = session.run({"input_ids": np.array([tokens])})["logits"][0, -1]
        tokens.append(int(scores.argmax()))
    return tokens[len(prompt) :]


def tokens_of(pieces):
    return [piece.token for piece in pieces]


def test_any_engine_generates_what_whole_runs_of_it_give(decoder):
    decoding = open_decoding(decoder, ONNX_RUNTIME)

    found = tokens_of(generate(decoding, [3, 9, 27], Sampling(max_tokens=8)))

    assert found == greedy(decoder, ONNX_RUNTIME, [3, 9, 27], 8)
    assert isinstance(decoding, Decoding)
    assert decoding.vocab == 50
    assert "keeps no keys and values" in decoding.why


def test_texts_in_company_are_those_of_one_alone(decoder):
    decoding = open_decoding(decoder, ONNX_RUNTIME)
    how = Sampling(max_tokens=6, temperature=1.0, seed=2)
    alone = [tokens_of(generate(decoding, [at, 5], how)) for at in range(3)]

    scheduler, events = Scheduler(decoding), []
    for at in range(3):
        scheduler.add(scheduler.request([at, 5], how))
    while scheduler.is_busy:
        events += scheduler.step()

    assert [[p.token for n, p in events if n == at] for at in range(3)] == alone


def test_float_weights_run_elsewhere_and_the_reason_is_said(decoder):
    decoding = open_decoding(decoder, threads=1)

    assert decoding.config.engine == "onnxruntime"
    assert "native" in decoding.why
    assert "precision bf16" in decoding.why or not NativeEngine().available().ok


def test_a_native_engine_that_was_asked_for_is_not_replaced(decoder):
    with pytest.raises(EngineError):
        open_decoding(decoder, EngineConfig("native", threads=1))


@pytest.mark.parametrize("prompt", [1, 63, 64])
@pytest.mark.parametrize("kind", ["decoder", "small"])
def test_a_text_ends_where_the_positions_of_the_model_end(request, kind, prompt):
    decoding = open_decoding(request.getfixturevalue(kind), ONNX_RUNTIME)

    *_, last = found = list(generate(decoding, [1] * prompt, Sampling(max_tokens=100)))

    assert decoding.positions == 64
    assert (prompt + len(found), last.finish) == (65, "length")


def test_a_prompt_beyond_the_positions_of_the_model_is_refused(decoder):
    decoding = open_decoding(decoder, ONNX_RUNTIME)

    with pytest.raises(DataError, match="1 to 64 tokens"):
        generate(decoding, [1] * 65)


def test_a_graph_without_a_table_of_positions_has_no_end(tmp_path):
    model = store_model(_endless(), lineage=Lineage("onnx"), name="long", root=tmp_path / "store")
    decoding = open_decoding(model, ONNX_RUNTIME)

    assert decoding.positions > 10**6
    assert len(list(generate(decoding, [1], Sampling(max_tokens=99)))) == 99


def test_an_encoder_is_refused(encoder):
    with pytest.raises(EngineError, match="must give scores"):
        open_decoding(encoder, ONNX_RUNTIME)


def test_a_network_whose_scores_see_later_tokens_is_refused(tmp_path):
    model = store_model(_averaging(), lineage=Lineage("onnx"), name="odd", root=tmp_path / "store")

    with pytest.raises(EngineError, match="no decoder"):
        open_decoding(model, ONNX_RUNTIME)


def test_a_network_of_images_is_refused(cnn):
    with pytest.raises(EngineError, match="token ids"):
        open_decoding(cnn, ONNX_RUNTIME)


def test_a_cache_of_other_bits_is_refused(small):
    with pytest.raises(EngineError, match="8 or 32"):
        open_decoding(small, EngineConfig("native", threads=1), cache_bits=16)


@pytest.mark.parametrize("config", [None, ONNX_RUNTIME, EngineConfig("native", threads=1)])
def test_a_cache_without_room_is_refused_on_every_engine(small, config):
    with pytest.raises(EngineError, match="cache_tokens must be 1 or more; got 0"):
        open_decoding(small, config, cache_tokens=0)


def test_a_graph_of_fixed_size_is_padded(tmp_path):
    model = store_model(_fixed(6), lineage=Lineage("onnx"), name="fixed", root=tmp_path / "store")
    free = store_model(
        tiny_decoder(), lineage=Lineage("onnx"), name="free", root=tmp_path / "store"
    )
    decoding = open_decoding(model, ONNX_RUNTIME)

    found = tokens_of(generate(decoding, [3, 9], Sampling(max_tokens=20)))

    assert found == greedy(free, ONNX_RUNTIME, [3, 9], 5)


@needs_native
def test_the_native_engine_generates_what_whole_runs_of_it_give(small):
    decoding = open_decoding(small, EngineConfig("native", threads=1), cache_tokens=64)

    found = tokens_of(generate(decoding, [3, 9, 27], Sampling(max_tokens=8)))

    assert (decoding.config.engine, decoding.why) == ("native", "")
    assert found == greedy(small, EngineConfig("native", threads=1), [3, 9, 27], 8)
    decoding.close()


@needs_native
def test_a_float_model_is_generated_with_in_bf16(decoder):
    config = EngineConfig("native", "bf16", threads=1)
    decoding = open_decoding(decoder, config, cache_tokens=64)

    found = tokens_of(generate(decoding, [3, 9, 27], Sampling(max_tokens=8)))

    assert decoding.config == config
    assert found == greedy(decoder, config, [3, 9, 27], 8)
    decoding.close()


@needs_native
def test_a_compiled_form_of_bf16_is_used_and_gives_the_same_tokens(decoder, monkeypatch):
    config = EngineConfig("native", "bf16", threads=1)
    wanted = tokens_of(generate(open_decoding(decoder, config), [3, 9], Sampling(max_tokens=5)))
    compile_ahead(decoder, config)
    monkeypatch.setattr("ingot.runtime.generation.native.packed_decoder", None)

    found = tokens_of(generate(open_decoding(decoder, config), [3, 9], Sampling(max_tokens=5)))

    assert found == wanted


@needs_native
def test_the_scores_of_the_native_engine_do_not_depend_on_how_a_prompt_is_cut(small):
    decoding = open_decoding(small, EngineConfig("native", threads=1), cache_tokens=256)
    prompt = list(range(1, 40))
    whole, parts = decoding.open_sequence(), decoding.open_sequence()

    wanted = decoding.step([(whole, prompt)])[0]
    decoding.step([(parts, prompt[:7])])
    decoding.step([(parts, prompt[7:33]), (whole, [5])])
    found = decoding.step([(parts, prompt[33:])])[0]

    np.testing.assert_array_equal(found, wanted)


@needs_native
def test_a_compiled_form_is_used_and_gives_the_same_tokens(small, monkeypatch):
    config = EngineConfig("native", threads=1)
    wanted = tokens_of(generate(open_decoding(small, config), [3, 9], Sampling(max_tokens=5)))
    compile_ahead(small, config)
    monkeypatch.setattr("ingot.runtime.generation.native.packed_decoder", None)

    found = tokens_of(generate(open_decoding(small, config), [3, 9], Sampling(max_tokens=5)))

    assert found == wanted


@needs_native
def test_a_compiled_form_that_was_changed_is_passed_over(small, caplog):
    config = EngineConfig("native", threads=1)
    compile_ahead(small, config)
    packed = next((home() / "compiled").rglob("packed.safetensors"))
    packed.write_bytes(packed.read_bytes()[:-1] + b"x")

    decoding = open_decoding(small, config)

    assert decoding.vocab == 50
    assert "passed over" in caplog.text


@needs_native
def test_a_full_cache_is_told_from_other_refusals(small):
    decoding = open_decoding(small, EngineConfig("native", threads=1), cache_tokens=32)
    sequence = decoding.open_sequence()
    free = decoding.free_tokens

    with pytest.raises(CacheFull):
        decoding.step([(sequence, [1] * 60)])
    with pytest.raises(EngineError, match="must be able"):
        decoding.step([(sequence, [10**6])])

    assert decoding.free_tokens == free


@needs_native
def test_a_full_cache_of_the_native_engine_changes_no_text(small):
    how = Sampling(max_tokens=20, temperature=1.0, seed=1)
    config = EngineConfig("native", threads=1)
    wide = open_decoding(small, config, cache_tokens=1024)
    alone = [tokens_of(generate(wide, [at] * 20, how)) for at in range(4)]
    scheduler, events = Scheduler(open_decoding(small, config, cache_tokens=128)), []
    for at in range(4):
        scheduler.add(scheduler.request([at] * 20, how))

    while scheduler.is_busy:
        events += scheduler.step()

    assert [[p.token for n, p in events if n == at] for at in range(4)] == alone


def _averaging():
    """Give every token the mean of all: scores that see what comes later."""
    table = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=1),
        helper.make_node("Add", ["rows", "mean"], ["logits"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(table, "table"),
        onnx.numpy_helper.from_array(np.array([1]), "axis"),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 10])
    graph = helper.make_graph(nodes, "averaging", [ids], [out], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    proto.ir_version = 8
    return proto


def _endless():
    """Score each token by itself."""
    table = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits"])]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 10])
    weights = [onnx.numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(nodes, "endless", [ids], [out], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    proto.ir_version = 8
    return proto


def _fixed(length):
    proto = tiny_decoder()
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        sizes[0].dim_value, sizes[1].dim_value = 1, length
    return proto
