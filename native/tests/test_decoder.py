"""Decoders: against the encoder and the reference, and against themselves in every other way."""

import multiprocessing
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from closeness import check_answer
from ingot_native import (
    CacheFull,
    Decoder,
    Encoder,
    InputError,
    LibraryError,
    Packed,
    TransformerSpec,
    pack,
    write_packed,
)
from tiny_models import BERT, LLAMA, random_tensors

SETS = ("scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx")
BF16 = ("avx512-vnni-bf16", "amx")  # sets whose encoders multiply in it inside attention

GPT2 = replace(
    BERT, hidden=64, heads=4, kv_heads=4, vocab=90, positions=150, token_types=0, norm_first=True,
    embedding_norm=False, final_norm=True, activation="gelu-tanh", causal=True, pool="tokens",
    vocab_head=True, normalize=False,
)  # fmt: skip
QWEN = replace(
    LLAMA, hidden=64, vocab=90, positions=150, head_dim=16, pool="tokens", vocab_head=True,
    normalize=False,
)  # fmt: skip
KINDS = {
    "gpt2": GPT2,
    "opt": replace(GPT2, position_offset=2, activation="relu"),
    "opt-350m": replace(GPT2, position_offset=2, activation="relu", norm_first=False),
    "llama": QWEN,
    "mistral": replace(QWEN, windows=(37, 5), kv_heads=1),
    "gemma": replace(QWEN, activation="gelu-tanh", head_dim=20, attention_scale=0.3),
    "embeddings-normed": replace(GPT2, embedding_norm=True, head=("gelu",), head_norm=0),
}


def packed_of(spec: TransformerSpec, bits: int | None = None, *, tied: bool = True) -> Packed:
    tensors = random_tensors(spec, 1)
    if not tied:
        rng = np.random.default_rng(2)
        tensors["lm_head.weight"] = rng.standard_normal((spec.vocab, spec.hidden)) / 8
    return pack(spec, tensors, bits=bits)


def ids_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, GPT2.vocab, count)


