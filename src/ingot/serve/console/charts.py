"""Charts as data, and as lines that need no script."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 150
_MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What it shows.
        values: One per time of the chart; None where there is none.
    """

    label: str
    values: tuple[float | None, ...]

    @property
    def last(self) -> float | None:
        """The newest value; None if there is none."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one time axis.

    Attributes:
        id: Unique on its page.
        title: What it shows.
        unit: Of the values; empty for counts.
        times: UTC seconds since 1970, growing.
        lines: At most four.
        is_stepped: Whether values hold until the next one.
    """

    id: str
    title: str
    unit: str
    times: tuple[float, ...]
    lines: tuple[Line, ...]
    is_stepped: bool = False

    @property
    def top(self) -> float:
        """The greatest value; 0 if there is none."""
        return max((v for line in self.lines for v in line.values if v is not None), default=0.0)


def svg_path(
    values: Sequence[float | None],
    top: float,
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    is_stepped: bool = False,
) -> str:
    """Return the `d` of an SVG path from the left edge to the right; gaps where values are None.

    Args:
        values: From the oldest to the newest; long ones are thinned, keeping each part's greatest.
        top: Value at the upper edge.
        width: Of the drawing.
        height: Of the drawing.
        is_stepped: Whether values hold until the next one.

    Examples:
        >>> svg_path([0, None, 2, 2], 2.0, width=30, height=10)
        'M0 10M20 0L30 0'
    """
    values = _thin(values)
    step, scale = width / max(1, len(values) - 1), height / (top or 1.0)
    parts, pen = [], False
    for index, value in enumerate(values):
        if value is not None:
            x, y = f"{index * step:.4g}", f"{height - value * scale:.4g}"
            across = f"H{x}" if pen and is_stepped else ""
            parts.append(f"{across}{'L' if pen else 'M'}{x} {y}")
        pen = value is not None
    return "".join(parts)


def _thin(values: Sequence[float | None]) -> Sequence[float | None]:
    size = -(-len(values) // _MOST_POINTS)
    if size < 2:
        return values
    groups = (values[i : i + size] for i in range(0, len(values), size))
    return [max((v for v in group if v is not None), default=None) for group in groups]
