import hashlib
import re
from importlib.resources import files

import pytest

CONSOLE = files("ingot.serve.console")
CSS = CONSOLE.joinpath("static", "console.css").read_text()
COLOURS = {
    name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
}
TEXT = ("ink", "muted", "accent", "good", "warn", "bad")


def luminance(colour):
    """Return the relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_the_standard_says():
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "card", "sunk"])
@pytest.mark.parametrize("text", TEXT)
def test_text_can_be_read_on_every_ground(text, ground, theme):
    assert contrast(COLOURS[text][theme], COLOURS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("good", "soft-good"), ("warn", "soft-warn"), ("bad", "soft-bad"), ("accent", "soft-info"),
        ("muted", "soft-none"), ("ink", "soft-bad"), ("on-accent", "accent"), ("on-bad", "bad"),
    ],
)  # fmt: skip
def test_text_can_be_read_on_its_own_ground(text, ground, theme):
    assert contrast(COLOURS[text][theme], COLOURS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("series", ["series-1", "series-2", "series-3", "series-4"])
def test_lines_of_charts_can_be_seen(series, theme):
    assert contrast(COLOURS[series][theme], COLOURS["card"][theme]) >= 3.0


def templates():
    return [one for one in CONSOLE.joinpath("templates").iterdir() if one.name.endswith(".html")]


@pytest.mark.parametrize("template", templates(), ids=lambda one: one.name)
def test_no_template_has_inline_script_style_or_unescaped_text(template):
    text = template.read_text()

    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|\|\s*safe|hx-on|js:", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


@pytest.mark.parametrize("template", templates(), ids=lambda one: one.name)
def test_nothing_is_loaded_from_elsewhere(template):
    assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", template.read_text())


def test_files_of_others_are_as_they_were_published():
    vendor = CONSOLE.joinpath("static", "vendor")
    listed = dict(
        reversed(line.split()) for line in vendor.joinpath("SHA256SUMS").read_text().splitlines()
    )
    there = {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in vendor.iterdir()
        if one.name not in {"SHA256SUMS", "README.md"}
    }

    assert there == listed
    assert {"LICENSE.htmx", "LICENSE.uPlot"} <= set(there)
