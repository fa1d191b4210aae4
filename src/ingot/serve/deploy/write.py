"""The files of a deployment on Kubernetes: manifests, the recipe of an image, and the bundle."""

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ingot.core.digest import digest_bytes
from ingot.core.extras import need
from ingot.core.files import write_atomic
from ingot.registry.registry import Registry
from ingot.serve.deploy.bundle import Bundle, write_bundle
from ingot.serve.deploy.kserve import IMAGE_HOME, STATE, USER, KServe, manifests

MANIFESTS, RECIPE, BUNDLE = "kserve.yaml", "Dockerfile", "bundle"
_ENGINE_EXTRAS = {"openvino": "openvino", "native": "native"}


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        folder: Where.
        bundle: The version, packed.
        manifests_digest: Of the manifests.
        command: The container's command line.
    """

    folder: Path
    bundle: Bundle
    manifests_digest: str
    command: tuple[str, ...]


def write_kserve(registry: Registry, settings: KServe, folder: Path) -> Written:
    """Write `kserve.yaml`, `Dockerfile` and `bundle`; the same settings give the same bytes.

    Args:
        registry: Where the version was released.
        settings: How it runs.
        folder: Where the files go; manifests that are there are replaced.

    Raises:
        MissingExtraError: The extra `deploy` is not installed.
        ServeError: The folder holds the bundle of another version.
        IngotError: The version cannot be packed, or the disk is full.
    """
    text = to_yaml(settings)
    bundle = write_bundle(registry, settings.version, folder / BUNDLE)
    write_atomic(folder / MANIFESTS, text)
    write_atomic(folder / RECIPE, dockerfile(settings).encode())
    return Written(folder, bundle, digest_bytes(text), settings.command)


def to_yaml(settings: KServe) -> bytes:
    """Return the manifests as one YAML stream.

    Raises:
        MissingExtraError: The extra `deploy` is not installed.
    """
    yaml = need("yaml", extra="deploy", what="Writing YAML")
    # copies, because parts that are the same object would become anchors
    documents = [json.loads(json.dumps(one)) for one in manifests(settings)]
    text: str = yaml.safe_dump_all(
        documents, sort_keys=False, explicit_start=True, allow_unicode=True, width=2**16
    )
    return text.encode()


def dockerfile(settings: KServe) -> str:
    """Return the recipe of the image that the manifests start.

    Build it with `docker build --build-arg INGOT=FILE.whl` to install another Ingot than this one.

    Args:
        settings: How the version runs.
    """
    extras = ["serve", "grpc"]
    engine = _ENGINE_EXTRAS.get(settings.version.config.engine)
    extras += [engine] if engine else []
    if settings.jobs is not None:
        extras += ["postgres"]
    if any(word.startswith("--oidc") for word in settings.arguments):
        extras += ["oidc"]
    lines = [
        "FROM python:3.12-slim",
        f'ARG INGOT="ingot[{",".join(extras)}]=={metadata.version("ingot")}"',
        'RUN pip install --no-cache-dir "$INGOT" \\',
        f" && install -d -o {USER} -g {USER} {STATE}",
    ]
    if not settings.storage_uri:
        lines += [f"COPY {BUNDLE} {IMAGE_HOME}", f"RUN chmod -R a=rX {IMAGE_HOME}"]
    lines += [
        f"ENV INGOT_HOME={settings.home} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1",
        f"USER {USER}:{USER}",
        f"WORKDIR {STATE}",
        f"CMD {json.dumps(list(settings.command))}",
    ]
    return "\n".join(lines) + "\n"
