"""The manifests against what a cluster with KServe 0.21.0 and KEDA 2.20.2 takes.

`crds.yaml` holds the facts of the published definitions. The rules below are those that none of
them can say: of KServe's admission webhooks and its controller (pkg/apis/serving/v1beta1,
pkg/controller/v1beta1/inferenceservice and pkg/validation of kserve/kserve), and of KEDA's
(apis/keda/v1alpha1 and pkg/scalers of kedacore/keda), as their sources of 2026 have them.
"""

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from ingot.serve.deploy.scaling import AsyncScaling
from ingot.serve.deploy.write import to_yaml

JOBS = AsyncScaling("ingot-database", "s3://bucket/results")
VARIANTS = {
    "plain": {},
    "storage": {"storage_uri": "s3://models/digits-2", "service_account": "reader"},
    "jobs": {"jobs": JOBS},
    "jobs from zero": {"jobs": JOBS, "low": 0},
    "jobs from storage": {"jobs": JOBS, "storage_uri": "pvc://models/digits-2"},
    "arguments": {"arguments": ("--max-batch", "8"), "cpu": "500m", "memory": "2Gi"},
    "longest name": {"name": "d" * 50, "namespace": "ml"},
    "most": {"high": 2**31 - 1, "target": 0.001, "drain_s": 2**31 - 1},
}


def known(validator, properties, value, schema):
    """Check fields, and refuse others, as kubectl does unless it is told not to."""
    yield from jsonschema.Draft202012Validator.VALIDATORS["properties"](
        validator, properties, value, schema
    )
    for name in value.keys() - properties.keys():
        yield jsonschema.ValidationError(f"{name!r} is not known")


def in_bits(_validator, name, value, _schema):
    bits = {"int32": 31, "int64": 63}[name]
    if isinstance(value, int) and not -(2**bits) <= value < 2**bits:
        yield jsonschema.ValidationError(f"{value} is no {name}")


def distinct(_validator, keys, value, schema):
    fields = schema["items"]["properties"]
    defaults = {key: fields[key].get("default") for key in keys}
    found = [tuple((defaults | one)[key] for key in keys) for one in value]
    if len(set(found)) < len(found):
        yield jsonschema.ValidationError(f"{', '.join(keys)} must differ; got {found}")


Definition = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"properties": known, "format": in_bits, "x-kubernetes-list-map-keys": distinct},
)


@pytest.fixture(scope="module")
def definitions():
    text = (Path(__file__).parent / "crds.yaml").read_text()
    return {kind: Definition(one) for kind, one in yaml.safe_load(text)["kinds"].items()}


def problems(documents, definitions):
    return [
        error for kind, one in documents.items() for error in definitions[kind].iter_errors(one)
    ]


def written(settings):
    return {one["kind"]: one for one in yaml.safe_load_all(to_yaml(settings))}


def changed(documents, kind, path, value):
    """Return the documents with one value changed, or taken away if it is None."""
    documents = copy.deepcopy(documents)
    place = documents[kind]
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return documents


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_manifest_is_what_the_definitions_allow(settings, definitions, variant):
    documents = written(settings(**VARIANTS[variant]))

    assert list(documents) == ["ServingRuntime", "InferenceService", "ScaledObject"]
    assert problems(documents, definitions) == []


