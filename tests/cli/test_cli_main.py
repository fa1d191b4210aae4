import json
import signal
import subprocess
import sys

import pytest

from ingot import __version__
from ingot.cli.main import VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(run, verb):
    done = run(verb, "--help")

    assert done.code == 0
    assert f"ingot {verb}" in done.out
    assert "Examples:" in done.out


def test_version(run):
    done = run("--version")

    assert (done.code, done.out) == (0, f"ingot, version {__version__}\n")


def test_a_verb_with_a_typo_gets_the_nearest(run):
    done = run("optimise")

    assert done.code == 2
    assert "optimize" in done.err


def test_an_option_with_a_typo_gets_the_nearest(run):
    done = run("doctor", "--jsn")

    assert done.code == 2
    assert "--json" in done.err


def test_an_error_is_one_message_without_a_traceback(run, tmp_path):
    done = run("inspect", tmp_path / "nothing.onnx")

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", [("nope",), ("keys", "create"), ("serve", "--prot", "x")])
def test_misuse_with_json_is_json_on_stderr_too(run, words):
    done = run(*words, "--json")

    assert (done.code, done.out) == (2, "")
    assert json.loads(done.err)["error"]


def test_an_error_with_json_is_json_on_stderr(run, tmp_path):
    done = run("inspect", tmp_path / "nothing.onnx", "--json")

    assert (done.code, done.out) == (2, "")
    assert "nothing.onnx" in json.loads(done.err)["error"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(run, shell):
    done = run("completion", shell)

    assert done.code == 0
    assert "_INGOT_COMPLETE" in done.out


def test_doctor_says_which_engines_work(run):
    found = run("doctor", "--json").json

    assert found["engines"]["onnxruntime"]["ok"]
    assert found["machine"]["physical_cores"] >= 1
    assert set(found["extras"]) >= {"openvino", "serve", "report", "grpc", "ray"}


def test_doctor_exits_1_when_no_engine_works(run, monkeypatch):
    monkeypatch.setattr("ingot.runtime.engines.engines", dict)

    assert run("doctor", "--json").code == 1


def test_doctor_prints_tables_for_people(run):
    done = run("doctor")

    assert done.code == 0
    assert "Engines" in done.out
    assert "onnxruntime" in done.out


def test_ctrl_c_exits_130_and_says_how_to_go_on(tmp_path, files):
    code = (
        "import os, signal, ingot.search.optimize as o\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where nohup began
        "o.check_job = lambda job: os.kill(os.getpid(), signal.SIGINT)\n"
        "from ingot.cli.main import main\n"
        f"main(['optimize', {str(files / 'model.onnx')!r}, '--data', {str(files / 'data.npz')!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert done.returncode == 128 + signal.SIGINT
    assert "Run the same command again" in done.stderr
    assert not (tmp_path / "best").exists()