def fed(decoder: Decoder, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Scores after every token of a new sequence that comes in pieces of these lengths."""
    sequence = decoder.open_sequence()
    pieces = np.split(ids, np.cumsum(cuts)[:-1])
    scores = [decoder.step([(sequence, piece)], every=True) for piece in pieces]
    decoder.close_sequence(sequence)
    return np.concatenate(scores)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b) / np.sqrt(np.sum(a**2.0) * np.sum(b**2.0)))


@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_encoder(
    native: tuple[str, ...], kind: str, isa: str, bits: int
) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    packed, ids = packed_of(KINDS[kind], bits), ids_of(140)

    with Decoder(packed, isa=isa) as decoder, Encoder(packed, isa=isa) as encoder:
        got, want = fed(decoder, ids, [140]), encoder.encode([ids])

    assert got.shape == want.shape == (140, 90)
    assert cosine(got, want) >= (0.999 if isa in BF16 else 0.9999)


@pytest.mark.parametrize("cache_bits", [32, 8])
@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_reference(
    native: tuple[str, ...], kind: str, isa: str, bits: int, cache_bits: int
) -> None:
    if isa not in native:
        pytest.skip(f"{isa} is not granted here")
    spec, ids = KINDS[kind], ids_of(70)
    tensors = random_tensors(spec, 1)

    with Decoder(pack(spec, tensors, bits=bits), isa=isa, cache_bits=cache_bits) as decoder:
        got = fed(decoder, ids, [40, 1, 1, 28])

    check_answer(got, spec, tensors, [ids], cache_bits=cache_bits, bits=bits)


@pytest.mark.parametrize("cache_bits", [32, 8])
@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_the_same_bits_however_a_sequence_is_fed(
    native: tuple[str, ...], kind: str, bits: int, cache_bits: int
) -> None:
    packed, ids = packed_of(KINDS[kind], bits), ids_of(140)

    with (
        Decoder(packed, threads=1, cache_bits=cache_bits) as one,
        Decoder(packed, threads=2, cache_bits=cache_bits) as two,
    ):
        whole = fed(one, ids, [140])

        assert np.array_equal(fed(two, ids, [140]), whole)
        assert np.array_equal(fed(two, ids, [1] * 140), whole)
        assert np.array_equal(fed(one, ids, [3, 1, 64, 33, 7, 31, 1]), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_the_same_bits_alone_and_in_company(native: tuple[str, ...], kind: str) -> None:
    packed, ids = packed_of(KINDS[kind]), ids_of(120)

    with Decoder(packed, threads=2) as decoder:
        whole = fed(decoder, ids, [120])
        mine, a, b = (decoder.open_sequence() for _ in range(3))
        got = [
            decoder.step([(a, ids_of(n, 1)), (mine, piece), (b, ids_of(n, 2))])[1]
            for n, piece in zip((1, 30, 2), np.split(ids, [50, 51]), strict=True)
        ]

    assert np.array_equal(got, whole[[49, 50, 119]])


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_kept_are_near_floats(native: tuple[str, ...], kind: str) -> None:
    packed, ids = packed_of(KINDS[kind]), ids_of(140)

    with Decoder(packed) as floats, Decoder(packed, cache_bits=8) as rounded:
        assert cosine(fed(floats, ids, [140]), fed(rounded, ids, [140])) >= 0.999


@pytest.mark.parametrize("bits", [8, 4, 16])
def test_a_head_of_its_own_is_used(native: tuple[str, ...], bits: int) -> None:
    packed, ids = packed_of(GPT2, bits, tied=False), ids_of(20)

    with Decoder(packed) as decoder, Encoder(packed, isa="scalar") as encoder:
        assert cosine(fed(decoder, ids, [20]), encoder.encode([ids])) >= 0.9999


def test_a_decoder_runs_from_a_file(native: tuple[str, ...], tmp_path: Path) -> None:
    packed, ids = packed_of(GPT2, 4), ids_of(20)
    write_packed(packed, tmp_path / "model.ingot")

    with Decoder(tmp_path / "model.ingot") as mapped, Decoder(packed) as given:
        assert np.array_equal(fed(mapped, ids, [20]), fed(given, ids, [20]))


def test_trimmed_tokens_are_forgotten(native: tuple[str, ...]) -> None:
    packed, ids = packed_of(QWEN), ids_of(100)

    with Decoder(packed) as decoder:
        whole = fed(decoder, ids, [100])
        sequence = decoder.open_sequence()
        decoder.step([(sequence, np.concatenate([ids[:40], ids_of(60, 9)]))])
        decoder.trim(sequence, 40)
        assert decoder.length(sequence) == 40
        again = decoder.step([(sequence, ids[40:])], every=True)

    assert np.array_equal(again, whole[40:])


def test_pages_are_taken_when_needed_and_come_back(native: tuple[str, ...]) -> None:
    with Decoder(packed_of(GPT2), cache_tokens=90) as decoder:
        sequence = decoder.open_sequence()
        free = [decoder.free_tokens]
        for count in (1, 31, 1):
            decoder.step([(sequence, [5] * count)])
            free.append(decoder.free_tokens)
        decoder.trim(sequence, 32)
        free.append(decoder.free_tokens)
        decoder.close_sequence(sequence)
        free.append(decoder.free_tokens)

    assert free == [96, 64, 64, 32, 64, 96]


def test_a_full_cache_refuses_a_step_whole_and_goes_on(native: tuple[str, ...]) -> None:
    packed, ids = packed_of(GPT2), ids_of(64)

    with Decoder(packed) as roomy, Decoder(packed, cache_tokens=64) as tight:
        whole = fed(roomy, ids, [64])
        first, second = tight.open_sequence(), tight.open_sequence()
        tight.step([(first, ids[:32])])
        with pytest.raises(CacheFull, match="64 free tokens for this step; it has 32"):
            tight.step([(first, ids[32:]), (second, ids[:1])])

        assert (tight.length(first), tight.length(second), tight.free_tokens) == (32, 0, 32)
        assert np.array_equal(tight.step([(first, ids[32:])]), whole[63:])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ([(1, [1, 90])], "between 0 and 89; got 90"),
        ([(1, [-1])], "between 0 and 89; got -1"),
        ([(1, [])], "at least one token"),
        ([(1, [1] * 148)], "at most 150 tokens; it has 3 and would gain 148"),
        ([(1, [1]), (1, [2])], "once; sequence 1 is there twice"),
        ([(2, [1])], "Sequence 2 must be open; it was closed"),
        ([(3, [1])], "Sequence 3 must be open; it was never opened"),
        ([(1, [1.5])], "whole numbers"),
    ],
)
def test_bad_steps_are_refused_with_the_reason(
    native: tuple[str, ...], work: list, message: str
) -> None:
    with Decoder(packed_of(GPT2)) as decoder:
        sequence, closed = decoder.open_sequence(), decoder.open_sequence()
        decoder.step([(sequence, [1, 2, 3])])
        decoder.close_sequence(closed)

        with pytest.raises(InputError, match=message):
            decoder.step(work)
        assert decoder.length(sequence) == 3


def test_no_work_gives_no_rows(native: tuple[str, ...]) -> None:
    with Decoder(packed_of(GPT2)) as decoder:
        assert decoder.step([]).shape == (0, 90)


def test_a_sequence_is_trimmed_to_a_length_that_it_has(native: tuple[str, ...]) -> None:
    with Decoder(packed_of(GPT2)) as decoder:
        sequence = decoder.open_sequence()
        with pytest.raises(InputError, match="between 0 and its length, 0; got 1"):
            decoder.trim(sequence, 1)


@pytest.mark.parametrize("spec", [BERT, replace(GPT2, causal=False), replace(BERT, causal=True)])
def test_an_encoder_is_no_decoder(native: tuple[str, ...], spec: TransformerSpec) -> None:
    with pytest.raises(InputError, match="must be a causal language model.*with Encoder"):
        Decoder(pack(spec, random_tensors(spec, 1)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(GPT2, position="relative"), "no positions"),
        (replace(GPT2, normalize=True), "not divided"),
        (replace(GPT2, pool="last"), "scores of the vocabulary for every token"),
        (replace(GPT2, padding_id=1, position_offset=2), "give every token a place"),
    ],
)
def test_language_models_that_it_cannot_run_are_named(
    native: tuple[str, ...], spec: TransformerSpec, message: str
) -> None:
    with pytest.raises(LibraryError, match=message):
        Decoder(pack(spec, random_tensors(spec, 1)))


@pytest.mark.parametrize("arguments", [{"cache_tokens": 0}, {"cache_bits": 16}, {"threads": -1}])
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="got"):
        Decoder(packed_of(GPT2), **arguments)


def test_a_closed_decoder_says_so(native: tuple[str, ...]) -> None:
    decoder = Decoder(packed_of(GPT2))
    decoder.close()
    decoder.close()

    with pytest.raises(LibraryError, match="decoder must be open; it was closed"):
        decoder.open_sequence()


def test_facts_are_there_to_read(native: tuple[str, ...]) -> None:
    with Decoder(packed_of(GPT2), threads=1, isa="scalar") as decoder:
        facts = (decoder.vocab, decoder.positions, decoder.threads, decoder.isa)
        assert facts == (90, 150, 1, "scalar")
        assert decoder.spec == GPT2


def test_calls_from_many_threads_wait_for_one_another(native: tuple[str, ...]) -> None:
    ids, wrong = ids_of(60), []

    def call(decoder: Decoder, number: int) -> None:
        for _ in range(6):
            got = fed(decoder, ids, [20, 1, 39])
            if not np.array_equal(got, whole):
                wrong.append(number)

    with Decoder(packed_of(GPT2), threads=2) as decoder:
        whole = fed(decoder, ids, [60])
        callers = [threading.Thread(target=call, args=(decoder, i)) for i in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    assert wrong == []


def _go_on(decoder: Decoder, sequence: int, ids: np.ndarray, pipe: object) -> None:
    pipe.send(decoder.step([(sequence, ids)]))  # type: ignore[attr-defined]
    decoder.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_with_a_copy(native: tuple[str, ...]) -> None:
    ids = ids_of(60)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    with Decoder(packed_of(GPT2), threads=2) as decoder:
        whole = fed(decoder, ids, [60])
        sequence = decoder.open_sequence()
        decoder.step([(sequence, ids[:50])])
        child = context.Process(target=_go_on, args=(decoder, sequence, ids[50:], send))
        child.start()
        assert receive.poll(30)
        got = receive.recv()
        child.join(30)
        again = decoder.step([(sequence, ids[50:])])

    assert child.exitcode == 0
    assert np.array_equal(got, whole[-1:])
    assert np.array_equal(again, whole[-1:])
