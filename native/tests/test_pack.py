"""Packing: the layout, the rounding, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from ingot_native import Encoder, Packed, PackError, pack
from ingot_native.codes import quantize_rows
from ingot_native.reference import forward
from tiny_models import BERT, KINDS, random_sequences, random_tensors


def test_weights_lie_in_tiles_of_sixteen_outputs_and_four_inputs() -> None:
    tensors = random_tensors(BERT, 1)
    rounded = quantize_rows(tensors["layers.1.down.weight"])
    codes, scales = rounded.codes, rounded.scales[:, 0]

    packed = pack(BERT, tensors).tensors

    tiles = packed["layers.1.down.codes"]
    assert tiles.shape == (3, 32, 16, 4)  # 48 outputs; 96 inputs become 128
    for out, column in ((0, 0), (17, 5), (47, 95)):
        assert tiles[out // 16, column // 4, out % 16, column % 4] == codes[out, column]
    assert not tiles[:, 24:].any()
    assert np.array_equal(packed["layers.1.down.scales"], scales)
    assert np.array_equal(packed["layers.1.down.sums"], codes.sum(axis=1))


def test_queries_keys_and_values_are_one_matrix() -> None:
    tensors = random_tensors(BERT, 1)

    packed = pack(BERT, tensors).tensors

    want = [tensors[f"layers.0.{part}.bias"] for part in "qkv"]
    assert np.array_equal(packed["layers.0.qkv.bias"], np.concatenate(want))


def test_codes_are_rounded_to_even_with_the_largest_at_127() -> None:
    rounded = quantize_rows(np.array([[-254.0, 1.0, 3.0], [0, 0, 0]], np.float32))

    assert rounded.codes.tolist() == [[-127, 0, 2], [0, 0, 0]]
    assert rounded.scales.tolist() == [[2.0], [1.0]]


def test_integer_weights_keep_their_codes() -> None:
    tensors = random_tensors(BERT, 1)
    plain = pack(BERT, tensors)
    for name in ("embed.tokens", "layers.0.q.weight", "layers.1.up.weight"):
        rounded = quantize_rows(tensors[name])
        tensors[name], tensors[f"{name}_scale"] = rounded.codes, rounded.scales

    packed = pack(BERT, tensors)

    for name, tensor in plain.tensors.items():
        assert np.array_equal(packed.tensors[name], tensor)


def test_integer_weights_in_groups_are_rounded_again() -> None:
    tensors = random_tensors(BERT, 1)
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (96, 48)).astype(np.int8)
    scales = rng.uniform(0.5, 1, (96, 3)).astype(np.float32)
    floats = (codes * np.repeat(scales, 16, axis=1)).astype(np.float32)
    want = pack(BERT, tensors | {"layers.0.up.weight": floats}).tensors["layers.0.up.codes"]

    packed = pack(BERT, tensors | {"layers.0.up.weight": codes, "layers.0.up.weight_scale": scales})

    assert np.array_equal(packed.tensors["layers.0.up.codes"], want)


def test_small_head_layers_stay_in_float() -> None:
    spec = KINDS["roberta-classifier"]

    packed = pack(spec, random_tensors(spec, 1))

    assert packed.head_widths == (70, 5)
    assert "head.0.codes" in packed.tensors
    assert packed.tensors["head.1.weight"].shape == (5, 70)


def test_a_float_token_table_is_kept_when_asked_for(native: tuple[str, ...]) -> None:
    tensors = random_tensors(BERT, 1)
    rounded = quantize_rows(tensors["embed.tokens"])
    table = rounded.codes * rounded.scales
    sequences = random_sequences(BERT, [9, 30])
    packed = pack(BERT, tensors | {"embed.tokens": table}, float_tokens=True)

    with Encoder(packed) as floats, Encoder(pack(BERT, tensors)) as codes_only:
        assert packed.tensors["embed.tokens.weight"].dtype == np.float32
        assert np.allclose(floats.encode(sequences), codes_only.encode(sequences), atol=1e-6)


def test_a_relative_network_may_have_a_position_table(native: tuple[str, ...]) -> None:
    spec = KINDS["mpnet"]
    tensors = random_tensors(spec, 2)
    without = {name: value for name, value in tensors.items() if name != "embed.positions"}
    sequences = random_sequences(spec, [11])

    with Encoder(pack(spec, without)) as encoder:
        got = encoder.encode(sequences)

    assert np.abs(got - forward(spec, without, sequences)).max() < 2e-2
    assert np.abs(got - forward(spec, tensors, sequences)).max() > 2e-2


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    tensors = {name: tensor.astype(np.float64) for name, tensor in random_tensors(BERT, 1).items()}
    tensors["layers.1.o.weight"][3, 4] = value

    with pytest.raises(PackError, match=r"'layers.1.o.weight' must be finite; got .* at \[3, 4\]"):
        pack(BERT, tensors)


def test_missing_wrong_and_unknown_tensors_are_refused_by_name() -> None:
    tensors = random_tensors(BERT, 1)
    missing = {name: value for name, value in tensors.items() if name != "embed.norm.weight"}
    turned = tensors | {"layers.0.up.weight": tensors["layers.0.up.weight"].T}

    with pytest.raises(PackError, match="'embed.norm.weight' must be there"):
        pack(BERT, missing)
    with pytest.raises(
        PackError, match=r"'layers.0.up.weight' must be float \[96, 48\]; got float32 \[48, 96\]"
    ):
        pack(BERT, turned)
    with pytest.raises(PackError, match="'lm_head.weight' has no place"):
        pack(BERT, tensors | {"lm_head.weight": np.zeros((50, 48), np.float32)})
    with pytest.raises(PackError, match=r"'layers.0.q.weight_scale' must be there"):
        pack(BERT, tensors | {"layers.0.q.weight": np.zeros((48, 48), np.int8)})


def test_packed_tensors_that_do_not_fit_are_refused_before_the_library_sees_them(
    native: tuple[str, ...],
) -> None:
    packed = pack(BERT, random_tensors(BERT, 1))
    short = packed.tensors | {"layers.0.up.bias": packed.tensors["layers.0.up.bias"][:16]}

    with pytest.raises(PackError, match=r"'layers.0.up.bias' must be F32 \[96\]; got F32 \[16\]"):
        Encoder(Packed(packed.spec, (), short))
    with pytest.raises(PackError, match="spec.layers"):
        Encoder(Packed(replace(BERT, layers=-1), (), packed.tensors))
