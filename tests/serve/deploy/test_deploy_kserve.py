import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import httpx
import pytest
import yaml

from ingot.core.errors import ServeError
from ingot.serve.deploy.bundle import open_bundle
from ingot.serve.deploy.kserve import manifests
from ingot.serve.deploy.scaling import AsyncScaling, Scaling
from ingot.serve.deploy.write import dockerfile, write_kserve
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.client import JobClient
from ingot.serve.server import serve_in_thread
from ingot.twin.policy import ScalingPolicy

JOBS = AsyncScaling("ingot-database", "s3://bucket/results")


def by_kind(settings):
    return {one["kind"]: one for one in manifests(settings)}


def test_names_of_the_three_objects_lead_to_one_another(settings):
    found = by_kind(settings(namespace="ml"))
    service, scaler = found["InferenceService"], found["ScaledObject"]

    assert {one["metadata"]["name"] for one in found.values()} == {"digits"}
    assert {one["metadata"]["namespace"] for one in found.values()} == {"ml"}
    assert service["spec"]["predictor"]["model"]["runtime"] == "digits"
    assert scaler["spec"]["scaleTargetRef"]["name"] == "digits-predictor"
    formats = found["ServingRuntime"]["spec"]["supportedModelFormats"]
    model_format = service["spec"]["predictor"]["model"]["modelFormat"]
    assert {key: formats[0][key] for key in ("name", "version")} == model_format


def test_the_scaler_is_keda_and_not_kserve(settings):
    annotations = by_kind(settings())["InferenceService"]["metadata"]["annotations"]

    assert annotations["serving.kserve.io/autoscalerClass"] == "external"
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"


def test_digests_are_whole_in_annotations_and_fit_in_labels(settings, released):
    for one in manifests(settings()):
        labels, annotations = one["metadata"]["labels"], one["metadata"]["annotations"]

        assert annotations["ingot.dev/version-digest"] == released.version.digest
        assert annotations["ingot.dev/model-digest"] == released.version.model
        assert labels["ingot.dev/version"] == released.version.digest.split(":")[1][:63]
        assert all(0 < len(value) <= 63 for value in labels.values())


def test_a_container_has_no_privilege(settings):
    container = by_kind(settings())["ServingRuntime"]["spec"]["containers"][0]
    rights = container["securityContext"]

    assert rights["runAsNonRoot"]
    assert rights["runAsUser"] > 0
    assert rights["readOnlyRootFilesystem"]
    assert rights["privileged"] is False
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}


def test_everything_that_is_written_lies_on_a_volume(settings):
    found = settings()
    spec = by_kind(found)["ServingRuntime"]["spec"]
    mounts = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]
    log = found.command[found.command.index("--log") + 1]

    assert any(log.startswith(f"{mount}/") for mount in mounts)
    assert {one["name"] for one in spec["volumes"]} == {
        one["name"] for one in spec["containers"][0]["volumeMounts"]
    }


def test_probes_ask_pages_that_the_server_has(settings, released):
    container = by_kind(settings())["ServingRuntime"]["spec"]["containers"][0]
    paths = [container[f"{name}Probe"]["httpGet"]["path"]
             for name in ("startup", "readiness", "liveness")]  # fmt: skip
    with serve_in_thread(Endpoint(released.version, released.model, port=0)) as running:
        answers = [httpx.get(running.url + path, trust_env=False).status_code for path in paths]

    assert answers == [200, 200, 200]


def test_the_grace_period_is_longer_than_the_drain(settings):
    predictor = by_kind(settings(drain_s=30))["InferenceService"]["spec"]["predictor"]

    assert predictor["terminationGracePeriodSeconds"] == 5 + 30 + 5


def test_requests_in_flight_scale_replicas(settings):
    spec = by_kind(settings())["ScaledObject"]["spec"]
    trigger = spec["triggers"][0]

    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"]["threshold"] == "5"
    query = 'sum(ingot_requests_in_flight{model="digits",namespace="default"})'
    assert trigger["metadata"]["query"] == query


def test_the_metric_that_scales_is_one_that_the_server_has(released):
    with serve_in_thread(Endpoint(released.version, released.model, port=0)) as running:
        text = httpx.get(running.url + "/metrics", trust_env=False).text

    assert 'ingot_requests_in_flight{model="digits",version="2"} 0.0' in text


