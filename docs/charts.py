"""Draw columns of a table over its first one: one panel for each, below one another."""

from collections.abc import Sequence

from roofline import STYLE

WIDTH, LEFT, RIGHT, TOP, PANEL, GAP, BOTTOM = 960, 70, 20, 34, 120, 44, 44
LINE = ".line { fill: none; stroke: #2563eb; stroke-width: 2 }\n"
LINE_DARK = "@media (prefers-color-scheme: dark) { .line { stroke: #60a5fa } }\n"


def panels(title: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> str:
    """Return the picture as SVG.

    Args:
        title: What it shows, for those who cannot see it.
        columns: Names; the first is the axis that all panels share.
        rows: Numbers, as many per row as there are names, the first ascending.
    """
    count = len(columns) - 1
    height = TOP + count * PANEL + (count - 1) * GAP + BOTTOM
    end = float(rows[-1][0]) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / end
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{STYLE}{LINE}{LINE_DARK}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
    ]
    for i, name in enumerate(columns[1:], 1):
        top = TOP + (i - 1) * (PANEL + GAP)
        parts += _panel(name, [(float(r[0]), float(r[i])) for r in rows], top, scale)
    parts += _ticks(columns[0], end, scale, height - BOTTOM)
    return "\n".join([*parts, "</svg>\n"])


def _panel(name: str, points: Sequence[tuple[float, float]], top: float, scale: float) -> list[str]:
    most = max(y for _, y in points) or 1.0
    bottom = top + PANEL
    path, before = "", None
    for x, y in points:  # a value holds until the next one
        at, level = LEFT + x * scale, bottom - y / most * PANEL
        path += f"M{at:.1f} {level:.1f}" if before is None else f"H{at:.1f}V{level:.1f}"
        before = y
    return [
        f'<text x="{LEFT}" y="{top - 10}">{name}</text>',
        f'<path class="grid" d="M{LEFT} {top}H{WIDTH - RIGHT}M{LEFT} {bottom}H{WIDTH - RIGHT}"/>',
        f'<text class="name soft" x="{LEFT - 8}" y="{top + 4}">{most:g}</text>',
        f'<text class="name soft" x="{LEFT - 8}" y="{bottom + 4}">0</text>',
        f'<path class="line" d="{path}"/>',
    ]


def _ticks(name: str, end: float, scale: float, bottom: float) -> list[str]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if end / s <= 12)
    ticks = [
        f'<text class="tick soft" x="{LEFT + i * step * scale:.1f}" y="{bottom + 18}">'
        f"{i * step:g}</text>"
        for i in range(int(end / step) + 1)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*ticks, f'<text class="tick soft" x="{middle}" y="{bottom + 36}">{name}</text>']
