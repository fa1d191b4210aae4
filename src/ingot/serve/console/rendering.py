"""From content to HTML: templates, and how figures and times are written."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from ingot.core.digest import short
from ingot.core.extras import need
from ingot.core.units import show_bytes, show_count, show_ms, show_number
from ingot.serve.console.charts import svg_path
from ingot.serve.console.page import ROOT, Content, Section

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_STATIC = (
    "console.css", "console.js", "theme.js", "icon.svg", "vendor/htmx.min.js",
    "vendor/hx-sse.min.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css",
)  # fmt: skip
_NOTHING = "\N{EN DASH}"


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Return what browsers load, by name, with its media type."""
    folder = files("ingot.serve.console").joinpath("static")
    return {
        name: (folder.joinpath(name).read_bytes(), _KINDS["." + name.rpartition(".")[2]])
        for name in _STATIC
    }


@cache
def static_url(name: str) -> str:
    """Return where a static file is, with a mark of its content, so that it may be kept."""
    mark = hashlib.sha256(static_files()[name][0]).hexdigest()[:12]
    return f"{ROOT}/static/{name}?v={mark}"


class Renderer:
    """Renders pages of one console.

    Args:
        sections: Its navigation.
        has_sessions: Whether visitors sign in, and can sign out.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """

    def __init__(self, sections: Sequence[Section], *, has_sessions: bool) -> None:
        jinja2 = need("jinja2", extra="console", what="The console")
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(_source),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._templates.filters.update(
            ms=_ms, rate=_rate, percent=_percent, size=show_bytes, count=_count, short=short,
            ago=_ago, iso=_iso, absolute=_absolute, span=_span, quantity=_quantity, path=svg_path,
            number=show_number,
            amount=_amount,
        )  # fmt: skip
        self._templates.globals.update(
            root=ROOT, sections=list(sections), has_sessions=has_sessions, static=static_url,
        )  # fmt: skip

    # Any: what a template is given
    def page(self, template: str, content: Content | None, **more: Any) -> str:
        """Return a whole page."""
        return self._render(template, page=content, layout="base.html", **more)

    def live(self, template: str, content: Content, **more: Any) -> str:
        """Return the part of a page that is kept up to date."""
        return self._render(template, page=content, layout="live.html", **more)

    def _render(self, template: str, **values: Any) -> str:
        text: str = self._templates.get_template(template).render(values)
        return text


def encode(content: object) -> bytes:
    """Return the JSON of a content."""
    return msgspec.json.encode(content)


def _source(name: str) -> str:
    folder = files("ingot.serve.console").joinpath("templates")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _ms(value: float | None) -> str:
    return _NOTHING if value is None else show_ms(value)


def _rate(value: float | None) -> str:
    """Return a rate with as many digits as it deserves."""
    if value is None:
        return _NOTHING
    if value >= 1000:
        return show_count(value)
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _percent(share: float) -> str:
    if share == 0:
        return "0 %"
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.2g} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return _NOTHING
    return show_ms(value) if unit == "ms" else f"{_rate(value)} {unit}".rstrip()


def _amount(value: float | None, unit: str) -> str:
    """Return a figure of a claim, or a share.

    Examples:
        >>> _amount(0.025, "share"), _amount(1.2, "x"), _amount(None, "ms")
        ('2.5 %', '1.2x', 'no end')
    """
    if value is None:
        return "no end"
    if unit == "share":
        return f"{100 * value:.3g} %"
    return f"{value:.3g}x" if unit == "x" else show_ms(value)


def _ago(seconds: float, now: float) -> str:
    """Return how long ago a time was."""
    age = now - seconds
    return "now" if age < 1 else f"{_span(age)} ago"


def _span(seconds: float) -> str:
    """Return a stretch of time in its greatest unit.

    Examples:
        >>> _span(0.25), _span(95), _span(7300)
        ('250 ms', '95 s', '2 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _absolute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
