"""The engine against the reference: every kind of transformer, every granted instruction set."""

import multiprocessing
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from closeness import check_answer
from ingot_native import Encoder, InputError, LibraryError, Packed, TransformerSpec, pack
from ingot_native.reference import forward
from tiny_models import BERT, KINDS, random_sequences, random_tensors

SETS = ("scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx")
# The claim of 10,000 cases is run with more than the default.
CASES = int(os.environ.get("INGOT_NATIVE_CASES", "60"))
BF16 = ("avx512-vnni-bf16", "amx")  # sets whose attention multiplies in it
KIND_NAMES = tuple(KINDS)
GROUPS = st.sampled_from([32, 128])
WIDTHS = st.integers(32, 200) | st.sampled_from([32, 64, 96, 128, 256])


def packed_of(spec: TransformerSpec, seed: int = 1) -> tuple[Packed, dict[str, np.ndarray]]:
    tensors = random_tensors(spec, seed)
    return pack(spec, tensors), tensors


def lengths_for(spec: TransformerSpec) -> list[int]:
    return [min(n, spec.positions) for n in (7, 1, 40, 13, 33)]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_answers_are_those_of_the_reference(native: tuple[str, ...], kind: str, isa: str) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    spec = KINDS[kind]
    packed, tensors = packed_of(spec)
    sequences = random_sequences(spec, lengths_for(spec))
    types = [np.arange(len(ids)) % 2 for ids in sequences] if spec.token_types else None

    with Encoder(packed, threads=2, isa=isa) as encoder:
        got = encoder.encode(sequences, types=types)

    check_answer(got, spec, tensors, sequences, types=types, bf16=isa in BF16)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("kind", ["bert", "modern", "masked-words-of-the-table", "llama-window"])
def test_answers_in_other_bits_are_those_of_the_reference(
    native: tuple[str, ...], kind: str, bits: int, isa: str
) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    spec = replace(KINDS[kind], hidden=64)  # down, of 96 inputs, and o, of 48, differ in their bits
    tensors = random_tensors(spec, 1)
    sequences = random_sequences(spec, lengths_for(spec))

    with Encoder(pack(spec, tensors, bits=bits), threads=2, isa=isa) as encoder:
        got = encoder.encode(sequences)
        alone = np.concatenate([encoder.encode([ids]) for ids in sequences])

    assert np.array_equal(got, alone)
    check_answer(got, spec, tensors, sequences, bf16=isa in BF16, bits=bits)


@pytest.mark.parametrize("isa", BF16)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_bf16_inside_attention_stays_near_float(
    native: tuple[str, ...], kind: str, isa: str
) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    spec = KINDS[kind]
    packed, tensors = packed_of(spec)
    sequences = random_sequences(spec, lengths_for(spec))

    with Encoder(packed, isa=isa) as encoder:
        got = encoder.encode(sequences)

    want = forward(spec, tensors, sequences)
    cosines = np.sum(got * want, axis=1) / np.sqrt(np.sum(got**2, axis=1) * np.sum(want**2, axis=1))
    assert cosines.mean() >= 0.999


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_an_answer_has_the_same_bits_alone_in_company_and_on_any_threads(
    native: tuple[str, ...], kind: str, bits: int, isa: str
) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    spec = KINDS[kind]
    packed = pack(spec, random_tensors(spec, 1), bits=bits)
    sequences = random_sequences(spec, lengths_for(spec) * 3)

    with Encoder(packed, threads=1, isa=isa) as one, Encoder(packed, threads=2, isa=isa) as two:
        together = two.encode(sequences)
        backwards = two.encode(sequences[::-1])
        single = one.encode(sequences)
        alone = [two.encode([ids]) for ids in sequences]

    assert np.array_equal(together, single)
    assert np.array_equal(together, np.concatenate(alone))
    if spec.pool != "tokens":
        assert np.array_equal(together, backwards[::-1])


def test_long_batches_are_run_in_pieces_with_the_same_bits(native: tuple[str, ...]) -> None:
    spec = replace(BERT, positions=300)
    packed, _ = packed_of(spec)
    sequences = random_sequences(spec, [300, 1, 17, 299, 64, 250] * 3)

    with Encoder(packed, threads=2) as encoder:
        together = encoder.encode(sequences)
        alone = np.concatenate([encoder.encode([ids]) for ids in sequences])

    assert np.array_equal(together, alone)


