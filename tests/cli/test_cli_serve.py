import json
import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest


def test_release_refuses_a_model_without_evidence(run, best, tmp_path):
    (tmp_path / "bare").mkdir()
    done = run("release", "tiny", tmp_path / "bare")

    assert done.code == 2
    assert "must come with evidence" in done.err


def test_release_refuses_the_evidence_of_another_model(run, files, best, tmp_path):
    run("compress", files / "model.onnx", "--data", files / "data.npz",
        "--method", "quantize-weights", "--out", tmp_path / "other")  # fmt: skip
    done = run("release", "tiny", tmp_path / "other", "--evidence", best / "evidence.json")

    assert done.code == 2
    assert "Evidence is for model" in done.err


def test_release_says_version_and_entry(run, best):
    found = run("release", "tiny", best, "--json").json

    assert (found["name"], found["number"], found["entry"], found["stage"]) == ("tiny", 1, 0, None)


def test_promote_and_roll_back_move_the_stage(run, best, released, files, tmp_path):
    run("compare", files / "model.onnx", best, "--data", files / "data.npz", "--threads", 1,
        "--require", "agreement >= 0.8", "--out", tmp_path / "proof")  # fmt: skip
    run("release", "tiny", best, "--evidence", tmp_path / "proof" / "evidence.json")

    assert run("promote", "tiny:2", "prod").out == "tiny@prod is now tiny:2\n"
    assert run("rollback", "tiny@prod", "--json").json["number"] == 1


def test_roll_back_with_nothing_before_is_refused(run, released):
    assert run("rollback", "tiny@prod").code == 2


def test_rollback_needs_a_stage(run):
    done = run("rollback", "tiny")

    assert done.code == 2
    assert "NAME@STAGE" in done.err


def test_predict_with_a_released_version_answers_like_the_file(run, best, released, files):
    words = ("--data", files / "data.npz", "--rows", 3, "--json")
    by_name = run("predict", "tiny@prod", *words).json
    by_file = run("predict", best / "model", *words).json

    assert np.allclose(by_name["outputs"]["logits"], by_file["outputs"]["logits"], atol=0.2)
    assert by_name["version"].startswith("sha256:")


def test_predict_writes_every_output(run, files, tmp_path):
    run("predict", files / "model.onnx", "--data", files / "data.npz", "--rows", 0,
        "--out", tmp_path / "answers.npz")  # fmt: skip

    with np.load(tmp_path / "answers.npz") as found:
        assert found["logits"].shape == (640, 4)


def test_serve_dry_run_checks_and_stops(run, released):
    found = run("serve", "tiny@prod", "--dry-run", "--json").json

    assert found["host"] == "127.0.0.1"


def test_serve_asks_for_finite_numbers_where_it_is_told_to(run, released):
    words = ("serve", "tiny@prod", "--dry-run", "--json")

    assert run(*words, "--finite").json["finite_only"]
    assert not run(*words).json["finite_only"]


def test_serve_of_an_unknown_name_gets_the_nearest(run, released):
    done = run("serve", "tinny@prod")

    assert done.code == 2
    assert "tiny" in done.err


