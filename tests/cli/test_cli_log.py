import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ingot.core.files import home
from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation

ONE = Observation("r1", 1_777_636_800.5, "digits", "sha256:" + "ab" * 32, latency_ms=2.0)


@pytest.fixture
def log():
    path = home() / "observations.sqlite"
    path.unlink(missing_ok=True)
    with ObservationLog(path) as opened:
        opened.record(ONE)
        opened.record(replace(ONE, request_id="r2", time=ONE.time + 60, status=500, latency_ms=8.0))
        opened.record(replace(ONE, request_id="r3", endpoint="faces", arm="b"))
    return path


def test_show_tells_requests_statuses_and_latencies(run, log):
    found = run("log", "show", "digits", "--json").json

    assert found == {
        "endpoints": [
            {"endpoint": "digits", "version": ONE.version, "requests": 2, "rows": 2,
             "by_status": {"200": 1, "500": 1}, "p50_ms": 2.0, "p95_ms": 8.0, "p99_ms": 8.0}
        ],
        "lost": 0,
    }  # fmt: skip
    assert "200: 1, 500: 1" in run("log", "show").out


def test_times_and_arms_select(run, log):
    def requests(*words):
        return sum(
            one["requests"] for one in run("log", "show", "--json", *words).json["endpoints"]
        )

    assert requests("--since", "2026-05-01T12:01") == 1
    assert requests("--until", "2026-05-01T12:01:00Z") == 2
    assert requests("--arm", "b") == 1
    assert requests("--version", "abab") == 3
    assert requests("--version", "cd") == 0
    assert requests("--until", "36500d") == 0


def test_a_time_that_is_none_is_misuse(run, log):
    done = run("log", "show", "--since", "yesterday")

    assert done.code == 2
    assert "like 30m, 2h or 7d" in done.err


def test_tail_shows_the_newest_last(run, log):
    lines = [
        json.loads(line) for line in run("log", "tail", "--last", 2, "--json").out.splitlines()
    ]

    assert [line["request_id"] for line in lines] == ["r2", "r3"]
    assert "500      8.000 ms  digits  r2" in run("log", "tail", "digits").out


def test_tail_follows_what_comes(log):
    words = [sys.executable, "-m", "ingot.cli", "log", "tail", "--last", "1", "--follow", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert json.loads(one.stdout.readline())["request_id"] == "r3"
        with ObservationLog(log) as opened:
            opened.record(replace(ONE, request_id="r4"))
        assert json.loads(one.stdout.readline())["request_id"] == "r4"
        time.sleep(0.1)
        os.kill(one.pid, signal.SIGINT)
        assert one.wait(20) == 130


def test_export_writes_a_table(run, log, tmp_path):
    done = run("log", "export", "digits", tmp_path / "t.jsonl", "--json").json
    every = run("log", "export", "--all", tmp_path / "t.csv")

    assert done == {"path": str(tmp_path / "t.jsonl"), "rows": 2, "first": ONE.time,
                    "last": ONE.time + 60}  # fmt: skip
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 4
    assert "2026-05-01T12:00:00.500Z" in every.out


def test_an_endpoint_that_the_log_does_not_know_is_named_with_the_nearest(run, log, tmp_path):
    for words in (["show"], ["tail"], ["export"]):
        out = [tmp_path / "t.csv"] if words == ["export"] else []
        done = run("log", *words, "digit", *out)

        assert done.code == 0
        assert "no observation of 'digit'. Did you mean 'digits'" in done.err


@pytest.mark.parametrize("words", [["t.csv"], ["a", "b", "t.csv"], ["digits", "t.csv", "--all"]])
def test_export_needs_an_endpoint_or_all(run, log, words):
    assert run("log", "export", *words).code == 2


def test_without_a_log_it_says_what_to_do(run, tmp_path):
    done = run("log", "show", "--log", tmp_path / "none.sqlite")

    assert done.code == 2
    assert "Serve something first" in done.err


def test_rules_of_the_log_are_checked_before_serving(run, released, tmp_path):
    (tmp_path / "rules.toml").write_text("sampel = 0.1\n")

    done = run("serve", "tiny@prod", "--log-rules", tmp_path / "rules.toml", "--dry-run")

    assert done.code == 2
    assert "Did you mean 'sample'" in done.err


def test_the_address_of_a_collector_is_checked_before_serving(run, released):
    done = run("serve", "tiny@prod", "--otlp", "localhost:4318", "--dry-run")

    assert done.code == 2
    assert "http:// or https://" in done.err
