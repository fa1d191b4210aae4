"""`ingot deploy`: take a version to where one machine ends."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_json, say
from ingot.core.digest import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingot.registry.registry import Registry
    from ingot.registry.version import Version
    from ingot.serve.deploy.bundle import Bundle
    from ingot.serve.deploy.kserve import KServe
    from ingot.serve.endpoint import Endpoint

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def command() -> None:
    """Pack a version, write it for Kubernetes, or run it on Ray.

    \b
    Examples:
      ingot deploy bundle digits@prod digits-bundle
      ingot deploy kserve digits@prod --image registry.example.org/digits:3 --out deploy
    """


@command.command()
@click.argument("target", metavar="NAME@STAGE")
@click.argument("folder", type=_FOLDER)
@json_option
def bundle(target: str, folder: Path, *, as_json: bool) -> None:
    """Pack a version with all that serving it needs; no registry is asked any more.

    \b
    Examples:
      ingot deploy bundle digits@prod digits-bundle
      INGOT_HOME=digits-bundle ingot serve digits:3 --log observations.sqlite
    """
    from ingot.registry.registry import Registry
    from ingot.serve.deploy.bundle import write_bundle

    with Registry.open() as registry:
        found = write_bundle(registry, registry.resolve(target), folder)
    _show_bundle(found, as_json=as_json)


@command.command()
@click.argument("folder", type=_FOLDER)
@json_option
def check(folder: Path, *, as_json: bool) -> None:
    """Read a bundle and find every file as it was packed, or name the one that is not.

    \b
    Examples:
      ingot deploy check digits-bundle
    """
    from ingot.serve.deploy.bundle import open_bundle

    _show_bundle(open_bundle(folder), as_json=as_json)


@command.command()
@click.argument("target", metavar="NAME@STAGE")
@click.argument("arguments", nargs=-1, metavar="[-- SERVE OPTIONS]")
@click.option("--image", required=True, help="REGISTRY/NAME:TAG that the replicas start.")
@click.option("--out", "folder", type=_FOLDER, required=True, help="Where the files go.")
@click.option("--name", help="Of every object; the version's name by default.")
@click.option("--namespace", default="default", show_default=True, help="Where the objects are.")
@click.option(
    "--storage-uri", default="", help="Where KServe fetches the bundle; in the image by default."
)
@click.option("--service-account", default="", help="Whose credentials fetch it.")
@click.option("--cpu", default="1", show_default=True, help="Processors of a replica.")
@click.option("--memory", default="1Gi", show_default=True, help="Memory of a replica.")
@click.option(
    "--prometheus",
    default="http://prometheus-operated.monitoring:9090",
    show_default=True,
    help="Server that scrapes the replicas.",
)
@click.option("--min-replicas", default=1, show_default=True, help="Never fewer.")
@click.option("--max-replicas", default=5, show_default=True, help="Never more.")
@click.option(
    "--target",
    "aim",
    default=5.0,
    show_default=True,
    help="Requests in flight, or jobs, per replica aimed at.",
)
@click.option(
    "--in-cooldown-s", default=120.0, show_default=True, help="Seconds before a scale-in."
)
@click.option("--drain-s", default=20, show_default=True, help="Seconds for requests at the end.")
@click.option(
    "--async-secret",
    default="",
    metavar="NAME",
    help="Serve jobs: secret whose key `url` is the PostgreSQL database that replicas share.",
)
@click.option("--async-output", default="", metavar="URI", help="Where results of jobs go.")
@json_option
# Any: fields of the settings, checked by them
def kserve(*, target: str, folder: Path, as_json: bool, **options: Any) -> None:
    """Write a ServingRuntime, an InferenceService and a ScaledObject, an image and its bundle.

    Options after -- go to `ingot serve` in the container.

    \b
    Examples:
      ingot deploy kserve digits@prod --image registry.example.org/digits:3 --out deploy
      ingot deploy kserve digits@prod --image registry.example.org/ingot:1 --out deploy \\
        --storage-uri s3://models/digits-3 --max-replicas 10 -- --max-batch 16
    """
    from ingot.registry.registry import Registry
    from ingot.serve.deploy.write import write_kserve

    with Registry.open() as registry:
        settings = _settings(registry.resolve(target), **options)
        _check_serving(settings.command)
        found = write_kserve(registry, settings, folder)
    if as_json:
        print_json({
            "folder": str(found.folder),
            "bundle": _bundle_facts(found.bundle),
            "manifests": found.manifests_digest,
            "command": list(found.command),
        })  # fmt: skip
        return
    say(f"{found.bundle.label} (version {short(found.bundle.version)}): {found.folder}")
    if options["storage_uri"]:
        say(f"copy {folder / 'bundle'} to {options['storage_uri']}")
    say(f"docker build --tag {options['image']} {folder}")
    say(f"kubectl apply --filename {folder / 'kserve.yaml'}")


def _settings(
    version: "Version",
    *,
    name: str | None,
    namespace: str,
    prometheus: str,
    min_replicas: int,
    max_replicas: int,
    aim: float,
    in_cooldown_s: float,
    async_secret: str,
    async_output: str,
    **rest: Any,  # fields of KServe by their own names
) -> "KServe":
    from ingot.serve.deploy.kserve import KServe
    from ingot.serve.deploy.names import label_from
    from ingot.serve.deploy.scaling import AsyncScaling, Scaling
    from ingot.twin.policy import ScalingPolicy

    if bool(async_secret) != bool(async_output):
        raise click.UsageError("--async-secret and --async-output go together.")
    policy = ScalingPolicy(min_replicas, max_replicas, aim, in_cooldown_s=in_cooldown_s)
    return KServe(
        version,
        name=label_from(version.name) if name is None else name,
        namespace=namespace,
        scaling=Scaling(prometheus, policy),
        jobs=AsyncScaling(async_secret, async_output) if async_secret else None,
        **rest,
    )


def _check_serving(words: "Sequence[str]") -> None:
    """Refuse a command line that would not start in the container."""
    from ingot.cli.serve import command as serve

    try:
        serve.make_context("ingot serve", list(words[2:]))
    except click.UsageError as error:
        param = error.param if isinstance(error, click.BadParameter) else None
        if param is not None and isinstance(param.type, click.Path):
            return  # its files lie in the container
        raise click.UsageError(
            f"The container must be able to start; its {' '.join(words[:2])} would say: "
            f"{error.format_message()}"
        ) from error


def _bundle_facts(found: "Bundle") -> dict[str, Any]:
    return {
        "folder": str(found.path),
        "version": found.version,
        "name": found.name,
        "number": found.number,
        "model": found.model,
        "evidence": found.evidence,
        "engine": found.engine,
        "size_bytes": found.size_bytes,
        "digest": found.digest,
    }


def _show_bundle(found: "Bundle", *, as_json: bool) -> None:
    if as_json:
        print_json(_bundle_facts(found))
        return
    say(f"{found.label} (version {short(found.version)}), {found.size_bytes:,} bytes")
    say(f"serve it with: INGOT_HOME={found.path} ingot serve {found.label}")
    click.echo(found.digest)


@command.command()
@click.argument("target", metavar="NAME@STAGE")
@click.option("--replicas", default=2, show_default=True, help="Processes that answer.")
@click.option("--cpus", default=1.0, show_default=True, help="Processors reserved for each.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback unless given.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 picks a free one.")
@click.option("--log", type=click.Path(path_type=Path), help="Observation log.")
@click.option("--drain-s", default=10.0, show_default=True, help="For requests at the end.")
@click.option("--timeout-s", default=60.0, show_default=True, help="To answer a request.")
@click.option("--max-batch", type=int, help="Join requests to calls of up to so many rows.")
@click.option("--max-wait-ms", default=2.0, show_default=True, help="First waits for others.")
@click.option("--no-repeat", is_flag=True, help="Never send a request again when its replica died.")
@click.option("--finite", "finite_only", is_flag=True, help="Refuse NaN and infinities.")
@click.option("--tls-cert", type=_FILE, help="Certificate chain (PEM); with --tls-key.")
@click.option("--tls-key", type=_FILE, help="Its private key (PEM).")
@click.option("--keys", is_flag=True, help="Ask for API keys; see: ingot keys.")
@click.option("--dry-run", is_flag=True, help="Check that it could run, and stop.")
@json_option
# Any: fields of the endpoint
def ray(
    *, target: str, replicas: int, cpus: float, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Run a version as a Ray Serve application on this machine, behind HAProxy.

    It ends with SIGTERM or Ctrl-C, and leaves no process and no port behind.

    \b
    Examples:
      ingot deploy ray digits@prod --replicas 4
      ingot deploy ray digits@prod --host 0.0.0.0 --keys
    """
    from ingot.registry.registry import Registry
    from ingot.serve.deploy.ray_app import RayServe
    from ingot.serve.deploy.ray_run import run_on_ray

    with Registry.open() as registry:
        settings = RayServe(_endpoint(registry, target, **options), replicas, cpus)
    version = settings.endpoint.version
    if as_json:
        print_json({"version": version.digest, "model": version.model, "replicas": replicas,
                    "host": settings.endpoint.host, "port": settings.endpoint.port})  # fmt: skip
    else:
        say(f"{version.label} (version {short(version.digest)}) on {version.config.label}")
    if not dry_run:
        run_on_ray(settings, on_ready=lambda url: say(f"answering at {url}"))


def _endpoint(
    registry: "Registry",
    target: str,
    *,
    log: Path | None,
    max_batch: int | None,
    max_wait_ms: float,
    no_repeat: bool,
    keys: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    **rest: Any,  # fields of Endpoint by their own names
) -> "Endpoint":
    from ingot.cli.serve import tls_files
    from ingot.core.files import home
    from ingot.serve.access.keys import KEYS_FILE
    from ingot.serve.endpoint import Access, Batching, Endpoint

    version = registry.resolve(target)
    return Endpoint(
        version,
        registry.model_of(version),
        log=log or home() / "observations.sqlite",
        is_idempotent=not no_repeat,
        batching=None if max_batch is None else Batching(max_batch, max_wait_ms),
        access=Access(home() / KEYS_FILE) if keys else None,
        tls=tls_files(tls_cert, tls_key),
        **rest,
    )
