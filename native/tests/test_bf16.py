"""Weights in bf16: the layout, what becomes it, what is refused, and how near to float it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot_native import (
    Decoder,
    Encoder,
    LibraryError,
    PackedFileError,
    PackError,
    TransformerSpec,
    pack,
    read_packed,
    write_packed,
)
from ingot_native.bf16 import round_to_bf16
from ingot_native.codes import quantize_rows
from ingot_native.reference import Matrix, Net, body, forward, head, linear, pool, to_bf16
from test_decoder import GPT2
from test_encoder import SETS
from tiny_models import BERT, KINDS, random_sequences, random_tensors

ROWS = {"gpt2": GPT2, **{name: KINDS[name] for name in ("bert", "modern", "llama", "mpnet")}}


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def in_float(spec: TransformerSpec, tensors: dict, sequences: list) -> np.ndarray:
    """The network without any rounding."""
    if spec.vocab_head:
        tensors = tensors | {"lm_head.weight": tensors["embed.tokens"]}
    net = Net(spec, tensors, {"embed.tokens": Matrix(tensors["embed.tokens"])})
    bodies = [body(net, ids, np.zeros(len(ids), int)) for ids in sequences]
    return np.concatenate([head(net, pool(spec, x)) for x in bodies])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a.astype(np.float64) * b, axis=1) / lengths


def test_weights_lie_in_tiles_of_sixteen_outputs_and_two_inputs() -> None:
    tensors = random_tensors(BERT, 1)
    weight = to_bf16(tensors["layers.1.up.weight"])

    packed = pack(BERT, tensors, bits=16).tensors

    tiles = widened(packed["layers.1.up.bf16"])
    assert tiles.shape == (6, 32, 16, 2)  # 96 outputs; 48 inputs become 64
    for out, column in ((0, 0), (17, 5), (95, 47)):
        assert tiles[out // 16, column // 2, out % 16, column % 2] == weight[out, column]
    assert not tiles[:, 24:].any()
    assert np.array_equal(packed["layers.1.up.bias"], tensors["layers.1.up.bias"])
    assert np.array_equal(widened(packed["embed.tokens.bf16"]), to_bf16(tensors["embed.tokens"]))


def test_values_are_rounded_to_even_and_subnormal_ones_to_zero() -> None:
    one, step = 1.0, 2.0**-7
    halves = [one + step / 2, one + 1.5 * step, -(one + step * 0.51), 1e-39, -1e-39, 2.0**-126]

    rounded = round_to_bf16(np.array([halves], np.float32))

    want = [one, one + 2 * step, -(one + step), 0.0, -0.0, 2.0**-126]
    assert widened(rounded.bits)[0].tolist() == want


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_rounded_value_is_off_by_half_a_step_at_most(values: list[float]) -> None:
    x = np.array([values], np.float32)

    rounded = round_to_bf16(x)

    got, exact = widened(rounded.bits).astype(np.float64), x.astype(np.float64)
    is_kept = np.isfinite(got)
    bound = np.maximum(np.abs(exact) * 2.0**-8, 2.0**-126)
    assert (np.abs(got - exact) <= bound)[is_kept].all()
    assert rounded.is_finite == bool((np.abs(exact) < 3.3961775292304e38).all())


def test_weights_that_bf16_cannot_hold_are_refused_by_name() -> None:
    tensors = random_tensors(BERT, 1)
    tensors["layers.0.o.weight"][1, 2] = 3.4e38

    with pytest.raises(PackError, match=r"'layers.0.o.weight' must be below 3.3e38"):
        pack(BERT, tensors, bits=16)


def test_integers_keep_their_codes_beside_weights_in_bf16() -> None:
    tensors = random_tensors(BERT, 1)
    rounded = quantize_rows(tensors["layers.0.up.weight"])
    given_codes = {"layers.0.up.weight": rounded.codes, "layers.0.up.weight_scale": rounded.scales}

    packed = pack(BERT, tensors | given_codes, bits=16).tensors

    want = pack(BERT, tensors).tensors["layers.0.up.codes"]
    assert np.array_equal(packed["layers.0.up.codes"], want)
    assert {"layers.0.down.bf16", "layers.1.up.bf16"} <= set(packed)


def test_queries_keys_and_values_are_in_bf16_if_any_is_in_float(native: tuple[str, ...]) -> None:
    tensors = random_tensors(BERT, 1)
    rounded = quantize_rows(tensors["layers.0.k.weight"])
    mixed = tensors | {"layers.0.k.weight": rounded.codes}
    mixed["layers.0.k.weight_scale"] = rounded.scales
    sequences = random_sequences(BERT, [9, 30])

    packed = pack(BERT, mixed, bits=16)

    assert "layers.0.qkv.bf16" in packed.tensors
    with Encoder(packed) as encoder:
        got = encoder.encode(sequences)
    assert cosines(got, forward(BERT, mixed, sequences, bits=16)).min() >= 0.9999


def test_a_classifier_stays_in_float() -> None:
    spec = KINDS["roberta-classifier"]

    packed = pack(spec, random_tensors(spec, 1), bits=16).tensors

    assert "head.0.bf16" in packed
    assert packed["head.1.weight"].dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), inputs=st.integers(1, 100), size=st.floats(1e-6, 1e6))
def test_a_product_in_bf16_is_off_by_half_a_step_of_each_factor(
    seed: int, inputs: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((5, inputs)), rng.standard_t(2, (7, inputs)) * size
    net = Net(BERT, {"one.weight": weight}, {"one.weight": Matrix(to_bf16(weight), is_bf16=True)})

    got = linear(net, "one", x)

    half = 2.0**-8
    bound = (2 * half + half**2) * (np.abs(x) @ np.abs(weight).T)
    assert (np.abs(got - x @ weight.T) <= bound * 1.001 + 1e-30).all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", ROWS)
def test_answers_are_near_those_of_float(native: tuple[str, ...], kind: str, isa: str) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    spec = ROWS[kind]
    tensors, sequences = random_tensors(spec, 1), random_sequences(spec, [7, 1, 40, 13])

    with Encoder(pack(spec, tensors, bits=16), isa=isa) as encoder:
        got = encoder.encode(sequences)

    found = cosines(got, in_float(spec, tensors, sequences))
    assert found.mean() >= 0.9999
    assert found.min() >= 0.9995


@pytest.mark.parametrize("cache_bits", [32, 8])
@pytest.mark.parametrize("isa", SETS)
def test_scores_of_a_decoder_are_near_those_of_float(
    native: tuple[str, ...], isa: str, cache_bits: int
) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    tensors, (ids,) = random_tensors(GPT2, 1), random_sequences(GPT2, [60])

    with Decoder(pack(GPT2, tensors, bits=16), isa=isa, cache_bits=cache_bits) as decoder:
        got = decoder.step([(decoder.open_sequence(), ids)], every=True)

    assert cosines(got, in_float(GPT2, tensors, [ids])).mean() >= 0.9999


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    packed = pack(GPT2, random_tensors(GPT2, 3), bits=16)

    write_packed(packed, tmp_path / "a")

    again = read_packed(tmp_path / "a")
    assert set(again.tensors) == set(packed.tensors)
    for name, tensor in again.tensors.items():
        assert np.array_equal(tensor, packed.tensors[name])


def test_the_file_is_read_by_safetensors(tmp_path: Path) -> None:
    reader = pytest.importorskip("safetensors.torch")
    packed = pack(BERT, random_tensors(BERT, 3), bits=16)
    write_packed(packed, tmp_path / "a")

    tensors = reader.load_file(tmp_path / "a")

    values = tensors["layers.0.o.bf16"].float().numpy()
    assert np.array_equal(values, widened(packed.tensors["layers.0.o.bf16"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.view(np.int16), "got int16"),
        (lambda t: t[:, :4], r"must be BF16 \[6, 32, 16, 2\]; got BF16 \[6, 4, 16, 2\]"),
        (lambda t: t.astype(np.float32), "must be BF16"),
    ],
)
def test_tensors_of_another_type_or_size_are_refused(change, message: str) -> None:
    packed = pack(BERT, random_tensors(BERT, 3), bits=16)
    packed.tensors["layers.0.up.bf16"] = change(packed.tensors["layers.0.up.bf16"])

    with pytest.raises(PackError, match=message):
        write_packed(packed, "/never/written")


def test_a_weight_in_two_forms_is_refused() -> None:
    packed = pack(BERT, random_tensors(BERT, 3), bits=16)
    both = packed.tensors | {"layers.0.up.codes": np.zeros((6, 16, 16, 4), np.int8)}

    with pytest.raises(PackError, match="'layers.0.up.codes' has no place"):
        write_packed(replace(packed, tensors=both), "/never/written")


def test_values_that_are_not_finite_are_refused_when_the_encoder_is_made(
    native: tuple[str, ...], tmp_path: Path
) -> None:
    packed = pack(BERT, random_tensors(BERT, 3), bits=16)
    packed.tensors["layers.0.up.bf16"].reshape(-1)[7] = 0x7FC0

    with pytest.raises(LibraryError, match="'layers.0.up.bf16' holds a value that is not finite"):
        Encoder(packed)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    spec = replace(BERT, layers=1, vocab=9, positions=6)
    write_packed(pack(spec, random_tensors(spec, 3), bits=16), tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()

    for cut in np.linspace(0, len(whole) - 1, 100).astype(int):
        (tmp_path / "b").write_bytes(whole[:cut])
        with pytest.raises(PackedFileError):
            read_packed(tmp_path / "b")