@settings(
    deadline=None, max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_shapes_are_within_the_bound(native: tuple[str, ...], data: st.DataObject) -> None:
    spec = data.draw(random_spec())
    seed = data.draw(st.integers(0, 2**31))
    lengths = data.draw(st.lists(st.integers(1, spec.positions), min_size=1, max_size=4))
    isa = data.draw(st.sampled_from(native))
    numerics = {"bits": data.draw(st.sampled_from([8, 4, 16])), "group": data.draw(GROUPS)}
    tensors = random_tensors(spec, seed)
    sequences = random_sequences(spec, lengths, seed)
    packed = pack(spec, tensors, **numerics)

    with Encoder(packed, threads=data.draw(st.integers(1, 2)), isa=isa) as encoder:
        got = encoder.encode(sequences)

    asked = check_answer(got, spec, tensors, sequences, bf16=isa in BF16, **numerics)
    event(f"neighbours asked: {asked > 0}")


@st.composite
def random_spec(draw: st.DrawFn) -> TransformerSpec:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([8, 16, 20, 32, 48, 64]))
    position = draw(st.sampled_from(["absolute", "rotary", "relative", "none"]))
    layers = draw(st.integers(1, 2))
    norm_first = draw(st.booleans())
    return TransformerSpec(
        layers=layers,
        hidden=draw(WIDTHS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=draw(WIDTHS),
        vocab=30,
        positions=draw(st.integers(1, 90)),
        position=position,
        norm=draw(st.sampled_from(["layer", "rms"])),
        norm_first=norm_first,
        final_norm=norm_first,
        activation=draw(st.sampled_from(["gelu", "gelu-tanh", "relu", "silu"])),
        gated=draw(st.booleans()),
        causal=draw(st.booleans()),
        epsilon=1e-6,
        rotary_dim=draw(st.sampled_from([4, 8])) if position == "rotary" else 0,
        rotary_bases=(1000.0,) * layers if position == "rotary" else (),
        windows=tuple(draw(st.integers(0, 40)) for _ in range(layers)),
        pool=draw(st.sampled_from(["tokens", "mean", "first", "last"])),
    )


def test_a_mask_gives_the_answers_of_the_sequences(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)
    sequences = random_sequences(BERT, [3, 8])
    ids = np.zeros((2, 8), np.int64)
    mask = np.zeros((2, 8), np.int64)
    for i, row in enumerate(sequences):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1

    with Encoder(packed) as encoder:
        assert np.array_equal(encoder.encode(ids, mask=mask), encoder.encode(sequences))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[1, 2], []], "Sequence 1 must have at least one token"),
        ([[1] * 41], "Sequence 0 must have at most 40 tokens; got 41"),
        ([[1, 50]], "between 0 and 49; got 50 in sequence 0"),
        ([[1], [-1]], "between 0 and 49; got -1 in sequence 1"),
        ([[2**40]], "between 0 and 49"),
        ([[1.5]], "whole numbers"),
        ([[[1]]], "whole numbers"),
    ],
)
def test_bad_sequences_are_refused_with_the_reason(
    native: tuple[str, ...], sequences: list, message: str
) -> None:
    packed, _ = packed_of(BERT)

    with Encoder(packed) as encoder, pytest.raises(InputError, match=message):
        encoder.encode(sequences)


def test_bad_types_and_masks_are_refused(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)

    with Encoder(packed) as encoder:
        with pytest.raises(InputError, match="types must be between 0 and 1; got 2"):
            encoder.encode([[1, 2]], types=[[0, 2]])
        with pytest.raises(InputError, match="one type"):
            encoder.encode([[1, 2]], types=[[0]])
        with pytest.raises(InputError, match="ones, then zeros"):
            encoder.encode([[1, 2]], mask=np.array([[0, 1]]))
        with pytest.raises(InputError, match="must be \\(n, length\\)"):
            encoder.encode([[1, 2]], mask=np.array([1, 1]))


def test_no_sequences_give_no_rows(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)

    with Encoder(packed) as encoder:
        assert encoder.encode([]).shape == (0, BERT.hidden)


def test_a_closed_encoder_says_so(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)
    encoder = Encoder(packed)
    encoder.close()
    encoder.close()

    with pytest.raises(LibraryError, match="was closed"):
        encoder.encode([[1]])


def test_an_unknown_instruction_set_is_refused_with_those_there_are(
    native: tuple[str, ...],
) -> None:
    packed, _ = packed_of(BERT)

    with pytest.raises(LibraryError, match="granted here \\(scalar.*got 'mmx'"):
        Encoder(packed, isa="mmx")


def test_a_negative_number_of_threads_is_refused() -> None:
    packed, _ = packed_of(BERT)

    with pytest.raises(InputError, match="threads must be 0 or more; got -1"):
        Encoder(packed, threads=-1)


def test_threads_are_never_more_than_the_affinity_mask_holds(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)
    before = os.sched_getaffinity(0)

    with Encoder(packed, threads=1000) as encoder:
        assert encoder.threads == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        with Encoder(packed, threads=2) as encoder:
            assert encoder.threads == 1
            encoder.encode([[1, 2, 3]])
    finally:
        os.sched_setaffinity(0, before)


def test_the_callers_affinity_is_given_back(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)
    before = os.sched_getaffinity(0)

    with Encoder(packed, threads=2) as encoder:
        encoder.encode([[1, 2, 3]])
        assert os.sched_getaffinity(0) == before


def test_calls_from_many_threads_and_two_encoders_give_the_answers_of_one(
    native: tuple[str, ...],
) -> None:
    packed, _ = packed_of(BERT)
    sequences = random_sequences(BERT, [5, 40, 12])
    wrong: list[int] = []

    def call(encoder: Encoder, number: int) -> None:
        answers = [encoder.encode(sequences) for _ in range(20)]
        wrong.extend(number for answer in answers if not np.array_equal(answer, expected))

    with Encoder(packed, threads=2) as a, Encoder(packed, threads=2) as b:
        expected = a.encode(sequences)
        callers = [threading.Thread(target=call, args=((a, b)[i % 2], i)) for i in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    assert wrong == []


def _answer(encoder: Encoder, sequences: list[np.ndarray], pipe: object) -> None:
    pipe.send(encoder.encode(sequences))  # type: ignore[attr-defined]
    encoder.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_with_the_encoder(native: tuple[str, ...]) -> None:
    packed, _ = packed_of(BERT)
    sequences = random_sequences(BERT, [5, 40, 12])
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    with Encoder(packed, threads=2) as encoder:
        expected = encoder.encode(sequences)
        child = context.Process(target=_answer, args=(encoder, sequences, send))
        child.start()
        assert receive.poll(30)
        got = receive.recv()
        child.join(30)
        again = encoder.encode(sequences)

    assert child.exitcode == 0
    assert np.array_equal(got, expected)
    assert np.array_equal(again, expected)
