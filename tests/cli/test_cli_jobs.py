import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from ingot.cli._async_options import NAMES, async_settings
from ingot.cli.serve import command as serve


@pytest.fixture
def server(released, files):
    """Give the URL of `ingot serve --async` in a process of its own."""
    words = [sys.executable, "-m", "ingot.cli", "serve", "tiny@prod", "--async", "--port", "0",
             "--in-cooldown-s", "1", "--allow", str(files)]  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "taking jobs at" in line:
                    break
            assert "taking jobs at" in said[-1], said
            yield said[-1].split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            rest = threading.Thread(target=process.stderr.read)
            rest.start()
            assert process.wait(30) == 0
            rest.join()


@pytest.fixture
def request_path(tmp_path):
    path = tmp_path / "request.json"
    image = np.zeros((1, 1, 8, 8)).ravel().tolist()
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image}
    path.write_text(json.dumps({"inputs": [tensor]}))
    return path


def test_a_job_goes_through_the_command_line(run, server, request_path, tmp_path, monkeypatch):
    monkeypatch.setenv("INGOT_URL", server)

    asked = run("jobs", "submit", "tiny", request_path, "--idempotency-key", "k", "--json").json
    waited = run("jobs", "wait", "tiny", asked["job"], "--out", tmp_path / "r.json", "--json")
    again = run("jobs", "submit", "tiny", request_path, "--idempotency-key", "k", "--wait")
    status = run("jobs", "status", "tiny", asked["job"]).out
    late = run("jobs", "cancel", "tiny", asked["job"])
    listed = run("jobs", "list", "tiny", "--json").json
    counts = run("jobs", "counts", "tiny", "--json").json
    scaled = run("jobs", "scaling", "tiny", "--all", "--json").json
    first = run("jobs", "scaling", "tiny")

    assert (waited.code, waited.json["state"]) == (0, "succeeded")
    assert (scaled[0]["action"], scaled[0]["before"], scaled[0]["instances"]) == ("start", 0, 1)
    assert "one instance proves that the model answers" in " ".join(first.out.split())
    assert " hold " not in first.out
    (output,) = json.loads((tmp_path / "r.json").read_text())["outputs"]
    assert output["shape"] == [1, 4]
    assert json.loads(again.out)["outputs"][0] == output
    assert re.search(r"state +succeeded", status)
    assert late.code == 2
    assert "this one is succeeded" in late.err
    assert [job["job"] for job in listed] == [asked["job"]]
    assert (counts["succeeded"], counts["queued"]) == (1, 0)


def test_a_job_by_uri_that_cannot_succeed_ends_with_1_and_says_why(run, server, files, monkeypatch):
    monkeypatch.setenv("INGOT_URL", server)
    (files / "bad.json").write_text("no request")

    done = run("jobs", "submit", "tiny", "--uri", files / "bad.json", "--wait", "--json")

    assert (done.code, done.json["state"], done.json["attempt"]) == (1, "dead", 1)
    assert "must be an Open Inference Protocol v2 request" in done.json["error"]


def test_dead_jobs_are_retried_by_name_or_all_of_them(
    run, server, files, request_path, monkeypatch
):
    monkeypatch.setenv("INGOT_URL", server)
    places = [files / "first.json", files / "second.json"]
    for place in places:
        place.write_text("no request")
    put = ("jobs", "submit", "tiny", "--wait", "--json", "--uri")
    first, second = (run(*put, place).json["job"] for place in places)
    for place in places:
        place.write_text(request_path.read_text())
    one = run("jobs", "retry", "tiny", first, "nobody", "--json")
    run("jobs", "wait", "tiny", first)
    rest = run("jobs", "retry", "tiny", "--all-dead")
    ended = run("jobs", "wait", "tiny", second, "--out", files / "r.json", "--json")
    again = run("jobs", "retry", "tiny", second)

    assert (one.code, one.json["retried"], [*one.json["refused"]]) == (1, [first], ["nobody"])
    assert rest.code == 0
    assert second in rest.out
    assert first not in rest.out
    assert (ended.code, ended.json["state"], ended.json["attempt"]) == (0, "succeeded", 2)
    assert again.code == 1
    assert "409" in again.out


@pytest.mark.parametrize("words", [["submit", "x"], ["submit", "x", "none.json"],
                                   ["submit", "x", "-", "--uri", "y"], ["retry", "x"],
                                   ["retry", "x", "j", "--all-dead"]])  # fmt: skip
def test_misuse_is_2_and_says_what_to_do(run, words):
    assert run("jobs", *words).code == 2


def test_the_demonstration_answers_all_jobs_though_an_instance_is_killed(run):
    done = run("jobs", "demo", "--json")

    assert done.code == 0
    assert done.json["succeeded"] == done.json["jobs"] == 20
    assert done.json["first_s"] > 0
    assert "first durable result" in run("jobs", "demo").out


def test_no_server_says_how_to_start_one(run):
    done = run("jobs", "counts", "x", "--url", "http://127.0.0.1:9")

    assert done.code == 2
    assert "ingot serve NAME@STAGE --async" in done.err


def test_options_become_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["m@prod", "--async", "--allow", "in", "--allow", "s3://b/k", "--durability", "full"]
    values = serve.make_context("serve", words).params

    found = async_settings("m", {name: values[name] for name in NAMES})

    assert found.folder == tmp_path / "home" / "jobs" / "m"
    assert found.folder.parent.parent == type(tmp_path)(os.environ["INGOT_HOME"])
    assert (found.durability, found.concurrency) == ("FULL", 2)
    assert found.roots == (str(tmp_path / "in"), "s3://b/k")
    assert (found.policy.min_instances, found.policy.max_instances) == (0, 5)
    assert (found.policy.target, found.policy.in_cooldown_s) == (5.0, 120.0)
