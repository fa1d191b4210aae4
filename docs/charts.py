"""Draw columns of tables over their first one: one panel for each, below one another."""

from collections.abc import Mapping, Sequence

from roofline import STYLE

WIDTH, LEFT, RIGHT, TOP, PANEL, GAP, BOTTOM = 960, 70, 20, 54, 120, 44, 44
LINE = (
    ".line { fill: none; stroke: #2563eb; stroke-width: 2 }\n"
    ".line.b { stroke: #d97706; stroke-dasharray: 6 4 }\n"
)
LINE_DARK = (
    "@media (prefers-color-scheme: dark) "
    "{ .line { stroke: #60a5fa } .line.b { stroke: #fbbf24 } }\n"
)
CLASSES = ("line", "line b")
Rows = Sequence[Sequence[float]]


def panels(title: str, columns: Sequence[str], lines: Mapping[str, Rows]) -> str:
    """Return the picture as SVG.

    Args:
        title: What it shows, for those who cannot see it.
        columns: Names; the first is the axis that all panels share.
        lines: What is drawn in every panel, one or two, by name. A row has as many numbers as there
            are columns, the first ascending.
    """
    count = len(columns) - 1
    height = TOP + count * PANEL + (count - 1) * GAP + BOTTOM
    end = max(float(rows[-1][0]) for rows in lines.values()) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / end
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{STYLE}{LINE}{LINE_DARK}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        *_legend(list(lines)),
    ]
    for i, name in enumerate(columns[1:], 1):
        top = TOP + (i - 1) * (PANEL + GAP)
        drawn = [[(float(r[0]), float(r[i])) for r in rows] for rows in lines.values()]
        parts += _panel(name, drawn, top, scale)
    parts += _ticks(columns[0], end, scale, height - BOTTOM)
    return "\n".join([*parts, "</svg>\n"])


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], WIDTH - RIGHT
    for name, kind in reversed(list(zip(names, CLASSES, strict=False))):
        x -= 60 + 8 * len(name)
        parts += [
            f'<path class="{kind}" d="M{x} 20h30"/>',
            f'<text x="{x + 38}" y="24">{name}</text>',
        ]
    return parts


def _panel(
    name: str, drawn: Sequence[Sequence[tuple[float, float]]], top: float, scale: float
) -> list[str]:
    most = max(y for points in drawn for _, y in points) or 1.0
    bottom = top + PANEL
    parts = [
        f'<text x="{LEFT}" y="{top - 10}">{name}</text>',
        f'<path class="grid" d="M{LEFT} {top}H{WIDTH - RIGHT}M{LEFT} {bottom}H{WIDTH - RIGHT}"/>',
        f'<text class="name soft" x="{LEFT - 8}" y="{top + 4}">{most:g}</text>',
        f'<text class="name soft" x="{LEFT - 8}" y="{bottom + 4}">0</text>',
    ]
    for points, kind in zip(drawn, CLASSES, strict=False):
        path, before = "", None
        for x, y in points:  # a value holds until the next one
            at, level = LEFT + x * scale, bottom - y / most * PANEL
            path += f"M{at:.1f} {level:.1f}" if before is None else f"H{at:.1f}V{level:.1f}"
            before = y
        parts.append(f'<path class="{kind}" d="{path}"/>')
    return parts


def _ticks(name: str, end: float, scale: float, bottom: float) -> list[str]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if end / s <= 12)
    ticks = [
        f'<text class="tick soft" x="{LEFT + i * step * scale:.1f}" y="{bottom + 18}">'
        f"{i * step:g}</text>"
        for i in range(int(end / step) + 1)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*ticks, f'<text class="tick soft" x="{middle}" y="{bottom + 36}">{name}</text>']
