"""A version on Kubernetes: a runtime that KServe starts, a service that uses it, and its scaling.

KServe runs it as a plain Deployment (mode `Standard`), which KEDA scales; requests reach the server
without a proxy of Knative in between.

References:
    KServe 0.21: `serving.kserve.io/v1alpha1` ServingRuntime, `v1beta1` InferenceService.
"""

from dataclasses import dataclass

from ingot.core.digest import Json
from ingot.core.errors import ServeError
from ingot.registry.version import Version
from ingot.serve.deploy.names import (
    LABEL_MOST,
    check_image,
    check_label,
    check_quantity,
    check_uri,
    label_value,
)
from ingot.serve.deploy.scaling import AsyncScaling, Scaling, scaled_object

Manifest = dict[str, Json]

HTTP_PORT, GRPC_PORT = 8080, 9000
IMAGE_HOME = "/opt/ingot"
STATE = "/var/lib/ingot"
USER = 10001
FORMAT = "ingot"
_STORAGE_HOME = "/mnt/models"  # where KServe puts what a storage URI names
# what it fetches as it is installed
_STORAGES = ("s3", "gs", "https", "http", "pvc", "hf", "hdfs", "webhdfs", "oci", "file")
_MOST_DRAIN_S = 2**31 - 1
_GRACE_S = 5
_SETTLE_S = 5
_OURS = ("--host", "--port", "--grpc-port", "--log", "--drain-s", "--async", "--database",
         "--output", "--folder", "--min-instances", "--max-instances")  # fmt: skip


@dataclass(frozen=True, slots=True)
class KServe:
    """How a version runs on Kubernetes.

    Attributes:
        version: What is served.
        image: Container image with Ingot, and with the bundle unless `storage_uri` names it.
        name: Of every object.
        namespace: Where they are.
        storage_uri: Where KServe fetches the bundle from, e.g. `s3://bucket/digits-3`; empty if
            the image holds it.
        service_account: Whose credentials fetch it; the namespace's default if empty.
        cpu: Processors of a replica, asked for and not exceeded.
        memory: Memory of a replica, likewise.
        scaling: Replicas, and what they follow.
        jobs: What an asynchronous endpoint needs; None serves requests.
        drain_s: Seconds that requests in flight get at the end.
        arguments: More arguments of `ingot serve`.

    Raises:
        ServeError: Something cannot be written into a manifest; raised when it is built.
    """

    version: Version
    image: str
    name: str
    scaling: Scaling
    namespace: str = "default"
    storage_uri: str = ""
    service_account: str = ""
    cpu: str = "1"
    memory: str = "1Gi"
    jobs: AsyncScaling | None = None
    drain_s: int = 20
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what Kubernetes would."""
        check_label("namespace", self.namespace)
        # the host of the service is NAME-predictor-NAMESPACE, one label of DNS
        room = LABEL_MOST - len("-predictor-") - len(self.namespace)
        check_label("name", self.name, most=max(1, room))
        check_image(self.image)
        check_quantity("cpu", self.cpu)
        check_quantity("memory", self.memory)
        if self.storage_uri:
            check_uri("A storage URI", self.storage_uri, schemes=_STORAGES)
        if self.service_account:
            check_label("service account", self.service_account)
        if not 0 <= self.drain_s <= _MOST_DRAIN_S:
            raise ServeError(
                f"drain_s must be 0 to {_MOST_DRAIN_S}; got {self.drain_s}. Correct it."
            )
        _check_arguments(self.arguments)

    @property
    def home(self) -> str:
        """Where the bundle is in the container."""
        return _STORAGE_HOME if self.storage_uri else IMAGE_HOME

    @property
    def command(self) -> tuple[str, ...]:
        """The container's command line."""
        words = ["ingot", "serve", self.version.label, "--host", "0.0.0.0"]  # noqa: S104 # a pod's
        words += ["--port", str(HTTP_PORT), "--drain-s", str(self.drain_s)]
        words += ["--log", f"{STATE}/observations.sqlite"]
        if self.jobs is None:
            words += ["--grpc-port", str(GRPC_PORT)]
        else:
            words += ["--async", "--folder", f"{STATE}/jobs", "--output", self.jobs.output]
            words += ["--min-instances", "1", "--max-instances", "1"]  # Kubernetes adds pods
        return (*words, *self.arguments)


def _check_arguments(words: tuple[str, ...]) -> None:
    if "--keys" in words:
        raise ServeError(
            "Callers of a container must show tokens of an identity provider; got --keys, "
            "whose store would have to be written in a bundle. Use --oidc-issuer, "
            "--oidc-audience and --oidc-jwks."
        )
    for word in words:
        if "{{" in word:
            raise ServeError(
                f"Arguments must not hold '{{{{', where KServe fills something in; got {word!r}. "
                "Leave it out."
            )
        if word.split("=")[0] in _OURS:
            raise ServeError(
                f"{word} must be left to the manifest, which sets it; got it among the "
                "arguments of ingot serve. Leave it out."
            )