def test_serve_answers_until_sigterm_and_records_what_it_did(run, released, files):
    words = [sys.executable, "-m", "ingot.cli", "serve", "tiny@prod", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(line for line in server.stderr if "answering at" in line).split()[-1]
            done = run(
                "predict", f"{url}/tiny", "--data", files / "data.npz", "--rows", 2, "--json"
            )
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(30)

    assert code == 0
    assert np.shape(done.json["outputs"]["logits"]) == (2, 4)
    with sqlite3.connect(f"{os.environ['INGOT_HOME']}/observations.sqlite") as database:
        assert database.execute("SELECT endpoint, status FROM observations").fetchall() == [
            ("tiny", 200)
        ]


def test_serve_with_workers_and_keys_drains_when_its_whole_group_is_told_to_stop(
    run, released, files
):
    key = run("keys", "create", "robot", "--scope", "infer:tiny").out.strip()
    words = [
        sys.executable, "-m", "ingot.cli", "serve", "tiny@prod", "tiny:1", "--port", "0",
        "--workers", "1", "--max-batch", "4", "--keys",
    ]  # fmt: skip
    twice = run(*words[3:])
    with subprocess.Popen(
        words[:5] + words[6:], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        try:
            url = next(line for line in server.stderr if "answering at" in line).split()[-1]
            ask = ("predict", f"{url}/tiny", "--data", files / "data.npz", "--rows", 2, "--json")
            without, done = run(*ask), run(*ask, "--key", key)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            code = server.wait(30)

    assert "twice" in twice.err
    assert (without.code, done.code, code) == (2, 0, 0)
    assert "401" in without.err
    assert np.shape(done.json["outputs"]["logits"]) == (2, 4)


def test_keys_are_shown_without_their_secret_and_revoked(run):
    made = run("keys", "create", "robot", "--scope", "infer:*", "--days", 0, "--json").json
    ended = run("keys", "revoke", made["id"], "--json").json
    (row,) = run("keys", "list", "--json").json
    table = run("keys", "list").out

    assert made["key"].startswith(f"ingot_{made['id']}_")
    assert made["expires"] is None
    assert row["revoked"] == ended["revoked"] is not None
    assert "key" not in row
    assert made["key"] not in table
    assert "robot" in table


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--oidc-issuer", "x"), "go together"),
        (("--max-batch", "1"), "max_rows >= 2"),
        (("--timeout-s", "0"), "timeout_s"),
    ],
)
def test_serve_refuses_options_that_do_not_fit(run, released, words, complaint):
    done = run("serve", "tiny@prod", "--dry-run", *words)

    assert done.code == 2
    assert complaint in done.err


def test_serve_warns_when_everybody_is_let_in(run, released):
    done = run("serve", "tiny@prod", "--host", "0.0.0.0", "--dry-run")

    assert done.code == 0
    assert "lets everybody" in done.err


def test_ledger_shows_what_happened_in_order(run, released):
    found = run("ledger", "show", "--json").json

    assert [entry["kind"] for entry in found] == ["release", "promote"]


def test_ledger_verifies_and_against_a_checkpoint_kept_elsewhere(run, released, tmp_path):
    (tmp_path / "checkpoint").write_text(run("ledger", "checkpoint").out)
    done = run("ledger", "verify", "--against", tmp_path / "checkpoint", "--json")

    assert (done.code, done.json["ok"], done.json["size"]) == (0, True, 2)


def test_a_ledger_changed_behind_its_back_exits_1(run, released):
    with sqlite3.connect(f"{os.environ['INGOT_HOME']}/ingot.sqlite") as database:
        database.execute("DROP TRIGGER ledger_entries_no_update")
        database.execute(
            "UPDATE ledger_entries SET data = CAST(replace(CAST(data AS TEXT), 'tiny', 'evil')"
            " AS BLOB) WHERE idx = 0"
        )
    done = run("ledger", "verify", "--json")

    assert done.code == 1
    assert not done.json["ok"]
    assert json.dumps(done.json["problems"]).count("Entry 0") >= 1


def test_compile_prepares_what_optimize_chose_and_what_was_released(run, best, released):
    by_folder = run("compile", best, "--json").json
    by_name = run("compile", "tiny@prod", "--json").json

    assert by_folder["model"].startswith("sha256:")
    assert by_name["config"]["engine"] in {"onnxruntime", "openvino"}
    assert run("compile", "tiny@prod", "--remove").out == ""


def test_compile_refuses_a_folder_without_evidence(run, tmp_path):
    done = run("compile", tmp_path)

    assert done.code == 2
    assert "with evidence.json" in done.err


def test_a_key_shows_its_rate_and_a_burst_goes_with_one(run):
    made = run("keys", "create", "slow", "--scope", "*", "--rate", 5, "--burst", 20, "--json").json
    alone = run("keys", "create", "slow", "--scope", "*", "--burst", 20)
    wrong = run("keys", "create", "slow", "--scope", "*", "--rate", 0)

    assert (made["rate"], made["burst"]) == (5.0, 20.0)
    assert (alone.code, wrong.code) == (2, 2)
    assert "--burst goes with --rate" in alone.err
