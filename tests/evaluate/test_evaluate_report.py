import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ingot.core.errors import EvidenceError, MissingExtraError
from ingot.evaluate.evidence import Interval
from ingot.evaluate.report.charts import HEIGHT, WIDTH, bars, scatter
from ingot.evaluate.report.content import (
    ReportRow,
    SensitivityRow,
    read_report,
    report_of,
    save_report,
)
from ingot.evaluate.report.page import write_report

pytest.importorskip("jinja2")


def row(label, latency, quality, size, **facts):
    ends = Interval(latency, latency * 0.9, latency * 1.1), Interval(quality, quality, quality)
    return ReportRow(label, "openvino bf16 x2", "candidate", size, *ends, **facts)


@pytest.fixture
def report(evidence):
    rows = (
        replace(row("float, unchanged", 2.0, 0.9, 400, on_frontier=True), kind="float"),
        row("int8 <fast>", 1.0, 0.89, 100, is_chosen=True, on_frontier=True, passed=True),
        row("int8 bad", 0.9, 0.5, 100, passed=False, reason="accuracy drop is 0.4"),
        ReportRow("broken", "openvino fp32 x2", "candidate", reason="cannot run"),
    )
    layers = (SensitivityRow("conv1", "Conv", 12.5, 800), SensitivityRow("fc", "Gemm", 40.0, 200))
    single = report_of(evidence, title="Tiny: 4.0x smaller")
    return replace(single, rows=rows, sensitivity=layers, notes=("Chosen because.",))


@pytest.fixture
def page(report, tmp_path):
    return write_report(report, tmp_path / "report.html").read_text()


class Reader(HTMLParser):
    """Collects what the browser would fetch or run, and checks that tags are closed."""

    VOID = frozenset(("meta", "link", "br", "img", "hr", "input", "line", "circle", "rect", "path"))

    def __init__(self):
        super().__init__()
        self.fetched, self.scripts, self.open = [], 0, []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.fetched += [v for k, v in attrs if k in {"src", "href"} and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_the_page_fetches_and_runs_nothing(page):
    reader = Reader()
    reader.feed(page)

    assert [url for url in reader.fetched if not url.startswith("data:")] == []
    assert reader.scripts == 0
    assert "url(" not in page.replace("url(data:", "")


def test_text_from_models_and_data_is_escaped(page):
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "int8 &lt;fast&gt;" in page


def test_the_page_shows_verdicts_candidates_layers_and_changed_examples(page):
    for text in ("accuracy drop &lt;= 0.03", "size &lt;= 50 B", "int8 bad", "conv1", "cannot run",
                 "Chosen because.", "12.5"):  # fmt: skip
        assert text in page, text


def test_plots_have_words_for_those_who_cannot_see_them(page):
    assert page.count('role="img"') >= 1
    assert re.search(r'aria-label="Latency against', page)
    assert '<html lang="en"' in page


def test_a_report_comes_back_from_its_file(report, tmp_path):
    assert read_report(save_report(report, tmp_path / "report.json")) == report


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", "not json", '{"evidence": null, "rows": [1]}']
)
def test_a_file_that_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)

    with pytest.raises(EvidenceError, match="must be a report"):
        read_report(tmp_path / "report.json")


def test_a_single_comparison_has_two_rows_and_says_which_claims_fail(evidence):
    found = report_of(evidence, title="Evidence")

    assert [r.label for r in found.rows] == ["baseline", "candidate"]
    assert found.summary == "1 of 2 claims do not hold: size <= 50 B."


def test_a_comparison_without_claims_says_so(evidence):
    assert "No claims" in report_of(replace(evidence, verdicts=()), title="E").summary


def test_points_lie_inside_the_plot_and_the_chosen_is_drawn_last(report):
    found = scatter(report)

    assert len(found.points) == 3  # what never ran has no place
    assert found.points[-1].row.is_chosen
    for point in found.points:
        assert 0 < point.x < WIDTH
        assert 0 < point.y < HEIGHT
        assert point.x_low < point.x < point.x_high


def test_faster_is_left_and_better_is_up(report):
    by = {point.row.label: point for point in scatter(report).points}

    assert by["int8 <fast>"].x < by["float, unchanged"].x
    assert by["float, unchanged"].y < by["int8 bad"].y
    assert by["float, unchanged"].radius == 2 * by["int8 <fast>"].radius  # area is size


def test_one_candidate_makes_no_plot(report):
    assert scatter(replace(report, rows=report.rows[:1])) is None


def test_a_layer_that_hurts_more_has_a_longer_bar(report):
    first, second = bars(report.sensitivity)

    # 27.5 dB apart: amplitudes differ by 10^(27.5 / 20)
    assert first.width / second.width == pytest.approx(10 ** (27.5 / 20))
    assert bars(()) == ()


def test_without_jinja2_the_extra_is_named(report, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)

    with pytest.raises(MissingExtraError, match="report"):
        write_report(report, tmp_path / "report.html")
