"""When an answer counts as the reference's."""

import numpy as np

from ingot_native import TransformerSpec
from ingot_native.reference import forward

LEAST_COSINE, LARGEST_ERROR = 0.9999, 2e-2
NEIGHBOURS = 12


def is_close(got: np.ndarray, want: np.ndarray) -> bool:
    """Cosine of all values, and largest error relative to the largest value."""
    got = got.astype(np.float64)
    lengths = np.sqrt(np.sum(got**2) * np.sum(want**2))
    is_aligned = np.sum(got * want) >= LEAST_COSINE * lengths
    return bool(is_aligned and np.abs(got - want).max() <= LARGEST_ERROR * np.abs(want).max())


def nudged(tensors: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The same network with norms, biases and tables moved by a millionth."""
    rng = np.random.default_rng(seed)
    return {
        name: (value * (1 + 1e-6 * rng.standard_normal(value.shape))).astype(np.float32)
        if value.ndim == 1 or name in ("embed.positions", "embed.types")
        else value
        for name, value in tensors.items()
    }


def check_answer(
    got: np.ndarray,
    spec: TransformerSpec,
    tensors: dict[str, np.ndarray],
    sequences: list[np.ndarray],
    *,
    types: list[np.ndarray] | None = None,
    bf16: bool = False,
) -> int:
    """Assert that an answer is the reference's, or that of a network a millionth away.

    Rounding to eight bits is a step: a value within float rounding of the middle between two codes
    may fall to either side, and in a narrow network one such fall moves the answer beyond the bound.
    The reference moves as far when its own inputs move by a millionth, so it is asked again there.

    Returns:
        How many neighbours were asked: 0 when the reference itself agrees.
    """
    want = forward(spec, tensors, sequences, types, bf16=bf16)
    assert got.shape == want.shape
    if is_close(got, want):
        return 0
    for seed in range(1, NEIGHBOURS + 1):
        if is_close(got, forward(spec, nudged(tensors, seed), sequences, types, bf16=bf16)):
            return seed
    error = np.abs(got - want).max() / np.abs(want).max()
    raise AssertionError(f"no reference within a millionth agrees; error {error:.3g} of the scale")
