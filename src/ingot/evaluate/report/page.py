"""The HTML page of a report: one file, no script, nothing fetched."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from ingot.core.digest import short
from ingot.core.extras import need
from ingot.core.files import write_atomic
from ingot.core.units import show_bytes, show_count, show_ms
from ingot.evaluate.evidence import Comparison, Interval
from ingot.evaluate.report.charts import bars, scatter
from ingot.evaluate.report.content import Report


def render_report(report: Report) -> str:
    """Return the page as HTML.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    jinja2 = need("jinja2", extra="report", what="The HTML report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        size=show_bytes,
        ms=show_ms,
        count=show_count,
        short=short,
        interval=_interval,
        quantity=_quantity,
    )
    text = files("ingot.evaluate.report").joinpath("report.html").read_text(encoding="utf-8")
    page: str = environment.from_string(text).render(
        report=report,
        evidence=report.evidence,
        tiles=_tiles(report),
        scatter=scatter(report),
        bars=bars(report.sensitivity),
    )
    return page


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path`, whole or not at all."""
    return write_atomic(path, render_report(report).encode())


def _tiles(report: Report) -> list[dict[str, Any]]:
    """Return the headline numbers: what got smaller, faster, and what it cost."""
    evidence = report.evidence
    if evidence is None:
        return []
    tiles = []
    for metric, better in (("size", "smaller"), ("latency", "faster")):
        row = evidence.find(metric)
        if row is not None and row.ratio.value > 0:
            tiles.append(_ratio_tile(row, better))
    quality = next((row for row in evidence.comparisons if row.unit == "fraction"), None)
    if quality is not None:
        tiles.append(_quality_tile(quality))
    return tiles


def _ratio_tile(row: Comparison, better: str) -> dict[str, Any]:
    gain, low, high = 1 / row.ratio.value, 1 / row.ratio.high, 1 / row.ratio.low
    worse = {"smaller": "larger", "faster": "slower"}[better]
    word = better if gain >= 1 else worse
    times = gain if gain >= 1 else 1 / gain
    if gain < 1:
        low, high = 1 / high, 1 / low
    show = show_bytes if row.unit == "bytes" else show_ms
    return {
        "value": f"{times:.2f}x",
        "word": word,
        "good": gain >= 1,
        "range": "" if low == high else f"{low:.2f} to {high:.2f}x",
        "from": f"{show(row.baseline.value)} → {show(row.candidate.value)}",
    }


def _quality_tile(row: Comparison) -> dict[str, Any]:
    points = -row.drop.value if row.direction == "higher" else row.drop.value
    ends = (
        sorted((-row.drop.low, -row.drop.high))
        if row.direction == "higher"
        else [row.drop.low, row.drop.high]
    )
    return {
        "value": f"{points * 100:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00"),
        "word": f"points of {row.metric}",
        "good": row.drop.value <= 0 or row.drop.low <= 0,
        "range": f"{ends[0] * 100:+.2f} to {ends[1] * 100:+.2f}",
        "from": f"{row.baseline.value:.4f} → {row.candidate.value:.4f}",
    }


def _interval(interval: Interval | None, digits: int = 4) -> str:
    if interval is None:
        return ""
    if interval.low == interval.high:
        return f"{interval.value:.{digits}g}"
    return f"{interval.value:.{digits}g} [{interval.low:.{digits}g}, {interval.high:.{digits}g}]"


def _quantity(interval: Interval, unit: str) -> str:
    if unit == "bytes":
        return show_bytes(interval.value)
    return _interval(interval) + ("" if unit == "fraction" else f" {unit}")
