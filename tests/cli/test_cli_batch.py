import json
import sys

import numpy as np
import pytest
from PIL import Image

from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.models.load import load_model
from ingot.registry.registry import Registry
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import machine_digest
from ingot.serve.batch.run import run_batch


@pytest.fixture
def tiny(files):
    """Release the model of `files` as `tiny:1` for prod, with evidence that nobody measured."""
    model = load_model(files / "model.onnx")
    one = Interval(1.0, 0.5, 1.5)
    row = Comparison("accuracy", "fraction", "higher", one, one, one, one)
    held = (judge(parse_claim("accuracy >= 0.4"), (row,)),)
    data, config, machine = "sha256:" + "d" * 64, EngineConfig(threads=1), {"cores": 1}
    evidence = Evidence(model.digest, model.digest, data, machine_digest(machine), machine, config,
                        config, (row,), held, seed=0)  # fmt: skip
    with Registry.open() as registry:
        registry.release("tiny", model, evidence)
        registry.promote("tiny", 1, "prod")


@pytest.fixture
def images(tmp_path):
    """Give twenty grey images and what the tiny CNN needs to read them."""
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8)).astype(np.uint8)
    for index, grid in enumerate(pixels):
        Image.fromarray(grid).save(tmp_path / "in" / f"{index:02}.png")
    (tmp_path / "data.toml").write_text("[image]\nchannels = 1\n")
    return tmp_path


def test_a_released_version_answers_a_folder_of_images(run, tiny, images):
    words = ("batch", "tiny@prod", images / "in", images / "out.jsonl", "--data")
    words = (*words, images / "data.toml", "--part-rows", 7, "--processes", 1)
    look = run(*words, "--dry-run", "--json").json
    done = run(*words, "--json").json
    again = run(*words)

    rows = [json.loads(line) for line in (images / "out.jsonl").read_text().splitlines()]
    manifest = json.loads((images / "out.jsonl.manifest.json").read_text())
    assert (look["rows"], look["finished_parts"]) == (20, 0)
    assert (done["answered"], done["parts"], done["resumed"]) == (20, 3, 0)
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(20)]
    assert (manifest["version"]["name"], manifest["version"]["number"]) == ("tiny", 1)
    assert "finished before: 3 of 3 parts" in again.err


def test_a_model_without_a_version_answers_too(run, files, images):
    done = run("batch", files / "model.onnx", images / "in", images / "out.csv",
               "--data", images / "data.toml", "--json")  # fmt: skip

    assert (done.code, done.json["answered"]) == (0, 20)


def test_a_refused_row_exits_2_and_says_how_to_go_on(run, files, images):
    (images / "in" / "03.png").write_bytes(b"no picture")
    words = ("batch", files / "model.onnx", images / "in", images / "out.csv")
    words = (*words, "--data", images / "data.toml")
    done = run(*words)
    allowed = run(*words, "--max-errors", 1)

    assert (done.code, allowed.code) == (2, 0)
    assert "row 3: Image '03.png' must be readable" in done.err
    assert "Raise --max-errors" in done.err
    assert "1 row was refused" in allowed.err


def test_an_unknown_version_is_refused_with_the_nearest(run, tiny, images):
    done = run("batch", "tinny@prod", images / "in", images / "out.csv")

    assert done.code == 2
    assert "tiny" in done.err


def test_what_others_print_on_the_way_is_no_part_of_the_result(run, files, images, monkeypatch):
    def talks(*given, **more):
        sys.stdout.write("a worker died")
        return run_batch(*given, **more)

    monkeypatch.setattr("ingot.serve.batch.run.run_batch", talks)
    done = run("batch", files / "model.onnx", images / "in", images / "out.csv",
               "--data", images / "data.toml", "--json")  # fmt: skip

    assert done.json["answered"] == 20
    assert "a worker died" in done.err