BOX = ("spec", "containers", 0)
PREDICTOR = ("spec", "predictor")
DOWN = ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleDown")
ENV = [{"name": "HOME", "value": "/"}, {"name": "HOME", "value": "/x"}]
PORTS = [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]
WRONG = {
    "type": [
        ("ServingRuntime", ("spec", "protocolVersions"), "v2"),
        ("ServingRuntime", (*BOX, "ports", 0, "containerPort"), "8080"),
        ("InferenceService", (*PREDICTOR, "minReplicas"), "1"),
        ("ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), 5),
    ],
    "enumeration": [
        ("ServingRuntime", (*BOX, "ports", 0, "protocol"), "HTTP"),
        ("ServingRuntime", (*BOX, "readinessProbe", "httpGet", "scheme"), "http"),
        ("ServingRuntime", (*BOX, "securityContext", "seccompProfile", "type"), "Default"),
        ("InferenceService", (*PREDICTOR, "scaleMetric"), "gpu"),
        ("InferenceService", (*PREDICTOR, "logger"), {"mode": "some"}),
        ("ScaledObject", (*DOWN, "selectPolicy"), "None"),
        ("ScaledObject", ("spec", "triggers", 0, "metricType"), "Average"),
        ("ScaledObject", ("spec", "triggers", 0, "authenticationRef"), {"name": "a", "kind": "b"}),
    ],
    "pattern": [
        ("ServingRuntime", (*BOX, "resources", "limits", "memory"), "1 GB"),
        ("ServingRuntime", (*BOX, "name"), "kserve_container"),
        ("ServingRuntime", (*BOX, "ports", 0, "name"), "http_port"),
        ("ServingRuntime", ("metadata", "labels", "ingot.dev/model"), "sha256:00"),
        ("InferenceService", ("metadata", "name"), "Digits"),
        ("InferenceService", (*PREDICTOR, "name"), "2digits"),
        ("InferenceService", ("metadata", "annotations", "a b"), "c"),
        ("ScaledObject", ("metadata", "namespace"), "n_s"),
    ],
    "bound": [
        ("ServingRuntime", (*BOX, "ports", 0, "containerPort"), 65536),
        ("ServingRuntime", (*BOX, "livenessProbe", "periodSeconds"), 0),
        ("ServingRuntime", ("spec", "supportedModelFormats", 0, "priority"), 0),
        ("InferenceService", (*PREDICTOR, "maxReplicas"), 2**31),
        ("InferenceService", (*PREDICTOR, "storageUris"), []),
        ("InferenceService", (*PREDICTOR, "terminationGracePeriodSeconds"), 2**63),
        ("InferenceService", ("metadata", "labels", "app.kubernetes.io/name"), "d" * 64),
        ("ScaledObject", ("spec", "maxReplicaCount"), 0),
        ("ScaledObject", ("spec", "minReplicaCount"), -1),
        ("ScaledObject", ("spec", "pollingInterval"), 0),
        ("ScaledObject", ("spec", "cooldownPeriod"), -1),
        ("ScaledObject", (*DOWN, "stabilizationWindowSeconds"), 3601),
        ("ScaledObject", ("spec", "scaleTargetRef", "name"), ""),
        ("ScaledObject", ("spec", "triggers"), []),
    ],
    "missing field": [
        ("ServingRuntime", ("spec", "containers"), None),
        ("ServingRuntime", (*BOX, "name"), None),
        ("ServingRuntime", (*BOX, "readinessProbe", "httpGet", "port"), None),
        ("ServingRuntime", (*BOX, "volumeMounts", 0, "mountPath"), None),
        ("ServingRuntime", ("spec", "supportedModelFormats", 0, "name"), None),
        ("InferenceService", ("spec", "predictor"), None),
        ("InferenceService", (*PREDICTOR, "model", "modelFormat", "name"), None),
        ("ScaledObject", ("spec", "scaleTargetRef"), None),
        ("ScaledObject", ("spec", "scaleTargetRef", "name"), None),
        ("ScaledObject", ("spec", "triggers", 0, "type"), None),
        ("ScaledObject", ("spec", "triggers", 0, "metadata"), None),
    ],
    "unknown field": [
        ("ServingRuntime", (*BOX, "readOnlyRootFilesystem"), True),
        ("ServingRuntime", (*BOX, "livenessProbe", "httpGet", "protocol"), "HTTP"),
        ("ServingRuntime", ("spec", "volumes", 0, "emptyDir", "mode"), 7),
        ("InferenceService", (*PREDICTOR, "model", "runtimeName"), "digits"),
        ("InferenceService", ("spec", "minReplicas"), 1),
        ("ScaledObject", ("spec", "minReplicas"), 1),
        ("ScaledObject", ("spec", "advanced", "behavior"), {}),
        ("ScaledObject", ("spec", "scaleTargetRef", "containerName"), "kserve-container"),
    ],
    "key of a list": [
        ("ServingRuntime", (*BOX, "env"), ENV),
        ("ServingRuntime", (*BOX, "ports"), PORTS),
        ("ServingRuntime", (*BOX, "volumeMounts", 1, "mountPath"), "/var/lib/ingot"),
    ],
    "version": [
        ("ServingRuntime", ("apiVersion",), "serving.kserve.io/v1beta1"),
        ("InferenceService", ("apiVersion",), "serving.kserve.io/v1alpha1"),
        ("ScaledObject", ("apiVersion",), "keda.sh/v1"),
    ],
}


SAID_BY = {
    "type": {"type"},
    "enumeration": {"enum"},
    "pattern": {"pattern"},
    "bound": {"minimum", "maximum", "format", "minLength", "maxLength", "minItems"},
    "missing field": {"required"},
    "unknown field": {"properties"},
    "key of a list": {"x-kubernetes-list-map-keys"},
    "version": {"const"},
}


@pytest.mark.parametrize(
    ("fact", "kind", "path", "value"),
    [(fact, *row) for fact, rows in WRONG.items() for row in rows],
)
def test_the_definitions_refuse_what_is_wrong(settings, definitions, fact, kind, path, value):
    (error,) = problems(changed(written(settings()), kind, path, value), definitions)

    assert error.validator in SAID_BY[fact]


def predictor_of(documents):
    return documents["InferenceService"]["spec"]["predictor"]


def annotation_of(documents, name):
    return documents["InferenceService"]["metadata"]["annotations"][f"serving.kserve.io/{name}"]


def is_served_by_the_runtime(documents):
    runtime, model = documents["ServingRuntime"], predictor_of(documents)["model"]
    service, spec = documents["InferenceService"], runtime["spec"]
    formats = [(one["name"], one["version"]) for one in spec["supportedModelFormats"]]
    return (
        model["runtime"] == runtime["metadata"]["name"]
        and service["metadata"]["namespace"] == runtime["metadata"]["namespace"]
        and not spec.get("disabled")
        and model["protocolVersion"] in spec["protocolVersions"]
        and (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    )


def is_one_model_alone(documents):
    predictor = predictor_of(documents)
    one_way = len({"storageUri", "storage"} & predictor["model"].keys()) == 1
    return one_way and "storageUris" not in predictor


def is_fetchable(documents):
    uri = predictor_of(documents)["model"].get("storageUri", "s3://")
    return uri.split("://")[0] in {
        "gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "hf",
    }  # fmt: skip


def scales_between_bounds(documents):
    predictor, spec = predictor_of(documents), documents["ScaledObject"]["spec"]
    return 0 <= predictor["minReplicas"] <= predictor["maxReplicas"] and spec.get(
        "minReplicaCount", 0
    ) <= spec.get("maxReplicaCount", 100)


def scales_on_a_number(documents):
    (trigger,) = documents["ScaledObject"]["spec"]["triggers"]
    least = {"prometheus": "threshold", "postgresql": "targetQueryValue"}[trigger["type"]]
    return int(1000 * float(trigger["metadata"][least])) > 0  # it counts in thousandths


def asks_with_what_the_scaler_needs(documents):
    (trigger,) = documents["ScaledObject"]["spec"]["triggers"]
    env = documents["ServingRuntime"]["spec"]["containers"][0]["env"]
    given = trigger["metadata"]
    if trigger["type"] == "prometheus":
        needed, address = {"serverAddress", "query", "threshold"}, given.get("serverAddress", "")
        return needed <= given.keys() and address.startswith(("http://", "https://"))
    return "query" in given and given.get("connectionFromEnv") in {one["name"] for one in env}


RULES = {
    "a name is one of DNS that starts with a letter": (
        lambda found: re.fullmatch(
            "[a-z]([-a-z0-9]*[a-z0-9])?", found["InferenceService"]["metadata"]["name"]
        ),
        ("InferenceService", ("metadata", "name"), "2digits"),
    ),
    "the class of the autoscaler is known": (
        lambda found: (
            annotation_of(found, "autoscalerClass") in {"hpa", "external", "keda", "none"}
        ),
        (
            "InferenceService",
            ("metadata", "annotations", "serving.kserve.io/autoscalerClass"),
            "us",
        ),
    ),
    "the deployment mode is known": (
        lambda found: annotation_of(found, "deploymentMode") in {"Standard", "Knative"},
        (
            "InferenceService",
            ("metadata", "annotations", "serving.kserve.io/deploymentMode"),
            "Raw",
        ),
    ),
    "a predictor has one implementation": (
        lambda found: not predictor_of(found).get("containers"),
        ("InferenceService", (*PREDICTOR, "containers"), [{"name": "kserve-container"}]),
    ),
    "a model names no container": (
        lambda found: not predictor_of(found)["model"].get("name"),
        ("InferenceService", (*PREDICTOR, "model", "name"), "kserve-container"),
    ),
    "the runtime serves the model": (
        is_served_by_the_runtime,
        ("InferenceService", (*PREDICTOR, "model", "protocolVersion"), "v1"),
    ),
    "the runtime has the container that KServe looks for": (
        lambda found: (
            found["ServingRuntime"]["spec"]["containers"][0]["name"] == "kserve-container"
        ),
        ("ServingRuntime", (*BOX, "name"), "main"),
    ),
    "a protocol is one of KServe's": (
        lambda found: (
            {"v1", "v2", "grpc-v1", "grpc-v2"}
            >= set(found["ServingRuntime"]["spec"]["protocolVersions"])
        ),
        ("ServingRuntime", ("spec", "protocolVersions"), ["v2", "oip"]),
    ),
    "no placeholder is to be filled in": (
        lambda found: "{{" not in yaml.safe_dump(found["ServingRuntime"]["spec"]["containers"]),
        ("ServingRuntime", (*BOX, "args", 0), "{{.Name}}"),
    ),
    "no variable is one that KServe blocks": (
        lambda found: (
            "PYTHONPATH"
            not in {one["name"] for one in found["ServingRuntime"]["spec"]["containers"][0]["env"]}
        ),
        ("ServingRuntime", (*BOX, "env", 0, "name"), "PYTHONPATH"),
    ),
    "a model is from one place, and no puller is put beside it": (
        is_one_model_alone,
        ("InferenceService", (*PREDICTOR, "model", "storage"), None),
    ),
    "KServe knows how to fetch": (
        is_fetchable,
        ("InferenceService", (*PREDICTOR, "model", "storageUri"), "az://models/digits"),
    ),
    "the least number of replicas is not above the most": (
        scales_between_bounds,
        ("ScaledObject", ("spec", "minReplicaCount"), 5),
    ),
    "what is scaled is what KServe makes": (
        lambda found: (
            found["ScaledObject"]["spec"]["scaleTargetRef"]
            == {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": found["InferenceService"]["metadata"]["name"] + "-predictor",
            }
        ),
        ("ScaledObject", ("spec", "scaleTargetRef", "name"), "digits"),
    ),
    "the name of the autoscaler is a label": (
        lambda found: len("keda-hpa-" + found["ScaledObject"]["metadata"]["name"]) <= 63,
        ("ScaledObject", ("metadata", "name"), "d" * 55),
    ),
    "the aim is a number above 0": (
        scales_on_a_number,
        ("ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), "0.0001"),
    ),
    "a trigger has what its scaler needs": (
        asks_with_what_the_scaler_needs,
        ("ScaledObject", ("spec", "triggers", 0, "metadata", "serverAddress"), "s3://prometheus"),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_manifest_is_admitted(settings, variant):
    documents = written(settings(**VARIANTS[variant]))

    assert [name for name, (rule, _) in RULES.items() if not rule(documents)] == []


@pytest.mark.parametrize("name", RULES)
def test_the_rules_refuse_what_is_wrong(settings, name):
    rule, (kind, path, value) = RULES[name]

    assert not rule(changed(written(settings()), kind, path, value))


def test_a_bundle_in_the_image_is_nothing_to_fetch(settings):
    model = predictor_of(written(settings()))["model"]

    assert model["storage"] == {}
    assert "storageUri" not in model
