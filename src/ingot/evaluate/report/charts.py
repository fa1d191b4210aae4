"""Positions for the page's plots: data in, pixels out. The template draws them as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.core.units import show_bytes, show_ms
from ingot.evaluate.report.content import Report, ReportRow, SensitivityRow

WIDTH, HEIGHT = 860.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 24.0, 18.0, 46.0
SMALLEST, LARGEST = 6.0, 22.0
BAR_WIDTH = 420.0


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: pixel and text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate on the frontier plot, in pixels."""

    x: float
    y: float
    radius: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    row: ReportRow
    tip: str
    label: str

    @property
    def label_anchor(self) -> str:
        """Where the label stands: right of the point, or left of one that is far right."""
        return "start" if self.x < WIDTH / 2 else "end"

    @property
    def label_x(self) -> float:
        """Clear of the vertical interval."""
        return self.x + (8 if self.x < WIDTH / 2 else -8)

    @property
    def label_y(self) -> float:
        """Above the largest disc that may stand beside it."""
        return max(TOP + 12, self.y - LARGEST - 8)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Latency across, quality up, area is size on disk."""

    points: tuple[Point, ...]
    line: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


@dataclass(frozen=True, slots=True)
class Bar:
    """One layer of the sensitivity plot; `width` is in pixels, `share` in 0 to 1."""

    row: SensitivityRow
    width: float
    share: float


def scatter(report: Report) -> Scatter | None:
    """Place every candidate that has latency, quality and size; None if fewer than two have."""
    rows = [r for r in report.rows if r.latency and r.quality and r.size_bytes]
    if len(rows) < 2:
        return None
    x_of, x_ticks = _log_axis([r.latency.value for r in rows if r.latency])
    ends = [v for r in rows if r.quality for v in (r.quality.low, r.quality.high)]
    y_of, y_ticks = _linear_axis(min(ends), max(ends))
    biggest = max(r.size_bytes or 0 for r in rows)
    rows.sort(key=lambda r: r.is_chosen)  # drawn last, on top of the others
    points = tuple(_point(r, x_of, y_of, biggest) for r in rows)
    edge = sorted((p for p in points if p.row.on_frontier), key=lambda p: p.x)
    line = " ".join(f"{p.x:.1f},{p.y:.1f}" for p in edge) if len(edge) > 1 else ""
    return Scatter(points, line, x_ticks, y_ticks)


def bars(layers: Sequence[SensitivityRow], most: int = 20) -> tuple[Bar, ...]:
    """Place the most sensitive layers; a longer bar is a layer that hurts more."""
    shown = sorted(layers, key=lambda row: row.sqnr_db)[:most]
    if not shown:
        return ()
    noise = [10 ** (-row.sqnr_db / 20) for row in shown]
    worst = max(noise) or 1.0
    return tuple(
        Bar(row, max(2.0, BAR_WIDTH * value / worst), value / worst)
        for row, value in zip(shown, noise, strict=True)
    )


class _Axis:
    """A monotone map from values to pixels."""

    def __init__(self, low: float, high: float, ends: tuple[float, float], *, log: bool) -> None:
        self.log, self.ends = log, ends
        self.low, self.high = (math.log(low), math.log(high)) if log else (low, high)

    def __call__(self, value: float) -> float:
        place = math.log(max(value, 1e-12)) if self.log else value
        share = (place - self.low) / (self.high - self.low)
        return self.ends[0] + share * (self.ends[1] - self.ends[0])


def _log_axis(values: Sequence[float]) -> tuple[_Axis, tuple[Tick, ...]]:
    low, high = min(values) / 1.25, max(values) * 1.25
    axis = _Axis(low, high, (LEFT, WIDTH - RIGHT), log=True)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [m * 10.0**d for d in decades for m in (1, 1.5, 2, 3, 5, 7)]
    inside = [s for s in steps if low <= s <= high]
    return axis, tuple(Tick(axis(step), show_ms(step)) for step in inside)


def _linear_axis(low: float, high: float) -> tuple[_Axis, tuple[Tick, ...]]:
    room = max((high - low) * 0.12, 1e-4)
    low, high = low - room, high + room
    axis = _Axis(low, high, (HEIGHT - BOTTOM, TOP), log=False)
    raw = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw)
    first = math.ceil(low / step)
    digits = max(0, -math.floor(math.log10(step)))
    values = [k * step for k in range(first, math.floor(high / step) + 1)]
    return axis, tuple(Tick(axis(v), f"{v:.{digits}f}") for v in values)


def _point(row: ReportRow, x_of: _Axis, y_of: _Axis, biggest: int) -> Point:
    assert row.latency is not None
    assert row.quality is not None
    size = row.size_bytes or 0
    speed, quality = row.latency, row.quality
    tip = "\n".join((
        f"{row.label} on {row.config}",
        f"{show_ms(speed.value)} [{show_ms(speed.low)}, {show_ms(speed.high)}]",
        f"quality {quality.value:.4f} [{quality.low:.4f}, {quality.high:.4f}]",
        f"{show_bytes(size)} on disk",
        row.reason,
    ))  # fmt: skip
    return Point(
        x_of(row.latency.value),
        y_of(row.quality.value),
        max(SMALLEST, LARGEST * math.sqrt(size / biggest)),
        x_of(row.latency.low),
        x_of(row.latency.high),
        y_of(row.quality.low),
        y_of(row.quality.high),
        row,
        tip,
        f"{row.label}, {row.config}",
    )
