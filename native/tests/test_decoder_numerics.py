"""Decoders of random shapes against the reference: every form of weights, either cache."""

import os

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from closeness import check_answer
from ingot_native import Decoder, TransformerSpec, pack
from tiny_models import random_sequences, random_tensors

CASES = int(os.environ.get("INGOT_NATIVE_CASES", "60"))


@settings(
    deadline=None, max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_scores_of_random_decoders_are_within_the_bound(
    native: tuple[str, ...], data: st.DataObject
) -> None:
    spec, seed = data.draw(random_decoder()), data.draw(st.integers(0, 2**31))
    numerics = {"bits": data.draw(st.sampled_from([8, 4, 16])), "group": data.draw(GROUPS)}
    cache_bits, isa = data.draw(st.sampled_from([32, 8])), data.draw(st.sampled_from(native))
    tensors = random_tensors(spec, seed)
    if data.draw(st.booleans()):
        rng = np.random.default_rng(seed)
        tensors["lm_head.weight"] = rng.standard_normal((spec.vocab, spec.hidden)) / 8
    (ids,) = random_sequences(spec, [data.draw(st.integers(1, spec.positions))], seed)
    packed = pack(spec, tensors, **numerics)
    pieces = np.split(ids, sorted(data.draw(st.lists(st.integers(1, len(ids)), max_size=4))))

    with Decoder(packed, 2, isa=isa, cache_tokens=128, cache_bits=cache_bits) as decoder:
        sequence = decoder.open_sequence()
        got = [decoder.step([(sequence, piece)], every=True) for piece in pieces if len(piece)]

    scores = np.concatenate(got)
    asked = check_answer(scores, spec, tensors, [ids], cache_bits=cache_bits, **numerics)
    event(f"neighbours asked: {asked > 0}")


GROUPS = st.sampled_from([32, 128])
WIDTHS = st.integers(32, 200) | st.sampled_from([32, 64, 96, 128, 256])


@st.composite
def random_decoder(draw: st.DrawFn) -> TransformerSpec:
    kv_heads = draw(st.integers(1, 3))
    position = draw(st.sampled_from(["absolute", "rotary", "none"]))
    layers = draw(st.integers(1, 2))
    norm_first = draw(st.booleans())
    return TransformerSpec(
        layers=layers,
        hidden=draw(WIDTHS),
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([8, 16, 20, 32, 64])),
        inner=draw(WIDTHS),
        vocab=draw(st.integers(2, 90)),
        positions=draw(st.integers(1, 90)),
        position=position,
        norm=draw(st.sampled_from(["layer", "rms"])),
        norm_first=norm_first,
        embedding_norm=draw(st.booleans()),
        final_norm=norm_first,
        activation=draw(st.sampled_from(["gelu", "gelu-tanh", "relu", "silu"])),
        gated=draw(st.booleans()),
        causal=True,
        epsilon=1e-6,
        rotary_dim=draw(st.sampled_from([4, 8])) if position == "rotary" else 0,
        rotary_bases=(1000.0,) * layers if position == "rotary" else (),
        windows=tuple(draw(st.integers(0, 40)) for _ in range(layers)),
        pool="tokens",
        vocab_head=True,
    )
