import pytest
import yaml

from ingot.cli._async_options import NAMES, async_settings

IMAGE = "registry.example.org/tiny:1"


@pytest.mark.usefixtures("released")
def test_a_bundle_is_packed_and_checked(run, tmp_path):
    packed = run("deploy", "bundle", "tiny@prod", tmp_path / "bundle", "--json")
    checked = run("deploy", "check", tmp_path / "bundle", "--json")

    assert packed.code == checked.code == 0
    assert packed.json == checked.json
    assert packed.json["number"] == 1


@pytest.mark.usefixtures("released")
def test_a_changed_bundle_fails_the_check(run, tmp_path):
    run("deploy", "bundle", "tiny@prod", tmp_path / "bundle")
    (path,) = (tmp_path / "bundle").rglob("model.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    done = run("deploy", "check", tmp_path / "bundle")

    assert done.code == 2
    assert "model.onnx' is changed" in done.err


@pytest.mark.usefixtures("released")
def test_a_bundle_is_a_home_that_serves(run, tmp_path, monkeypatch):
    run("deploy", "bundle", "tiny@prod", tmp_path / "bundle")
    monkeypatch.setenv("INGOT_HOME", str(tmp_path / "bundle"))

    assert run("serve", "tiny:1", "--dry-run").code == 0
    assert run("ledger", "verify").code == 0


@pytest.mark.usefixtures("released")
def test_manifests_image_and_bundle_are_written(run, tmp_path):
    done = run(
        "deploy", "kserve", "tiny@prod", "--image", IMAGE, "--out", tmp_path / "out",
        "--namespace", "ml", "--max-replicas", 7, "--json", "--", "--max-batch", 8,
    )  # fmt: skip
    documents = list(yaml.safe_load_all((tmp_path / "out" / "kserve.yaml").read_text()))

    assert done.code == 0
    assert documents[2]["spec"]["maxReplicaCount"] == 7
    assert documents[0]["spec"]["containers"][0]["args"] == done.json["command"][1:]
    assert done.json["command"][-2:] == ["--max-batch", "8"]
    assert (tmp_path / "out" / "Dockerfile").is_file()
    assert (tmp_path / "out" / "bundle" / "bundle.json").is_file()


JOBS = ("--async-secret", "database", "--async-output", "s3://bucket/results")


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--", "--nope"), "No such option"),
        (("--", "--max-batch", "many"), "not a valid integer"),
        (("--", "--steps", "5"), "--steps goes with --canary"),
        ((*JOBS, "--", "--max-batch", "8"), "it does not go with --async"),
    ],
)
def test_a_container_that_could_not_start_is_refused(run, tmp_path, words, reason):
    done = run("deploy", "kserve", "tiny@prod", "--image", IMAGE, "--out", tmp_path / "out", *words)

    assert done.code == 2
    assert "must be able to start; its ingot serve would say" in done.err
    assert reason in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("released")
def test_files_of_the_container_need_not_be_here(run, tmp_path):
    done = run(
        "deploy", "kserve", "tiny@prod", "--image", IMAGE, "--out", tmp_path / "out",
        "--", "--log-rules", "/etc/ingot/rules.toml",
    )  # fmt: skip

    assert done.code == 0


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("option", "value", "what_to_do"),
    [
        ("--name", "Tiny_1", "Give another one"),
        ("--storage-uri", "az://models/tiny", "Give it in one of these forms"),
        ("--max-replicas", str(2**31), "Correct them"),
    ],
)
def test_what_a_cluster_refuses_ends_with_what_to_do(run, tmp_path, option, value, what_to_do):
    done = run(
        "deploy", "kserve", "tiny@prod", "--image", IMAGE, "--out", tmp_path / "out",
        option, value,
    )  # fmt: skip

    assert done.code == 2
    assert what_to_do in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("released")
def test_jobs_need_a_database_and_an_output(run, tmp_path):
    done = run(
        "deploy", "kserve", "tiny@prod", "--image", IMAGE, "--out", tmp_path / "out",
        "--async-secret", "db",
    )  # fmt: skip

    assert done.code == 2
    assert "go together" in done.err


def test_jobs_lie_in_the_folder_that_is_named(tmp_path):
    values = {
        "min_instances": 1, "max_instances": 1, "target_backlog": 5.0, "out_cooldown_s": 0.0,
        "in_cooldown_s": 0.0, "concurrency": 1, "roots": (), "output": "", "durability": "normal",
        "database": "", "notify_networks": (), "folder": tmp_path / "jobs",
    }  # fmt: skip

    assert set(values) == set(NAMES)
    assert async_settings("tiny", values).folder == tmp_path / "jobs"
