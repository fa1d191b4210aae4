"""Options of `ingot serve` that belong to one way of serving."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--port", "99999"], "must be 1 to 65535"),
        (["--grpc-port", "99999"], "must be 1 to 65535"),
        (["--grpc-port", "-1"], "must be 1 to 65535"),
        (["--drain-s", "-4"], "must be 0 s or longer"),
        (["--generate"], "must carry a tokenizer"),
        (["--log", "/"], "must be a SQLite file"),
        (["--async", "--max-instances", "0"], "max >= 1"),
        (["--async", "--database", "mysql://u:secret@h/n"], "must be postgresql://"),
        (["--async", "--allow", "/nonexistent"], "a folder that exists"),
        (["--async", "--generate"], "drop --async"),
        (["--shadow", "tiny:1", "--split", "tiny:1=100", "--workers", "1", "--max-batch", "2"],
         "must not join a call"),
    ],
)  # fmt: skip
def test_a_dry_run_refuses_what_a_start_would(run, released, words, complaint):
    done = run("serve", "tiny@prod", *words, "--dry-run")

    assert done.code == 2
    assert complaint in done.err
    assert "secret" not in done.err


def test_a_dry_run_refuses_a_version_whose_engine_is_not_installed(run, released, monkeypatch):
    from ingot.core.errors import EngineError
    from ingot.runtime import engines

    def missing(*_):
        raise EngineError("An engine must be installed; this one is not.")

    monkeypatch.setattr(engines, "_ready", missing)

    assert "must be installed" in run("serve", "tiny@prod", "--dry-run").err
    assert "must be installed" in run("serve", "tiny@prod", "--dry-run", "--workers", "1").err


@pytest.mark.parametrize("way", [[], ["--async"]])
def test_a_dry_run_leaves_nothing_behind(run, released, way):
    home = Path(os.environ["INGOT_HOME"])
    before = {path.name for path in home.iterdir()}

    done = run("serve", "tiny@prod", *way, "--dry-run", "--json")

    assert (done.code, done.json["grpc_port"], done.json["beside"]) == (0, None, [])
    assert {path.name for path in home.iterdir()} == before


def test_a_server_says_its_real_ports_and_that_it_drains_and_stops(released):
    pytest.importorskip("grpc")
    words = [sys.executable, "-m", "ingot", "serve", "tiny@prod", "--port", "0", "--json"]
    words += ["--grpc-port", "0"]
    with subprocess.Popen(words, stdout=-1, stderr=-1, text=True) as server:
        try:
            said = [server.stderr.readline() for _ in range(3)]
        finally:
            server.send_signal(signal.SIGTERM)
            out, rest = server.communicate(timeout=30)
    facts = json.loads(out)

    assert server.returncode == 0
    assert f"gRPC at 127.0.0.1:{facts['grpc_port']}\n" in said
    assert said[-1] == f"answering at http://127.0.0.1:{facts['port']}\n"
    assert 0 not in (facts["port"], facts["grpc_port"])
    assert rest.splitlines() == ["draining: 0 requests in flight, at most 10 s", "stopped"]


def test_a_server_whose_terminal_is_gone_drains_and_ends_with_0(released):
    words = [sys.executable, "-m", "ingot", "serve", "tiny@prod", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        next(line for line in server.stderr if "answering at" in line)
        server.stderr.close()
        server.send_signal(signal.SIGTERM)

        assert server.wait(30) == 0
