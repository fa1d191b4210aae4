"""`ingot serve --split/--shadow/--canary` and `ingot traffic`."""

import signal
import subprocess
import sys
import threading
import time

import click
import pytest

from ingot.cli._traffic_options import percents, traffic_plan
from ingot.cli.serve import command as serve


@pytest.fixture
def two(run, files, best, released, tmp_path):
    """Release what `best` holds a second time, with other evidence, as `tiny:2`."""
    proof = tmp_path / "proof"
    run("compare", files / "model.onnx", best, "--data", files / "data.npz", "--threads", 1,
        "--require", "agreement >= 0.8", "--out", proof)  # fmt: skip
    made = run("release", "tiny", best, "--evidence", proof / "evidence.json", "--json").json
    assert made["number"] == 2


@pytest.fixture
def server(two):
    """Give `server(words...)`: the URL of `ingot serve` in a process of its own."""
    begun = []

    def begin(*words):
        command = [sys.executable, "-m", "ingot.cli", "serve", *words, "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        begun.append(process)
        said = next((line for line in process.stderr if "answering at" in line), "")
        assert said
        return said.split()[-1]

    begin.begun = begun
    yield begin
    for process in begun:
        process.send_signal(signal.SIGTERM)  # does nothing to one that has ended
        rest = threading.Thread(target=process.stderr.read)
        rest.start()
        assert process.wait(30) in {0, -signal.SIGKILL}
        rest.join()
        process.stderr.close()


def test_two_versions_share_requests_and_a_canary_is_run_from_the_command_line(run, server, files):
    url = server(
        "tiny@prod", "--canary", "tiny:2", "--shadow", "tiny:2=0.5", "--steps", "50,100",
        "--step-s", "0", "--step-requests", "20", "--require", "error_rate <= 0.3",
    )  # fmt: skip
    found, deadline = {"state": "running"}, time.monotonic() + 30
    while found["state"] == "running":
        assert time.monotonic() < deadline
        for _ in range(10):
            asked = run("predict", f"{url}/tiny", "--data", files / "data.npz", "--rows", 1)
            assert asked.code == 0
        found = run("traffic", f"{url}/tiny", "--json").json
    shown = run("traffic", f"{url}/tiny")

    assert (found["state"], found["next"]) == ("done", "ingot promote tiny:2 STAGE")
    assert found["weights"] == {"1": 0.0, "2": 1.0}
    assert "100 %" in shown.out
    assert "error_rate <= 0.3 is held" in shown.out.replace("\n", " ")
    assert "ingot promote tiny:2 STAGE" in shown.err


def test_a_canary_that_was_rolled_back_stays_out_though_the_server_was_killed(run, server):
    words = ("tiny:1", "--canary", "tiny:2", "--require", "error_rate <= 0.3")
    url = server(*words)
    started = run("traffic", f"{url}/tiny", "--json").json
    run("traffic", f"{url}/tiny", "--roll-back")
    server.begun[-1].kill()
    server.begun[-1].wait(30)

    again = run("traffic", f"{server(*words)}/tiny", "--json").json

    assert (started["state"], started["weights"]) == ("running", {"1": 0.99, "2": 0.01})
    assert (again["state"], again["weights"]) == ("rolled back", {"1": 1.0, "2": 0.0})
    assert [row["action"] for row in again["decisions"]] == ["start", "roll back"]


def test_weights_are_set_by_hand(run, server):
    url = server("tiny:1", "--split", "tiny:1=90", "--split", "tiny:2=10")

    split = run("traffic", f"{url}/tiny", "--json").json
    set_by_hand = run("traffic", f"{url}/tiny", "--weights", "1=50", "--weights", "2=50", "--json")
    refused = run("traffic", f"{url}/tiny", "--roll-back")

    assert split["weights"] == {"1": 0.9, "2": 0.1}
    assert set_by_hand.json["weights"] == {"1": 0.5, "2": 0.5}
    assert set_by_hand.json["state"] == "by hand"
    assert refused.code == 2
    assert "must have a canary" in refused.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--split", "tiny:1"), "NAME:NUMBER=PERCENT"),
        (("--split", "tiny:1=90"), "sum to 100"),
        (("--split", "tiny:1=x"), "in per cent"),
        (("--require", "error_rate <= 1"), "--require goes with --canary"),
        (("--canary", "tiny:2"), "must have a claim"),
        (("--canary", "tiny:2", "--require", "eror_rate <= 1"), "Did you mean 'error_rate'"),
        (("--canary", "tiny:9", "--require", "error_rate <= 1"), "9"),
        (("--split", "tiny:1=100", "--async"), "--async takes one version"),
    ],
)  # fmt: skip
def test_options_that_make_no_plan_are_refused_before_anything_is_served(
    run, two, words, complaint
):
    done = run("serve", "tiny:1", *words)

    assert done.code == 2
    assert complaint in done.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--weights", "1=50", "--start"), "Give one of"),
        (("--weights", "x=100"), "NUMBER=PERCENT"),
        (("--weights", "1=50"), "sum to 100"),
        ((), "must answer at"),
    ],
)
def test_misuse_of_traffic_says_what_to_do(run, words, complaint):
    done = run("traffic", "http://127.0.0.1:9/tiny", *words)

    assert done.code == 2
    assert complaint in done.err


def test_versions_of_several_names_are_refused():
    from types import SimpleNamespace

    values = serve.make_context("serve", ["a:1", "--split", "a:1=50", "--split", "b:1=50"]).params

    def resolve(target):
        return SimpleNamespace(name=target[0], number=int(target[2:]))

    with pytest.raises(click.UsageError, match="one NAME"):
        traffic_plan(values, resolve)


def test_without_options_there_is_no_plan():
    assert traffic_plan(serve.make_context("serve", ["a:1"]).params, None) == (None, ())


def test_per_cents_may_have_their_sign():
    assert percents(" 12.5% ") == 12.5
