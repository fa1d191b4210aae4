from dataclasses import replace

import numpy as np
import pytest

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.core.errors import EngineError
from ingot.runtime.agreement import relative_error
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import compile_ahead, open_session
from ingot.runtime.native_engine import NativeEngine, packed_decoder
from ingot.testing.check_engine import check_engine

STATUS = NativeEngine().available()
pytestmark = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")
ONE = EngineConfig("native", threads=1)
BF16 = EngineConfig("native", "bf16", threads=1)


@pytest.fixture
def small(encoder, tmp_path):
    """The tiny encoder with weights of eight bits."""
    return Recipe((QuantizeWeights(),)).apply(encoder, root=tmp_path / "store")


@pytest.fixture
def square(tokens):
    """Rows without padding."""
    rows = {name: array[:, :4].copy() for name, array in tokens.items()}
    rows["attention_mask"][:] = 1
    return rows


def test_the_native_engine_keeps_the_contract(small, square):
    check_engine(NativeEngine(), small, square)


def test_it_answers_like_the_float_model(encoder, small, tokens):
    wanted = open_session(encoder, EngineConfig(threads=1)).run(tokens)
    found = open_session(small, ONE).run(tokens)

    assert relative_error(wanted, found) < 0.05


def test_padding_changes_no_bit_of_an_answer(small, tokens):
    session = open_session(small, ONE)
    length = int(tokens["attention_mask"][0].sum())
    bare = {name: array[:1, :length] for name, array in tokens.items()}
    assert length < tokens["attention_mask"].shape[1]

    together, alone = session.run(tokens), session.run(bare)

    for name, value in alone.items():
        np.testing.assert_array_equal(together[name][:1], value)


def test_two_streams_answer_like_one(small, tokens, monkeypatch):
    monkeypatch.setattr("ingot.runtime.native_engine.thread_count", lambda asked: 2)
    monkeypatch.setattr("ingot.runtime.cpu.thread_count", lambda asked: 2)
    one = open_session(small, replace(ONE, threads=2)).run(tokens)
    two = open_session(small, replace(ONE, threads=2, streams=2)).run(tokens)

    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)


def test_a_mask_with_padding_in_front_is_refused(small, tokens):
    session = open_session(small, ONE)
    flipped = {name: np.ascontiguousarray(array[:, ::-1]) for name, array in tokens.items()}

    with pytest.raises(EngineError, match="ones, then zeros"):
        session.run(flipped)


def test_a_token_that_the_table_does_not_have_is_refused(small, square):
    session = open_session(small, ONE)
    square["input_ids"][1, 2] = 10**6

    with pytest.raises(EngineError, match="got 1000000 in sequence 1"):
        session.run(square)


def test_float_weights_in_fp32_are_refused_with_what_to_do(encoder):
    with pytest.raises(EngineError, match=r"precision bf16, or apply .* quantize-weights"):
        NativeEngine().open(encoder, ONE)
    assert NativeEngine().precisions(encoder) == ("bf16",)


def test_a_network_that_is_no_transformer_is_refused_by_its_first_misfit(cnn):
    with pytest.raises(EngineError, match="must be a transformer"):
        NativeEngine().open(cnn, ONE)
    assert NativeEngine().precisions(cnn) == ()


def test_an_encoder_is_no_decoder(small):
    with pytest.raises(EngineError, match="must be causal .* this network sees later tokens too"):
        packed_decoder(small)


def test_bf16_of_integers_alone_is_refused(small):
    with pytest.raises(EngineError, match=r"all are integers, .* Use precision fp32"):
        NativeEngine().open(small, BF16)
    assert NativeEngine().precisions(small) == ("fp32",)


def test_the_native_engine_keeps_the_contract_in_bf16(encoder, square):
    check_engine(NativeEngine(), encoder, square, config=BF16)


def test_in_bf16_it_answers_like_the_float_model(encoder, tokens):
    wanted = open_session(encoder, EngineConfig(threads=1)).run(tokens)
    found = open_session(encoder, BF16).run(tokens)

    for name, right in wanted.items():
        left, right = found[name].ravel().astype(float), right.ravel().astype(float)
        assert left @ right >= 0.9999 * np.linalg.norm(left) * np.linalg.norm(right)


def test_in_bf16_padding_changes_no_bit_of_an_answer(encoder, tokens):
    session = open_session(encoder, BF16)
    length = int(tokens["attention_mask"][0].sum())
    bare = {name: array[:1, :length] for name, array in tokens.items()}

    together, alone = session.run(tokens), session.run(bare)

    for name, value in alone.items():
        np.testing.assert_array_equal(together[name][:1], value)


def test_a_cpu_without_bf16_widens_it(encoder, tokens, monkeypatch):
    wanted = open_session(encoder, BF16).run(tokens)
    monkeypatch.setattr("ingot.runtime.cpu.has_bf16", lambda: False)
    monkeypatch.setenv("INGOT_NATIVE_ISA", "avx2")

    found = open_session(encoder, BF16).run(tokens)

    assert relative_error(wanted, found) < 0.02


def test_layers_left_in_float_run_in_bf16_beside_integers(encoder, tokens, tmp_path):
    method = QuantizeWeights(skip=("MatMul_up_mm",))
    mixed = Recipe((method,)).apply(encoder, root=tmp_path / "store")
    wanted = open_session(mixed, EngineConfig(threads=1)).run(tokens)

    session = open_session(mixed, BF16)

    kinds = {node.is_integer for node in session.executed() if node.kind == "Linear"}
    assert kinds == {True, False}
    assert relative_error(wanted, session.run(tokens)) < 0.05


def test_the_packed_form_of_bf16_gives_the_same_bits(encoder, tokens, monkeypatch):
    wanted = open_session(encoder, BF16).run(tokens)
    compile_ahead(encoder, BF16)
    monkeypatch.setattr("ingot.runtime.native_engine._recognized", None)

    found = open_session(encoder, BF16).run(tokens)

    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_packed_form_gives_the_same_bits_and_nothing_is_taken_apart(small, tokens, monkeypatch):
    wanted = open_session(small, ONE).run(tokens)
    form = compile_ahead(small, ONE)
    monkeypatch.setattr("ingot.runtime.native_engine._recognized", None)

    found = open_session(small, ONE).run(tokens)

    assert form.engine == "native"
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_only_products_with_weights_are_integer(small):
    nodes = open_session(small, ONE).executed()

    assert {node.kind: node.is_integer for node in nodes} == {"Linear": True, "Attention": False}


def test_a_machine_without_the_distribution_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ingot.runtime.native_engine.is_installed", lambda name: False)

    assert NativeEngine().available().reason == "pip install ingot-native"
