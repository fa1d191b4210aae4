"""Four bits: the layout, what becomes it, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingot_native import (
    Encoder,
    Packed,
    PackedFileError,
    PackError,
    pack,
    read_packed,
    write_packed,
)
from ingot_native.codes import quantize_groups
from ingot_native.reference import forward, rounded_matrices
from tiny_models import BERT, KINDS, random_sequences, random_tensors

WIDE = replace(BERT, hidden=64, heads=4, kv_heads=4, inner=128, layers=1)
DECODER = replace(
    KINDS["llama"], hidden=64, inner=128, head_dim=16, pool="tokens", vocab=70,
    vocab_head=True, normalize=False,
)  # fmt: skip


def in_groups(rows: int, inputs: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of four bits and scales that half precision keeps."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (rows, inputs)).astype(np.int8)
    scales = rng.integers(1, 1025, (rows, groups)) / 1024
    scales[:, 0] = 1
    return codes, (scales * rng.uniform(0.5, 2, (rows, 1)).astype(np.float32)).astype(np.float32)


def with_groups(tensors: dict, name: str, groups: int, seed: int = 0) -> dict:
    codes, scales = in_groups(*tensors[name].shape, groups, seed)
    return tensors | {name: codes, f"{name}_scale": scales}


def unpacked(tensors: dict, name: str, rows: int) -> np.ndarray:
    """Values of a matrix in four bits, one code after another as the layout says."""
    tiles, ratios = tensors[f"{name}.codes4"], tensors[f"{name}.ratios"].astype(np.float64)
    values = np.zeros((rows, tiles.shape[1] * 8))
    group = values.shape[1] // ratios.shape[1]
    for out in range(rows):
        for column in range(values.shape[1]):
            byte = int(tiles[out // 16, column // 8, out % 16, column % 4])
            code = (byte >> 4 if column % 8 >= 4 else byte & 15) - 8
            ratio = ratios[out // 16, column // group, out % 16]
            values[out, column] = code * ratio * float(tensors[f"{name}.scales"][out])
    return values


def floats_of(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return codes * np.repeat(scales.astype(np.float64), codes.shape[1] // scales.shape[1], axis=1)


@pytest.mark.parametrize(("groups", "group"), [(4, 32), (2, 32), (1, 128)])
def test_integers_in_groups_are_packed_in_four_bits_as_they_are(groups: int, group: int) -> None:
    tensors = with_groups(random_tensors(WIDE, 1), "layers.0.down.weight", groups)
    want = floats_of(tensors["layers.0.down.weight"], tensors["layers.0.down.weight_scale"])

    packed = pack(WIDE, tensors).tensors

    assert packed["layers.0.down.codes4"].shape == (4, 16, 16, 4)
    assert packed["layers.0.down.ratios"].shape == (4, 128 // group, 16)
    np.testing.assert_allclose(unpacked(packed, "layers.0.down", 64), want, rtol=1e-6)
    assert "layers.0.down.codes" not in packed


def test_outputs_that_fill_a_tile_have_stored_zeros_and_no_scale() -> None:
    spec = replace(WIDE, inner=40)
    tensors = with_groups(random_tensors(spec, 1), "layers.0.up.weight", 2)

    packed = pack(spec, tensors).tensors

    assert packed["layers.0.up.codes4"].shape == (3, 8, 16, 4)
    assert (packed["layers.0.up.codes4"][2, :, 8:] == 0x88).all()
    assert not packed["layers.0.up.scales"][40:].any()
    assert not packed["layers.0.up.ratios"][2, :, 8:].any()


def test_float_weights_become_four_bits_when_asked_for() -> None:
    tensors = random_tensors(WIDE, 1)

    packed = pack(WIDE, tensors, bits=4, group=128).tensors

    for name, group in (("o", 32), ("up", 32), ("down", 128)):  # 128 do not divide 64 inputs
        weight = tensors[f"layers.0.{name}.weight"]
        half_steps = np.abs(weight.reshape(len(weight), -1, group)).max(axis=2) / 14
        bound = np.repeat(half_steps, group, axis=1) * 1.01 + 1e-9  # shares are half precision
        gap = np.abs(unpacked(packed, f"layers.0.{name}", len(weight)) - weight)
        assert (gap <= bound).all()


def test_weights_whose_inputs_no_group_divides_stay_in_eight_bits() -> None:
    packed = pack(BERT, random_tensors(BERT, 1), bits=4).tensors

    assert "layers.0.up.codes" in packed  # 48 inputs
    assert "layers.0.down.codes4" in packed  # 96 inputs


def test_a_row_of_zeros_is_zero_and_its_neighbours_are_not() -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[1, 3] = -7.0

    rounded = quantize_groups(weight, 32)

    assert rounded.scales.tolist() == [[0, 0], [1, 0]]
    assert rounded.codes[1, 3] == -7
    assert np.count_nonzero(rounded.codes) == 1


def test_one_part_in_eight_bits_takes_queries_keys_and_values_with_it() -> None:
    tensors = random_tensors(WIDE, 1)
    for part in "qk":
        tensors = with_groups(tensors, f"layers.0.{part}.weight", 2)
    alike = with_groups(tensors, "layers.0.v.weight", 2)

    assert "layers.0.qkv.codes" in pack(WIDE, tensors).tensors
    assert "layers.0.qkv.codes4" in pack(WIDE, alike).tensors


def test_eight_bits_are_had_for_the_asking() -> None:
    tensors = with_groups(random_tensors(WIDE, 1), "layers.0.down.weight", 1)

    packed = pack(WIDE, tensors, bits=8).tensors

    tiles = packed["layers.0.down.codes"]  # one scale per row: its codes are kept
    assert tiles[1, 5, 3, 2] == tensors["layers.0.down.weight"][19, 22]


def test_a_scale_below_zero_goes_to_eight_bits() -> None:
    tensors = with_groups(random_tensors(WIDE, 1), "layers.0.down.weight", 4)
    tensors["layers.0.down.weight_scale"] *= -1

    assert "layers.0.down.codes" in pack(WIDE, tensors).tensors


def test_other_bits_and_groups_are_refused() -> None:
    with pytest.raises(PackError, match="bits must be 4, 8 or 16, group 32 or 128; got 5 and 32"):
        pack(WIDE, random_tensors(WIDE, 1), bits=5)
    with pytest.raises(PackError, match="got 4 and 64"):
        pack(WIDE, random_tensors(WIDE, 1), bits=4, group=64)


def test_the_weights_of_the_reference_are_those_that_are_packed() -> None:
    tensors = random_tensors(DECODER, 3)

    packed = pack(DECODER, tensors, bits=4).tensors

    matrices = rounded_matrices(DECODER, tensors, bits=4)
    joint = np.concatenate([matrices[f"layers.0.{part}.weight"].values for part in "qkv"])
    np.testing.assert_allclose(unpacked(packed, "layers.0.qkv", len(joint)), joint, rtol=1e-6)
    head = matrices["embed.tokens"]
    np.testing.assert_allclose(unpacked(packed, "head.0", 70), head.values, rtol=1e-6)
    assert head.group == matrices["layers.0.q.weight"].group == 32


def test_a_table_that_scores_the_vocabulary_is_kept_once() -> None:
    tensors = random_tensors(DECODER, 3)
    untied = tensors | {"lm_head.weight": tensors["embed.tokens"]}

    for bits, form in ((8, "codes"), (4, "codes4")):
        packed = pack(DECODER, tensors, bits=bits).tensors
        assert not [name for name in packed if name.startswith("embed.tokens")]
        assert f"head.0.{form}" in packed
    assert "embed.tokens.codes" in pack(DECODER, untied).tensors


def test_tied_tokens_are_read_from_the_head(native: tuple[str, ...]) -> None:
    tensors = random_tensors(DECODER, 3)
    untied = tensors | {"lm_head.weight": tensors["embed.tokens"]}
    sequences = random_sequences(DECODER, [9, 3])

    with Encoder(pack(DECODER, tensors)) as one, Encoder(pack(DECODER, untied)) as two:
        assert np.array_equal(one.encode(sequences), two.encode(sequences))


def test_a_token_table_in_four_bits_gives_its_rows(native: tuple[str, ...]) -> None:
    tensors = random_tensors(BERT, 1)
    codes, scales = in_groups(50, 48, 1)
    small = tensors | {"embed.tokens": codes, "embed.tokens_scale": scales}
    sequences = random_sequences(BERT, [9, 30])

    packed = pack(BERT, small)

    bytes_of_row = packed.tensors["embed.tokens.codes4"][7]
    assert bytes_of_row[5] == codes[7, 5] + 8 + 16 * (codes[7, 29] + 8)
    in_float = pack(BERT, tensors | {"embed.tokens": codes * scales}, float_tokens=True)
    with Encoder(packed) as one, Encoder(in_float) as other:
        assert np.array_equal(one.encode(sequences), other.encode(sequences))
    assert np.abs(forward(BERT, small, sequences) - one_answer(packed, sequences)).max() < 2e-2


def one_answer(packed: Packed, sequences: list[np.ndarray]) -> np.ndarray:
    with Encoder(packed) as encoder:
        return encoder.encode(sequences)


def test_a_file_of_four_bits_is_read_as_it_was_written(tmp_path: Path) -> None:
    packed = pack(DECODER, random_tensors(DECODER, 3), bits=4)

    write_packed(packed, tmp_path / "a")

    again = read_packed(tmp_path / "a")
    assert set(again.tensors) == set(packed.tensors)
    for name, tensor in again.tensors.items():
        assert np.array_equal(tensor, packed.tensors[name])
        assert tensor.dtype == packed.tensors[name].dtype


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.0.up.ratios", np.nan, r"'layers.0.up.ratios' must be between 0 and 1; got nan"),
        ("layers.0.up.ratios", -0.5, "must be between 0 and 1; got -0.5"),
        ("layers.0.up.ratios", 1.001, "must be between 0 and 1; got 1.0009765625"),
        ("layers.0.up.scales", np.inf, r"'layers.0.up.scales' must be finite; got inf at \[3\]"),
    ],
)
def test_scales_that_no_weights_have_are_refused(
    tmp_path: Path, name: str, value: float, message: str
) -> None:
    packed = pack(DECODER, random_tensors(DECODER, 3), bits=4)
    write_packed(packed, tmp_path / "a")
    place = read_packed(tmp_path / "a").tensors[name]
    data = bytearray((tmp_path / "a").read_bytes())
    begin = data.index(place.tobytes())
    item = np.array(value, place.dtype).tobytes()
    data[begin + 3 * len(item) : begin + 4 * len(item)] = item
    (tmp_path / "a").write_bytes(bytes(data))

    with pytest.raises(PackedFileError, match=message):
        read_packed(tmp_path / "a")
    packed.tensors[name].reshape(-1)[3] = value
    with pytest.raises(PackError, match=message):
        write_packed(packed, tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layers.0.up.codes4", lambda t: t.view(np.int8), "must be U8"),
        ("layers.0.up.codes4", lambda t: t[:, :4], "must be U8"),
        ("layers.0.up.ratios", lambda t: t.astype(np.float32), "must be F16"),
        ("layers.0.up.ratios", lambda t: t[:, :0], r"must be F16 \[8, 2, 16\]; got F16 \[8, 0"),
        ("layers.0.up.ratios", lambda t: t.view(np.float64), "got float64"),
    ],
)
def test_tensors_of_another_type_or_size_are_refused(name: str, change, message: str) -> None:
    packed = pack(DECODER, random_tensors(DECODER, 3), bits=4)
    packed.tensors[name] = change(packed.tensors[name])

    with pytest.raises(PackError, match=message):
        write_packed(packed, "/never/written")


def test_a_form_that_is_not_whole_is_refused() -> None:
    packed = pack(DECODER, random_tensors(DECODER, 3), bits=4)
    without = {name: t for name, t in packed.tensors.items() if name != "layers.0.up.ratios"}
    both = packed.tensors | {"layers.0.up.codes": np.zeros((8, 16, 16, 4), np.int8)}

    with pytest.raises(PackError, match="'layers.0.up.ratios' must be there"):
        write_packed(replace(packed, tensors=without), "/never/written")
    with pytest.raises(PackError, match="'layers.0.up.codes' has no place"):
        write_packed(replace(packed, tensors=both), "/never/written")


def test_four_bits_of_inputs_that_no_group_divides_are_refused() -> None:
    packed = pack(replace(BERT, layers=1), random_tensors(replace(BERT, layers=1), 1))
    name = "layers.0.up.codes4"  # 48 inputs

    with pytest.raises(PackError, match="must have a multiple of 32 inputs; 'layers.0.up' has 48"):
        write_packed(
            replace(packed, tensors=packed.tensors | {name: np.zeros((6, 6, 16, 4), np.uint8)}),
            "/never/written",
        )
