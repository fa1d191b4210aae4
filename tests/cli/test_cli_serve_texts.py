"""`ingot serve --generate`: what the options become, and what they do not go with."""

import pytest

from ingot.cli._generation_options import generation_settings
from ingot.cli.serve import command as serve
from ingot.serve.endpoint import Generation


def test_the_options_become_the_settings_of_the_endpoint():
    options = ["--generate", "--cache-tokens", "512", "--cache-bits", "8", "--most-running", "4"]
    options += ["--most-waiting", "9", "--step-tokens", "32", "--end-token", "</s>"]
    options += ["--end-token", "5"]

    found = generation_settings(serve.make_context("serve", ["tiny@prod", *options]).params)

    assert found == Generation(512, 8, 4, 9, 32, ("</s>", "5"))


def test_without_the_flag_nothing_is_written(run, released):
    assert run("serve", "tiny@prod", "--dry-run", "--json").json["generation"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", 2], "2 workers"),
        (["--max-batch", 4], "Leave both out"),
        (["--most-waiting", 0], "most_waiting of tiny:1"),
        (["--async"], "drop --async"),
    ],
)
def test_what_does_not_go_together_is_refused(run, released, options, words):
    done = run("serve", "tiny@prod", "--generate", *options)

    assert done.code == 2
    assert words in done.err


def test_a_model_without_a_tokenizer_is_refused_when_it_starts(run, released):
    done = run("serve", "tiny@prod", "--generate", "--port", 0)

    assert done.code == 2
    assert "must carry a tokenizer" in done.err
