"""Draw how much of the machine each network uses: one bar each, and the peak as a line."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, RIGHT, TOP, BOTTOM, ROW = 960, 300, 46, 54, 30
BAR = 16
ROOM = 1.04  # the axis goes a little beyond the peak
# A background of its own keeps the picture readable on any page.
STYLE = """
.paper { fill: #ffffff } .bar { fill: #2563eb } .peak { stroke: #b45309; stroke-dasharray: 5 4 }
.grid { stroke: #e5e7eb } text { font: 13px system-ui, sans-serif; fill: #1f2937 }
.soft { fill: #5b6472 } .name { text-anchor: end } .tick { text-anchor: middle }
.mark { fill: #b45309; text-anchor: middle }
@media (prefers-color-scheme: dark) {
  .paper { fill: #111827 } .bar { fill: #60a5fa } .peak { stroke: #fbbf24 }
  .grid { stroke: #374151 } text { fill: #e5e7eb } .soft { fill: #a3acba } .mark { fill: #fbbf24 }
}
"""


def draw(rows: Sequence[Sequence[str]], *, by_size: bool = True, left: int = 190) -> str:
    """Return the picture as SVG.

    Args:
        rows: Network, GMAC, latency in ms, TOPS, share of the peak; the last row is the peak.
            Networks whose operations could not be counted have no TOPS and no bar.
        by_size: Whether the longest bar comes first; else they stay as given.
        left: Room for the names.
    """
    *networks, peak_row = rows
    peak = float(peak_row[3])
    bars = [row for row in networks if row[3]]
    if by_size:
        bars.sort(key=lambda row: -float(row[3]))
    height = TOP + ROW * len(bars) + BOTTOM
    scale = (WIDTH - left - RIGHT) / (peak * ROOM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Operations per second of each network against the int8 peak</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        *_axis(peak, left, scale, height - BOTTOM),
        *(part for i, row in enumerate(bars) for part in _bar(row, left, TOP + ROW * i, scale)),
        *_peak(peak, left + peak * scale, height - BOTTOM),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _axis(peak: float, left: float, scale: float, bottom: float) -> list[str]:
    """Return a thin line and a number at every step, and the unit below."""
    step = next(s for s in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 100) if peak / s <= 8)
    parts = []
    for i in range(int(peak * ROOM / step) + 1):
        x = left + i * step * scale
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 8}V{bottom}"/>')
        parts.append(f'<text class="tick soft" x="{x:.1f}" y="{bottom + 18}">{i * step:g}</text>')
    middle = left + peak * ROOM * scale / 2
    unit = "10¹² multiplications and additions per second (TOPS)"
    return [*parts, f'<text class="tick soft" x="{middle:.1f}" y="{bottom + 36}">{unit}</text>']


def _bar(row: Sequence[str], left: float, top: float, scale: float) -> list[str]:
    name, work, latency, rate, share = row
    long, base = float(rate) * scale, top + BAR - 3
    return [
        f'<text class="name" x="{left - 10}" y="{base}">{escape(name)}</text>',
        f'<rect class="bar" x="{left}" y="{top}" width="{long:.1f}" height="{BAR}" rx="2"/>',
        f'<text class="name" x="{WIDTH - RIGHT + 64}" y="{base}">{escape(share)}</text>',
        f'<text class="soft" x="{WIDTH - RIGHT + 84}" y="{base}">'
        f"{escape(work)} GMAC in {escape(latency)} ms</text>",
    ]


def _peak(peak: float, x: float, bottom: float) -> list[str]:
    words = f"fastest int8 product here, {peak:g} TOPS"
    return [
        f'<path class="peak" stroke-width="2" d="M{x:.1f} {TOP - 10}V{bottom}"/>',
        f'<text class="mark" x="{x:.1f}" y="{TOP - 18}">{words}</text>',
    ]