def test_the_cool_down_is_the_stabilization_window(settings):
    spec = by_kind(settings())["ScaledObject"]["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]

    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 90
    assert spec["cooldownPeriod"] == 90


def test_jobs_scale_on_the_one_backlog(settings):
    trigger = by_kind(settings(jobs=JOBS))["ScaledObject"]["spec"]["triggers"][0]

    query = 'max(ingot_job_backlog{model="digits",namespace="default"})'
    assert trigger["metadata"]["query"] == query


def test_jobs_wake_a_replica_from_zero_by_the_database(settings):
    found = by_kind(settings(jobs=JOBS, low=0))
    trigger = found["ScaledObject"]["spec"]["triggers"][0]
    env = found["ServingRuntime"]["spec"]["containers"][0]["env"]

    assert trigger["type"] == "postgresql"
    assert trigger["metadata"]["connectionFromEnv"] in {one["name"] for one in env}
    assert "FROM ingot_jobs.counts WHERE endpoint = 'digits'" in trigger["metadata"]["query"]


def test_requests_do_not_scale_to_zero(settings):
    with pytest.raises(ServeError, match="1 or more"):
        manifests(settings(low=0))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "Digits"}, "name must be"),
        ({"name": "2digits"}, "name must be"),
        ({"name": "d" * 54}, "1 to 45"),
        ({"namespace": "n_s"}, "namespace must be"),
        ({"namespace": "n" * 64}, "namespace must be"),
        ({"image": "has space"}, "image must be"),
        ({"image": "a:b:c d\n- evil"}, "image must be"),
        ({"cpu": "0"}, "cpu must be"),
        ({"memory": "1 GB"}, "memory must be"),
        ({"storage_uri": "models/digits"}, "storage URI must be"),
        ({"storage_uri": "az://models/digits"}, "starts with s3, gs, https"),
        ({"service_account": "a/b"}, "service account must be"),
        ({"drain_s": -1}, "drain_s must be"),
        ({"drain_s": 10**20}, "drain_s must be"),
        ({"high": 2**31}, "2147483647 replicas"),
        ({"target": 0.0001}, "a target of 0.001"),
        ({"arguments": ("--port", "1")}, "--port must be left"),
        ({"arguments": ("--log=x",)}, "--log=x must be left"),
        ({"arguments": ("--keys",)}, "identity provider"),
        ({"arguments": ("--max-batch", "{{.Name}}")}, "where KServe fills"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_before(settings, wrong, words):
    with pytest.raises(ServeError, match=words):
        settings(**wrong)


@pytest.mark.parametrize("wrong", ["prometheus:9090 or so", "s3://prometheus"])
def test_prometheus_must_be_an_address(wrong):
    with pytest.raises(ServeError, match="URI"):
        Scaling(wrong, ScalingPolicy())


def test_the_same_settings_write_the_same_bytes(settings, released, tmp_path):
    for name in ("one", "two"):
        write_kserve(released.registry, settings(), tmp_path / name)
    one, two = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    )

    assert one == two
    assert {"kserve.yaml", "Dockerfile"} <= {str(path) for path in one}


def test_the_image_runs_what_the_manifest_starts(settings):
    found = settings()
    recipe = dockerfile(found)

    assert json.loads(recipe.rpartition("CMD ")[2]) == list(found.command)
    assert "USER 10001:10001" in recipe
    assert "COPY bundle /opt/ingot" in recipe


@pytest.mark.parametrize(
    ("more", "extras"),
    [
        ({}, "serve,grpc"),
        ({"jobs": JOBS}, "serve,grpc,postgres"),
        ({"arguments": ("--oidc-issuer", "https://id.example.org")}, "serve,grpc,oidc"),
    ],
)
def test_the_image_installs_the_extras_that_are_used(settings, more, extras):
    assert f'ARG INGOT="ingot[{extras}]==' in dockerfile(settings(**more))


def test_an_image_without_the_bundle_is_told_where_it_will_be(settings):
    recipe = dockerfile(settings(storage_uri="s3://models/digits-2"))

    assert "COPY" not in recipe
    assert "INGOT_HOME=/mnt/models" in recipe


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_ready(url, process):
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            if httpx.get(url + "/v2/health/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("it does not become ready")


@contextmanager
def container_of(folder, places):
    """Start the container of the manifests in a folder; give the URL of its server.

    Only where things are differs from the pod: addresses, and the folders that it mounts.
    """
    documents = list(yaml.safe_load_all((folder / "kserve.yaml").read_text()))
    container = documents[0]["spec"]["containers"][0]
    state, port = folder / "state", str(free_port())
    there = {"0.0.0.0": "127.0.0.1", "8080": port, "9000": str(free_port()),
             "/opt/ingot": str(folder / "bundle"), **places}  # fmt: skip
    words = [there.get(word, word).replace("/var/lib/ingot", str(state))
             for word in container["args"]]  # fmt: skip
    env = {one["name"]: there.get(one["value"], str(state))
           for one in container["env"] if "value" in one}  # fmt: skip
    assert container["command"] == ["ingot"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ingot.cli", *words],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


BODY = {"id": "one", "inputs": [
    {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32",
     "data": [round(0.01 * i, 2) for i in range(64)]}
]}  # fmt: skip


def ask_directly(released):
    with serve_in_thread(Endpoint(released.version, released.model, port=0)) as running:
        url = f"{running.url}/v2/models/digits/infer"
        return httpx.post(url, json=BODY, trust_env=False)


def test_the_container_gives_the_bytes_of_the_direct_endpoint(settings, released, tmp_path):
    pytest.importorskip("grpc")
    write_kserve(released.registry, settings(), tmp_path)
    with container_of(tmp_path, {}) as url:
        through = httpx.post(f"{url}/v2/models/digits/infer", json=BODY, trust_env=False)
    direct = ask_directly(released)

    assert direct.status_code == 200
    assert through.content == direct.content
    assert through.headers["ingot-version"] == released.version.digest


def test_the_container_for_jobs_gives_the_bytes_of_the_direct_endpoint(
    settings, released, tmp_path
):
    bundle = write_kserve(released.registry, settings(jobs=JOBS), tmp_path).bundle
    # no database and no object store here: the same server keeps jobs in its folder
    with container_of(tmp_path, {JOBS.output: str(tmp_path / "results")}) as url:
        client = JobClient(url, "digits")
        job = client.submit(BODY)["job"]
        client.wait(job, timeout_s=60)
        through = client.result(job)

    assert through == ask_directly(released).content
    assert open_bundle(bundle.path) == bundle
