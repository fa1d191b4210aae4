"""The frontier: what nothing else beats in every respect at once."""

from collections.abc import Sequence


def frontier(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Say for each point whether no other point is at least as low everywhere and lower somewhere.

    Args:
        points: One tuple of costs per candidate; lower is better in every place.

    Examples:
        >>> frontier([(1.0, 5.0), (2.0, 1.0), (2.0, 6.0)])
        [True, True, False]
        >>> frontier([(1.0, 1.0), (1.0, 1.0)])
        [True, True]
    """
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b
