"""Options of `ingot serve` that belong to one way of serving."""

import pytest


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--min-instances", "2"], "--min-instances goes with --async; add it, or drop it."),
        (["--steps", "1,100"], "--steps goes with --canary; add it, or drop it."),
        (["--cache-tokens", "64"], "--cache-tokens goes with --generate; add it, or drop it."),
        (["--salt", "x"], "--salt goes with --split or --canary; add it, or drop it."),
        (["--async", "--max-batch", "8"], "--max-batch is about answers at once"),
        (["--async", "--workers", "2"], "--workers is about answers at once"),
    ],
)
def test_an_option_that_would_be_passed_over_is_refused(run, words, wanted):
    done = run("serve", "digits@prod", *words, "--dry-run")

    assert done.code == 2
    assert wanted in done.err


@pytest.mark.parametrize("words", [["--async", "--min-instances", "1"], ["--workers", "2"]])
def test_an_option_that_counts_is_taken(run, words):
    done = run("serve", "digits@prod", *words, "--dry-run")

    assert "must have been released; got 'digits'" in done.err  # it came as far as the registry


def test_help_shows_the_options_of_a_way_together(run):
    shown = run("serve", "--help").out

    general, _, jobs = shown.partition("Options with --async:")
    assert "--min-instances" in jobs
    assert "--min-instances" not in general.split("Options:")[1]
    assert "[async]" not in shown
