import io
import sys

from ingot.core.progress import SILENT, _Bar, progress_bar


def test_without_a_terminal_each_step_is_one_line_on_stderr(capsys):
    with progress_bar("work") as progress:
        progress.step("first", 0, 2)
        progress.step("first", 1, 2)
        progress.step("second", 2, 2)
    out, err = capsys.readouterr()

    assert out == ""
    assert err.splitlines() == ["[0/2] first", "[2/2] second"]


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("work") as progress:
        progress.step("measure", 1, 4)
        shown = isinstance(progress, _Bar)

    assert shown
    assert "measure" in screen.getvalue()


def test_silence_says_nothing(capsys):
    SILENT.step("work", 1, 2)

    assert capsys.readouterr() == ("", "")
