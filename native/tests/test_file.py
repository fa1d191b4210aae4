"""Packed files: what is written is read, and nothing damaged is ever used."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot_native import (
    Encoder,
    LibraryError,
    Packed,
    PackedFileError,
    pack,
    read_packed,
    write_packed,
)
from tiny_models import BERT, KINDS, random_sequences, random_tensors

SMALL = replace(
    BERT, layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8, inner=8, vocab=9, positions=6
)


def packed(spec=SMALL) -> Packed:
    return pack(spec, random_tensors(spec, 3))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "model.ingot"
    write_packed(packed(), path)
    return path.read_bytes()


def header_of(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(data: bytes, header: dict) -> bytes:
    body = data[8 + int.from_bytes(data[:8], "little") :]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + body


def with_spec(data: bytes, **changes: object) -> bytes:
    header = header_of(data)
    spec = json.loads(header["__metadata__"]["spec"]) | changes
    header["__metadata__"]["spec"] = json.dumps(spec)
    return with_header(data, header)


def read(folder: Path, data: bytes) -> Packed:
    path = folder / "damaged.ingot"
    path.write_bytes(data)
    return read_packed(path)


@pytest.mark.parametrize("kind", tuple(KINDS))
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    model = packed(KINDS[kind])
    write_packed(model, tmp_path / "a")

    again = read_packed(tmp_path / "a")

    assert again.spec == model.spec
    assert again.head_widths == model.head_widths
    assert set(again.tensors) == set(model.tensors)
    for name, tensor in again.tensors.items():
        assert np.array_equal(tensor, model.tensors[name])
        assert tensor.ctypes.data % 64 == 0


@pytest.mark.parametrize("kind", tuple(KINDS))
def test_the_file_is_read_by_safetensors(tmp_path: Path, kind: str) -> None:
    reader = pytest.importorskip("safetensors.numpy")
    model = packed(KINDS[kind])
    write_packed(model, tmp_path / "a")

    tensors = reader.load((tmp_path / "a").read_bytes())

    for name, tensor in model.tensors.items():
        assert np.array_equal(tensors[name], tensor)


def test_a_mapped_file_gives_the_answers_of_the_packed_model(
    native: tuple[str, ...], tmp_path: Path
) -> None:
    model, sequences = packed(), random_sequences(SMALL, [6, 2])
    write_packed(model, tmp_path / "a")

    with Encoder(model) as direct, Encoder(tmp_path / "a") as mapped:
        assert np.array_equal(direct.encode(sequences), mapped.encode(sequences))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def refuse(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", refuse)

    with pytest.raises(OSError, match="disk full"):
        write_packed(packed(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, written: bytes) -> None:
    header_end = 8 + int.from_bytes(written[:8], "little")
    cuts = {*range(12), *range(header_end - 3, header_end + 3), len(written) - 1}
    cuts |= set(np.linspace(0, len(written) - 1, 300).astype(int).tolist())

    for cut in sorted(cuts):
        with pytest.raises(PackedFileError):
            read(tmp_path, written[:cut])


def test_a_longer_file_is_refused(tmp_path: Path, written: bytes) -> None:
    with pytest.raises(PackedFileError, match="as the header says"):
        read(tmp_path, written + b"x")


def test_flipped_bits_are_refused_or_give_an_answer(
    native: tuple[str, ...], tmp_path: Path, written: bytes
) -> None:
    rng = np.random.default_rng(0)
    header_end = 8 + int.from_bytes(written[:8], "little")
    places = [*range(0, header_end, 3), *rng.integers(header_end, len(written), 400).tolist()]

    for place in places:
        data = bytearray(written)
        data[place] ^= 1 << int(rng.integers(8))
        try:
            model = read(tmp_path, bytes(data))
            with Encoder(model, threads=1) as encoder:
                answer = encoder.encode(
                    random_sequences(encoder.spec, [min(6, encoder.spec.positions)])
                )
            assert answer.shape[1] == encoder.width
        except (PackedFileError, LibraryError):
            continue


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PackedFileError):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "spec.layers must be a whole number, 1 to 1024; got 0"),
        ({"layers": 1024}, "'layers.1.attention_norm.weight' must be there"),
        ({"hidden": 10**30}, "spec.hidden must be"),
        ({"hidden": 16}, "must be"),
        ({"hidden": True}, "spec.hidden must be"),
        ({"hidden": "8"}, "spec.hidden must be"),
        ({"heads": 3, "kv_heads": 2}, "kv_heads must divide"),
        ({"vocab": 1 << 27}, "'embed.tokens.codes' must be I8"),
        ({"positions": 1 << 20}, "'embed.positions' must be F32"),
        ({"position": "magnetic"}, "spec.position must be one of"),
        ({"position": ["absolute"]}, "spec.position must be one of"),
        ({"position": "rotary", "rotary_dim": 3, "rotary_bases": [1.0]}, "rotary_dim must be even"),
        ({"position": "rotary", "rotary_dim": 8}, "rotary_bases must be a list of 1"),
        ({"windows": [1, 2, 3]}, "windows must be a list of 0 or 1"),
        ({"windows": 5}, "spec.windows must be a list"),
        ({"epsilon": float("nan")}, "spec.epsilon must be"),
        ({"epsilon": 10**4000}, "spec.epsilon must be"),
        ({"gated": 1}, "spec.gated must be true or false"),
        ({"head": ["sin"]}, "spec.head must name activations"),
        ({"head_norm": 0}, "spec.head_norm must be below 0"),
        ({"surprise": 1}, "The spec must be whole"),
    ],
)
def test_a_spec_that_no_transformer_has_is_refused(
    tmp_path: Path, written: bytes, change: dict, message: str
) -> None:
    with pytest.raises(PackedFileError, match=message):
        read(tmp_path, with_spec(written, **change))


NAME = "embed.types"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F64"}, "must be one of I8, U8, I32, F16, F32"),
        ({"dtype": "I32"}, "must be F32"),
        ({"shape": [2, 9]}, "must have 72 bytes"),
        ({"shape": [8, 2]}, "must be F32"),
        ({"shape": [2**40, 2**40]}, "bytes"),
        ({"shape": [-2, -8]}, "shape of at most four sizes"),
        ({"shape": [2, 8.0]}, "shape of at most four sizes"),
        ({"data_offsets": [0]}, "two data_offsets"),
        ({"data_offsets": [-64, 0]}, "two data_offsets"),
        ({"data_offsets": [64, 0]}, "must lie inside"),
        ({"data_offsets": [1 << 40, (1 << 40) + 64]}, "must lie inside"),
        ({"data_offsets": [1, 65]}, "multiple of 64"),
        ({"data_offsets": [0, 64]}, "must begin where another ends"),
        ({"more": 1}, "must have dtype, shape and data_offsets"),
    ],
)
def test_an_entry_that_lies_is_refused(
    tmp_path: Path, written: bytes, change: dict, message: str
) -> None:
    header = header_of(written)
    header[NAME] |= change

    with pytest.raises(PackedFileError, match=message):
        read(tmp_path, with_header(written, header))


def test_headers_that_are_no_headers_are_refused(tmp_path: Path, written: bytes) -> None:
    header = header_of(written)
    deep = b"[" * 100_000
    deep += b" " * (-(8 + len(deep)) % 64)
    digits = b'{"a":' + b"9" * 10_000 + b"}"
    digits += b" " * (-(8 + len(digits)) % 64)
    twice = b'{"a":1,"a":1}'
    twice += b" " * (-(8 + len(twice)) % 64)
    texts = [len(text).to_bytes(8, "little") + text for text in (deep, digits, twice)]
    without = {name: entry for name, entry in header.items() if name != NAME}
    renamed = without | {"embed.kinds": header[NAME]}
    bare = {name: entry for name, entry in header.items() if name != "__metadata__"}
    other = header | {"__metadata__": header["__metadata__"] | {"format_version": "2"}}
    hostile = [*texts, *(with_header(written, it) for it in (without, renamed, bare, other, {}))]

    for data in [*hostile, with_header(written, []), (2**63).to_bytes(8, "little") + written[8:]]:
        with pytest.raises(PackedFileError):
            read(tmp_path, data)


def test_values_that_are_not_finite_are_refused_when_the_encoder_is_made(
    native: tuple[str, ...], tmp_path: Path, written: bytes
) -> None:
    header = header_of(written)
    begin = (
        8 + int.from_bytes(written[:8], "little") + header["layers.0.qkv.scales"]["data_offsets"][0]
    )
    data = written[:begin] + np.float32(np.nan).tobytes() + written[begin + 4 :]

    with pytest.raises(
        LibraryError, match="'layers.0.qkv.scales' holds a value that is not finite"
    ):
        Encoder(read(tmp_path, data))


def test_sums_that_no_codes_have_are_refused(
    native: tuple[str, ...], tmp_path: Path, written: bytes
) -> None:
    header = header_of(written)
    begin = (
        8 + int.from_bytes(written[:8], "little") + header["layers.0.up.sums"]["data_offsets"][0]
    )
    data = written[:begin] + np.int32(2**31 - 1).tobytes() + written[begin + 4 :]

    with pytest.raises(LibraryError, match="'layers.0.up.sums' holds a sum"):
        Encoder(read(tmp_path, data))
