import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import batch_cases as cases
import pytest
from ray_here import HAS_RAY, needs_ray

from ingot.core.errors import MissingExtraError
from ingot.serve.batch.on_ray import answer_on_ray
from ingot.serve.batch.parts import Waiting
from ingot.serve.batch.plan import plan_batch
from ingot.serve.ray_start import LOCAL

HERE = Path(__file__).parent
TEXTS = cases.sentences(80)


def environment(**more):
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), *sys.path]))} | more


def command(*words):
    ours = [sys.executable, "-m", "ingot.cli", "batch", *map(str, words)]
    return [*ours, "--threads", "1", "--part-rows", "16", "--json"]


def ingot_batch(*words, **more):
    return subprocess.run(
        command(*words),
        env=environment(**more), capture_output=True, text=True, timeout=90,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Start a Ray that batches join, which is faster than one for each."""
    known = LOCAL | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(
        [sys.executable, HERE / "batch_ray_case.py", "cluster"],
        env=environment(**known), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield known | {"RAY_ADDRESS": process.stdout.readline().strip()}
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def answered(tmp_path, cluster):
    def run(given="Whole", opener="Worker"):
        done = subprocess.run(
            [sys.executable, HERE / "batch_ray_case.py", tmp_path, given, opener],
            env=environment(**cluster), capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_batch_on_ray_without_ray_names_the_extra(tmp_path):
    if HAS_RAY:
        pytest.skip("Ray is installed")
    source = cases.write_csv(tmp_path / "in.csv", TEXTS)
    model = cases.text_model(tmp_path / "model")
    work = plan_batch(cases.small(model, source, tmp_path / "out.csv")).work

    with pytest.raises(MissingExtraError, match=r"ingot\[ray\]"):
        list(answer_on_ray(Waiting(work.source, ("text",), 16), work, 2))


@needs_ray
def test_a_batch_on_a_ray_of_its_own_writes_the_bytes_of_one_on_processes(tmp_path):
    source = cases.write_csv(tmp_path / "in.csv", TEXTS)
    model = cases.text_model(tmp_path / "model").path
    for where in ("processes", "ray"):
        done = ingot_batch(
            model, source, tmp_path / f"{where}.csv", "--on", where, "--processes", 2
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["answered"] == len(TEXTS)

    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "processes.csv").read_bytes()
    assert len((tmp_path / "ray.csv").read_text().splitlines()) == 1 + len(TEXTS)


@needs_ray
def test_a_batch_on_ray_stops_at_bad_rows_and_goes_on_where_it_stopped(tmp_path, cluster):
    rows = [{"text": text} for text in cases.sentences(480)]
    source = cases.write_jsonl(tmp_path / "in.jsonl", [*rows[:40], {"text": 7}, *rows[40:]])
    words = [cases.text_model(tmp_path / "model").path, source, tmp_path / "out.csv"]
    words += ["--on", "ray", "--processes", 2]
    stopped = ingot_batch(*words, **cluster)
    finished = len(list((tmp_path / "out.csv.parts").glob("part-*.json")))
    went_on = ingot_batch(*words, "--max-errors", 1, **cluster)
    whole = ingot_batch(*words[:2], tmp_path / "whole.csv", "--max-errors", 1, "--processes", 1)

    assert stopped.returncode == 2
    assert "row 40" in stopped.stderr
    assert 1 <= finished < 31
    assert json.loads(went_on.stdout)["resumed"] == finished
    assert whole.returncode == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@needs_ray
def test_a_batch_on_ray_that_is_told_to_end_ends_at_once_and_keeps_its_parts(tmp_path, cluster):
    source = cases.write_csv(tmp_path / "in.csv", cases.sentences(16 * 400))
    model = cases.text_model(tmp_path / "model").path
    words = command(model, source, tmp_path / "out.csv", "--on", "ray", "--processes", 2)
    deadline = time.monotonic() + 60
    with subprocess.Popen(words, env=environment(**cluster), stderr=subprocess.PIPE) as process:
        while not (tmp_path / "out.csv.parts" / "part-000001.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)

    assert process.returncode == 15  # as Ray has it; not an abort of its threads
    assert b"has already been shutdown" not in said
    assert len(list((tmp_path / "out.csv.parts").glob("part-*.json"))) < 400


@needs_ray
def test_an_actor_that_dies_is_replaced_and_its_part_done_again(answered, tmp_path):
    found = answered(opener="DiesOnce")

    assert sorted(found["done"]) == [0, 1, 2, 3, 4]
    assert (found["error"], found["left"]) == ("", [])
    assert (tmp_path / "out.csv.parts" / "killed").exists()


@needs_ray
def test_a_part_that_kills_every_actor_is_named_by_its_rows(answered):
    found = answered(opener="DiesAlways")

    assert "ServeError: A process must live through its part; 3 died" in found["error"]
    assert "rows 32 to 47" in found["error"]
    assert 2 not in found["done"]


@needs_ray
def test_what_an_actor_raises_is_an_error_of_ours(answered):
    found = answered(opener="Raises")

    assert found["error"].startswith("ServeError: A part must be answered")
    assert "part 1 raised KeyError: 'no such thing'" in found["error"]


@needs_ray
def test_what_was_read_is_answered_when_the_input_breaks_off_on_ray(answered):
    found = answered("BreaksOff")

    assert sorted(found["done"]) == [0, 1]
    assert found["error"] == "DataError: broken off"


@needs_ray
def test_an_input_that_kills_its_reader_again_and_again_is_an_error(answered):
    found = answered("KillsTheReader")

    assert found["error"].startswith("ServeError: The input must be read by a process that lives")


@needs_ray
def test_the_reader_waits_for_the_actors(answered):
    found = answered("Counted", "Lags")
    ahead = [read - order for order, read in enumerate(found["rows"])]

    assert sorted(found["done"]) == list(range(40))
    assert max(ahead) <= 16