def manifests(settings: KServe) -> list[Manifest]:
    """Return the runtime, the service and the scaler, in the order they are applied.

    Args:
        settings: How it runs.
    """
    labels, annotations = _labels(settings), _annotations(settings)
    scaler = scaled_object(
        settings.scaling, settings.jobs,
        model=settings.version.name, namespace=settings.namespace,
    )  # fmt: skip
    made = [_runtime(settings), _service(settings), scaler]
    spec = scaler["spec"]
    assert isinstance(spec, dict)
    spec["scaleTargetRef"] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": f"{settings.name}-predictor",
    }
    for one in made:
        more = one.pop("annotations", {})
        assert isinstance(more, dict)
        one["metadata"] = {
            "name": settings.name,
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": annotations | more,
        }
    order = ("apiVersion", "kind", "metadata", "spec")
    return [{key: one[key] for key in order} for one in made]


def _labels(settings: KServe) -> dict[str, str]:
    version = settings.version
    return {
        "app.kubernetes.io/name": settings.name,
        "app.kubernetes.io/managed-by": "ingot",
        "ingot.dev/number": str(version.number),
        "ingot.dev/version": label_value(version.digest),
        "ingot.dev/model": label_value(version.model),
    }


def _annotations(settings: KServe) -> dict[str, str]:
    version = settings.version
    return {
        "ingot.dev/released-as": version.label,
        "ingot.dev/version-digest": version.digest,
        "ingot.dev/model-digest": version.model,
        "ingot.dev/evidence-digest": version.evidence,
    }


def _runtime(settings: KServe) -> Manifest:
    volumes = {"state": STATE, "scratch": "/tmp"}  # noqa: S108 # a volume of the container's own
    scraped = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(HTTP_PORT),
        "prometheus.io/path": "/metrics",
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "spec": {
            "annotations": scraped,
            "labels": _labels(settings),
            "supportedModelFormats": [{"name": FORMAT, "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2", "grpc-v2"],
            "multiModel": False,
            "containers": [_container(settings, volumes)],
            "volumes": [{"name": name, "emptyDir": {}} for name in volumes],
        },
    }


def _container(settings: KServe, volumes: dict[str, str]) -> Manifest:
    command, *arguments = settings.command
    ports: list[Json] = [{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}]
    if settings.jobs is None:
        ports.append({"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"})
    env: list[Json] = [
        {"name": "INGOT_HOME", "value": settings.home},
        {"name": "HOME", "value": STATE},
    ]
    if settings.jobs is not None:
        secret: Json = {"name": settings.jobs.secret, "key": settings.jobs.secret_key}
        env.append({"name": "INGOT_DATABASE", "valueFrom": {"secretKeyRef": secret}})
    amounts: Json = {"cpu": settings.cpu, "memory": settings.memory}
    return {
        "name": "kserve-container",
        "image": settings.image,
        "command": [command],
        "args": list(arguments),
        "env": env,
        "ports": ports,
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": _confined() | {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in volumes.items()],
        # a model of some gigabytes may take minutes to load, and is not to be killed meanwhile
        "startupProbe": _probe("ready", period_s=2, failures=300),
        "readinessProbe": _probe("ready", period_s=5, failures=1),
        "livenessProbe": _probe("live", period_s=10, failures=3),
        # the Service stops sending some seconds after the pod is told to end
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_SETTLE_S)]}}},
    }  # fmt: skip


def _probe(page: str, *, period_s: int, failures: int) -> Json:
    return {
        "httpGet": {"path": f"/v2/health/{page}", "port": HTTP_PORT, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _confined() -> dict[str, Json]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _service(settings: KServe) -> Manifest:
    model: dict[str, Json] = {
        "modelFormat": {"name": FORMAT, "version": "1"},
        "runtime": settings.name,
        "protocolVersion": "v2",
    }
    if settings.storage_uri:
        model["storageUri"] = settings.storage_uri
    else:
        # without a word on storage KServe takes it for a server of many models, which it gives a
        # puller beside it; a storage without a path is nothing to fetch
        model["storage"] = {}
    predictor: dict[str, Json] = {
        "minReplicas": max(1, settings.scaling.min_replicas),
        "maxReplicas": settings.scaling.max_replicas,
        "terminationGracePeriodSeconds": _SETTLE_S + settings.drain_s + _GRACE_S,
        "automountServiceAccountToken": False,
        "securityContext": _confined() | {"fsGroup": USER},
        "model": model,
    }
    if settings.service_account:
        predictor["serviceAccountName"] = settings.service_account
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "annotations": {
            "serving.kserve.io/deploymentMode": "Standard",
            "serving.kserve.io/autoscalerClass": "external",  # the ScaledObject scales, not KServe
        },
        "spec": {"predictor": predictor},
    }
