"""When an answer counts as the reference's."""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np

from ingot_native import TransformerSpec, reference

LEAST_COSINE, LARGEST_ERROR = 0.9999, 2e-2
TIED_ERROR = 1e-3  # where codes at ties were followed: hardly more than float's
UNIT = 2.0**-24  # what one rounding of float32 moves a value by, of its own size
REACH = 16 * UNIT  # of a row's largest: a product, a bias, a residual and a norm round as often
NEIGHBOURS = 1000

Choice = tuple[bytes, float]  # the bytes of the row that is rounded, and a magnitude in it
Rounding = Callable[[np.ndarray], np.ndarray]


def is_close(got: np.ndarray, want: np.ndarray, largest_error: float = LARGEST_ERROR) -> bool:
    """Cosine of all values, and largest error relative to the largest value."""
    got = got.astype(np.float64)
    lengths = np.sqrt(np.sum(got**2) * np.sum(want**2))
    is_aligned = np.sum(got * want) >= LEAST_COSINE * lengths
    return bool(is_aligned and np.abs(got - want).max() <= largest_error * np.abs(want).max())


_ROUNDED, _TO_BF16 = reference.rounded, reference.to_bf16


def tie_following(
    rounding: Rounding, chosen: frozenset[Choice], ties: dict[Choice, float]
) -> Rounding:
    """Return `rounding`, but with the other neighbour at what is chosen.

    It stays a function of the row, and even: equal rows get equal codes, and equal magnitudes of a
    row get equal ones, as they do in the engine. Queries, keys and values round the same rows;
    heads that share keys copy values; of numbers in bf16 many are exactly half the largest.

    Args:
        rounding: To eight bits or to bf16.
        chosen: Where to take the other neighbour; elsewhere than at a tie it changes nothing.
        ties: Gets every value met within `REACH` of the middle between two neighbours: how far.
    """

    def rounded(x: np.ndarray) -> np.ndarray:
        near = rounding(x)
        if x.dtype == np.float32:  # a weight: the engine gets it rounded
            return near
        largest = np.abs(x).max(axis=-1, keepdims=True)
        step = 2.0 ** (np.frexp(x)[1] - 8) if rounding is _TO_BF16 else largest / 127 + 0 * x
        off = np.abs(x - near)
        is_tie = (step / 2 - off <= REACH * largest) & (step > 2 * REACH * largest)
        found = zip(*np.nonzero(is_tie & (largest >= 2.0**-100)), strict=True)
        for at in found:
            row, size = at[:-1], float(np.abs(x[at]))
            choice = (x[row].tobytes(), size)
            ties[choice] = float((step[at] / 2 - off[at]) / largest[row][0])
            if choice in chosen:
                near[at] += np.copysign(step[at], x[at] - near[at])
        return near

    return rounded


def neighbours(compute: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the reference's answer, then those where codes at ties fall to the other side.

    Those come first whose ties are few and near. What is asked for does not guide the search.
    """
    order = count()
    queue: list[tuple[float, int, frozenset[Choice]]] = [(0.0, next(order), frozenset())]
    known = {queue[0][2]}
    while queue:
        cost, _, chosen = heappop(queue)
        ties: dict[Choice, float] = {}
        with (
            patch.object(reference, "rounded", tie_following(_ROUNDED, chosen, ties)),
            patch.object(reference, "to_bf16", tie_following(_TO_BF16, chosen, ties)),
        ):
            yield compute()
        for tie, distance in ties.items():
            more = chosen | {tie}
            if more not in known:
                known.add(more)
                heappush(queue, (cost + max(distance, 0) + 2 * UNIT, next(order), more))


def check_answer(
    got: np.ndarray,
    spec: TransformerSpec,
    tensors: dict[str, np.ndarray],
    sequences: list[np.ndarray],
    *,
    types: list[np.ndarray] | None = None,
    **numerics: Any,
) -> int:
    """Assert for every sequence that its answer is the reference's, or that of a neighbour.

    What `numerics` may be is said by `reference.forward`.

    Rounding is a step: a value within float rounding of the middle between two codes may fall to
    either side, and in a narrow network one such fall moves the answer beyond the bound. So the
    reference is asked again with such codes, and no others, on the other side. Then little but
    float's error may remain; where attention or weights are in bf16, ties with small effects are
    too many to follow each, so the bound itself is asked for.

    Returns:
        How many neighbours were asked: 0 when the reference itself agrees.
    """
    is_bf16 = numerics.get("bf16") or numerics.get("bits") == 16
    tied_error = LARGEST_ERROR if is_bf16 else TIED_ERROR
    rows = [len(ids) if spec.pool == "tokens" else 1 for ids in sequences]
    assert len(got) == sum(rows)
    asked = 0
    for i, answer in enumerate(np.split(got, np.cumsum(rows)[:-1])):
        kinds = None if types is None else types[i : i + 1]
        asked += _neighbours_asked(
            answer,
            lambda i=i, kinds=kinds: reference.forward(
                spec, tensors, sequences[i : i + 1], kinds, **numerics
            ),
            tied_error,
        )
    return asked


def _neighbours_asked(got: np.ndarray, compute: Callable[[], np.ndarray], tied_error: float) -> int:
    want = compute()
    assert got.shape == want.shape
    for asked, answer in zip(range(NEIGHBOURS + 1), neighbours(compute), strict=False):
        if is_close(got, answer, tied_error if asked else LARGEST_ERROR):
            return asked
    error = np.abs(got - want).max() / np.abs(want).max()
    raise AssertionError(f"no codes at ties give this answer; error {error:.3g} of the scale")
