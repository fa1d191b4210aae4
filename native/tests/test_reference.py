"""The reference against float formulas: how far rounding may move an answer, and no further."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot_native.reference import (
    Matrix,
    Net,
    attention,
    body,
    forward,
    head,
    linear,
    rounded,
    rounded_matrices,
)
from tiny_models import KINDS, LLAMA, random_sequences, random_tensors

CASES = settings(max_examples=60, deadline=None)
DECODER = replace(
    LLAMA, hidden=64, inner=128, head_dim=16, vocab=70, vocab_head=True, pool="tokens",
    normalize=False,
)  # fmt: skip


def draw_matrix(rng: np.random.Generator, rows: int, inputs: int, group: int) -> tuple:
    codes = rng.integers(-8, 8, (rows, inputs)).astype(np.int8)
    scales = rng.uniform(0.01, 1, (rows, inputs // group)).astype(np.float32)
    return codes, scales


@CASES
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 20),
    groups=st.integers(1, 5),
    group=st.sampled_from([32, 128]),
    size=st.floats(1e-3, 1e3),
)
def test_a_product_in_four_bits_is_off_by_half_a_step_of_each_input(
    seed: int, rows: int, groups: int, group: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    codes, scales = draw_matrix(rng, rows, groups * group, group)
    weight = codes * np.repeat(scales.astype(np.float64), group, axis=1)
    x = (rng.standard_t(2, (7, groups * group)) * size).astype(np.float32).astype(np.float64)
    x[3] = 0
    x[4, :group] = 0
    net = Net(KINDS["llama"], {"one.weight": codes}, {"one.weight": Matrix(weight, group)})

    got = linear(net, "one", x)

    steps = np.abs(x.reshape(7, groups, group)).max(axis=2) / 127
    per_input = np.repeat(steps, group, axis=1) / 2
    bound = per_input @ np.abs(weight).T
    assert (np.abs(got - x @ weight.T) <= bound * 1.001 + 1e-30).all()
    assert not got[3].any()


@CASES
@given(seed=st.integers(0, 2**31), size=st.floats(1e-6, 1e6))
def test_a_large_value_costs_its_own_group_only(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 4, 32)) * size
    loud = x.copy()
    loud[0, 2, 5] = 1e4 * size

    assert np.array_equal(rounded(x)[0, [0, 1, 3]], rounded(loud)[0, [0, 1, 3]])


@CASES
@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 20),
    kind=st.sampled_from(["llama", "llama-window", "gpt2"]),
)
def test_a_cache_of_eight_bits_moves_attention_by_its_steps_at_most(
    seed: int, length: int, kind: str
) -> None:
    spec = KINDS[kind]
    width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((length, n)) * 2 for n in (width, kv_width, kv_width))
    joint = np.concatenate([q, k, v], axis=1)
    picks = np.split(np.eye(joint.shape[1]), np.cumsum([width, kv_width]))
    tensors = {f"layers.0.{n}.weight": p for n, p in zip("qkv", picks, strict=True)}
    tensors["layers.0.o.weight"] = np.eye(width)
    spec = replace(spec, position="none")

    exact = attention(Net(spec, tensors, {}), 0, joint)
    got = attention(Net(spec, tensors, {}, cache_bits=8), 0, joint)

    half_key, half_value = (
        np.abs(t.reshape(length, -1, spec.head_dim)).max() / 254 for t in (k, v)
    )
    largest = np.abs(q.reshape(length, -1, spec.head_dim)).sum(axis=2).max()
    moved = largest * half_key * spec.head_dim**-0.5  # of a score
    bound = np.expm1(2 * moved) * np.abs(v).max() + half_value * np.exp(2 * moved)
    assert np.abs(got - exact).max() <= bound * 1.001
    assert got.shape == (length, width)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("cache_bits", [32, 8])
@pytest.mark.parametrize("kind", ["llama", "llama-window", "gpt2"])
def test_the_scores_of_a_token_depend_on_what_comes_before_it_only(
    kind: str, cache_bits: int, bits: int
) -> None:
    spec = replace(KINDS[kind], pool="tokens", head=(), vocab_head=True, normalize=False)
    tensors = random_tensors(spec, 5)
    (ids,) = random_sequences(spec, [12])
    options = {"bits": bits, "cache_bits": cache_bits}

    whole = forward(spec, tensors, [ids], **options)

    for end in (1, 5, 11):
        np.testing.assert_allclose(
            whole[:end], forward(spec, tensors, [ids[:end]], **options), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_rounding_what_flows_keeps_the_scores_of_the_rounded_weights(bits: int) -> None:
    tensors = random_tensors(DECODER, 5)
    (ids,) = random_sequences(DECODER, [30])
    matrices = rounded_matrices(DECODER, tensors, bits)
    values = {name: matrix.values for name, matrix in matrices.items()}
    values["lm_head.weight"] = values["embed.tokens"]
    in_float = Net(DECODER, tensors | values, {"embed.tokens": matrices["embed.tokens"]})
    want = head(in_float, body(in_float, ids, np.zeros(len(ids), int)))

    got = forward(DECODER, tensors, [ids], bits=bits, cache_bits=8)

    cosines = np.sum(got * want, axis=1) / np.sqrt(np.sum(got**2, axis=1) * np.sum(want**2, axis=1))
    assert cosines.min() >= 0.99
    assert cosines.mean() >= 0.999
