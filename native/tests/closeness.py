"""When an answer counts as the reference's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from ingot_native import TransformerSpec, reference

LEAST_COSINE, LARGEST_ERROR = 0.9999, 2e-2
NEIGHBOURS = 60


def is_close(got: np.ndarray, want: np.ndarray) -> bool:
    """Cosine of all values, and largest error relative to the largest value."""
    got = got.astype(np.float64)
    lengths = np.sqrt(np.sum(got**2) * np.sum(want**2))
    is_aligned = np.sum(got * want) >= LEAST_COSINE * lengths
    return bool(is_aligned and np.abs(got - want).max() <= LARGEST_ERROR * np.abs(want).max())


@contextmanager
def nudged_roundings(seed: int) -> Iterator[None]:
    """Move what the reference rounds by up to a millionth: each value alone, or a row together."""
    rng = np.random.default_rng(seed)
    size = (1e-7, 3e-7, 1e-6)[seed % 3]  # a larger move meets other middles on its way

    def nudging(rounding: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        def rounded(x: np.ndarray) -> np.ndarray:
            shape = x.shape if seed % 2 else (*x.shape[:-1], 1)
            return rounding(x * (1 + size * rng.standard_normal(shape)))

        return rounded

    with (
        patch.object(reference, "rounded", nudging(reference.rounded)),
        patch.object(reference, "to_bf16", nudging(reference.to_bf16)),
    ):
        yield


def check_answer(
    got: np.ndarray,
    spec: TransformerSpec,
    tensors: dict[str, np.ndarray],
    sequences: list[np.ndarray],
    *,
    types: list[np.ndarray] | None = None,
    bf16: bool = False,
    bits: int | None = None,
) -> int:
    """Assert for every sequence that its answer is the reference's, or that of a neighbour.

    Rounding to eight bits is a step: a value within float rounding of the middle between two codes
    may fall to either side, and in a narrow network one such fall moves the answer beyond the
    bound. The reference moves as far by itself, so it is asked again with such values moved.

    Returns:
        How many neighbours were asked: 0 when the reference itself agrees.
    """
    rows = [len(ids) if spec.pool == "tokens" else 1 for ids in sequences]
    assert len(got) == sum(rows)
    asked = 0
    for i, answer in enumerate(np.split(got, np.cumsum(rows)[:-1])):
        kinds = None if types is None else types[i : i + 1]
        asked += _neighbours_asked(
            answer,
            lambda i=i, kinds=kinds: reference.forward(
                spec, tensors, sequences[i : i + 1], kinds, bf16=bf16, bits=bits
            ),
        )
    return asked


def _neighbours_asked(got: np.ndarray, compute: Callable[[], np.ndarray]) -> int:
    want = compute()
    assert got.shape == want.shape
    if is_close(got, want):
        return 0
    for seed in range(1, NEIGHBOURS + 1):
        with nudged_roundings(seed):
            neighbour = compute()
        if is_close(got, neighbour):
            return seed
    error = np.abs(got - want).max() / np.abs(want).max()
    raise AssertionError(f"no reference within a millionth agrees; error {error:.3g} of the scale")
