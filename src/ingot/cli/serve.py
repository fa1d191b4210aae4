"""`ingot serve`: answer requests with released versions."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from ingot.cli._async_options import async_options, async_settings
from ingot.cli._generation_options import generation_options, generation_settings
from ingot.cli._observe_options import observe_fields, observe_options
from ingot.cli._options import json_option
from ingot.cli._print import print_json, say
from ingot.cli._rate_options import rate_of, rate_options
from ingot.cli._traffic_options import traffic_options, traffic_plan
from ingot.cli._ways import WaysCommand
from ingot.core.digest import short

if TYPE_CHECKING:
    from ingot.registry.registry import Registry
    from ingot.registry.version import Version
    from ingot.serve.endpoint import Access, Endpoint, Tls
    from ingot.serve.jobs.settings import AsyncSettings
    from ingot.serve.running import Running

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def _address_options(function: F) -> F:
    for option in reversed((
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Address; loopback unless given."
        ),
        click.option("--port", default=8000, show_default=True, help="Port; 0 picks a free one."),
        click.option("--grpc-port", type=int, help="Speak gRPC beside REST; 0 picks a free port."),
        click.option(
            "--log", type=click.Path(path_type=Path),
            help="Observation log; in the Ingot home by default.",
        ),
        click.option(
            "--drain-s", default=10.0, show_default=True,
            help="Seconds for requests in flight at the end.",
        ),
        click.option("--tls-cert", type=_FILE, help="Certificate chain (PEM); with --tls-key."),
        click.option("--tls-key", type=_FILE, help="Its private key (PEM)."),
        click.option("--console", is_flag=True, help="Web pages under /console."),
        click.option("--keys", is_flag=True, help="Ask for API keys; see: ingot keys."),
        click.option("--oidc-issuer", help="Take tokens of this identity provider."),
        click.option("--oidc-audience", help="This service, as those tokens name it."),
        click.option("--oidc-jwks", help="The provider's public keys: file or https address."),
    )):  # fmt: skip
        function = option(function)
    return function


def _work_options(function: F) -> F:
    for option in reversed((
        click.option(
            "--workers", default=0, show_default=True,
            help="Processes per model; 0 runs it in the server's own.",
        ),
        click.option(
            "--no-repeat", is_flag=True, help="Never send a request again when its worker died."
        ),
        click.option("--max-batch", type=int, help="Join requests to calls of up to so many rows."),
        click.option(
            "--max-wait-ms", default=2.0, show_default=True,
            help="What the first of them waits for others.",
        ),
        click.option(
            "--timeout-s", default=60.0, show_default=True, help="Seconds to answer a request."
        ),
        click.option(
            "--load-timeout-s", default=300.0, show_default=True,
            help="Seconds for a worker or instance to load the model.",
        ),
        click.option(
            "--max-waiting", default=512, show_default=True,
            help="Requests that may wait; more get 429.",
        ),
        click.option("--max-body-mb", default=64, show_default=True, help="Largest body, in MiB."),
        click.option(
            "--max-in-flight-mb", type=int,
            help="Bodies of all requests at a time, in MiB; more get 503. An eighth of the memory "
            "if not given.",
        ),
        click.option(
            "--finite", is_flag=True,
            help="Refuse NaN and infinities, in requests (400) and in answers (500).",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


@click.command(cls=WaysCommand)
@click.argument("targets", metavar="NAME@STAGE...", nargs=-1, required=True)
@_address_options
@_work_options
@rate_options
@click.option("--dry-run", is_flag=True, help="Check that it could be served, and stop.")
@generation_options
@async_options
@traffic_options
@observe_options
@json_option
# Any: the options of the groups above
def command(
    *, targets: tuple[str, ...], dry_run: bool, as_json: bool, is_async: bool, **options: Any
) -> None:
    """Serve released versions over the Open Inference Protocol v2 (REST).

    \b
    Examples:
      ingot serve digits@prod
      ingot serve digits:3 digits:2 letters@prod --port 0
      ingot serve digits@prod --workers 2 --max-batch 16 --keys --rate 50 --host 0.0.0.0
      ingot serve digits@prod --async --max-instances 3
      ingot serve digits@prod --canary digits:4 --require "p95_ms <= 1.2x baseline"
      ingot serve digits@prod --log-rules rules.toml --otlp http://127.0.0.1:4318
      ingot serve writer@prod --generate --cache-tokens 16384
      ingot serve digits@prod --console
    """
    from ingot.registry.registry import Registry

    with Registry.open() as registry:
        first, *others = _endpoints(registry, targets, options)
    endpoint = replace(first, beside=tuple(others))
    jobs = _job_settings(endpoint, options) if is_async else None
    if dry_run:
        from ingot.serve.rehearsal import rehearse

        rehearse(endpoint, jobs)
    for one in (first, *others):
        version = one.version
        say(f"{version.label} (version {short(version.digest)}) on {version.config.label}")
    if endpoint.access is None and endpoint.host not in _LOOPBACK:
        say(f"warning: {endpoint.host} lets everybody who reaches it in; ask for keys with --keys")
    if not dry_run:
        _run(endpoint, jobs, as_json=as_json)
    elif as_json:
        print_json(_all_facts(endpoint))


def _job_settings(endpoint: "Endpoint", options: dict[str, Any]) -> "AsyncSettings":
    if endpoint.generation is not None:
        raise click.UsageError("--generate streams, and jobs are answered later; drop --async.")
    if endpoint.beside or endpoint.traffic is not None:
        raise click.UsageError("--async takes one version; start a server for each.")
    return async_settings(endpoint.version.name, options)


def _run(endpoint: "Endpoint", jobs: "AsyncSettings | None", *, as_json: bool) -> None:
    from ingot.serve.jobs.server import serve_jobs_in_thread
    from ingot.serve.running import run_until_stopped
    from ingot.serve.server import serve_in_thread

    def begin() -> "Running":
        return serve_in_thread(endpoint) if jobs is None else serve_jobs_in_thread(endpoint, jobs)

    def tell(running: "Running") -> None:
        address = urlsplit(running.url)
        if as_json:
            ports = {"port": address.port, "grpc_port": running.grpc_port, "url": running.url}
            print_json(_all_facts(endpoint) | ports)
        if running.grpc_port is not None:
            host = address.netloc.rpartition(":")[0]
            say(f"gRPC at {host}:{running.grpc_port}")
        say(f"{'answering' if jobs is None else 'taking jobs'} at {running.url}")
        if endpoint.console:
            say(f"console at {running.url}/console")

    run_until_stopped(begin, tell, say=_say_last)


def _say_last(message: str) -> None:
    with suppress(OSError, ValueError):  # a terminal that is gone must not keep it from draining
        say(message)


def _endpoints(
    registry: "Registry", targets: tuple[str, ...], options: dict[str, Any]
) -> "list[Endpoint]":
    """Return what is to be served: the targets, and what the traffic options name beside them."""
    versions = [registry.resolve(target) for target in targets]
    plan, named = traffic_plan(options, registry.resolve)
    versions += [version for version in named if version not in versions]
    found = [_endpoint(registry, version, options) for version in versions]
    for index, version in enumerate(versions):
        if plan is not None and version.name == named[0].name:
            found[index] = replace(found[index], traffic=plan)
            break
    return found


def _endpoint(registry: "Registry", version: "Version", options: dict[str, Any]) -> "Endpoint":
    from ingot.core.files import home
    from ingot.serve.endpoint import Batching, Endpoint

    rows, room = options["max_batch"], options["max_in_flight_mb"]
    return Endpoint(
        version,
        registry.model_of(version),
        options["host"],
        options["port"],
        options["log"] or home() / "observations.sqlite",
        options["drain_s"],
        max_body_bytes=options["max_body_mb"] * 1024 * 1024,
        max_in_flight_bytes=None if room is None else room * 1024 * 1024,
        workers=options["workers"],
        is_idempotent=not options["no_repeat"],
        batching=None if rows is None else Batching(rows, options["max_wait_ms"]),
        generation=generation_settings(options),
        timeout_s=options["timeout_s"],
        load_timeout_s=options["load_timeout_s"],
        max_waiting=options["max_waiting"],
        access=_access(options),
        rate=rate_of(options["rate"], options["burst"]),
        tls=tls_files(options["tls_cert"], options["tls_key"]),
        grpc_port=options["grpc_port"],
        console=options["console"],
        finite_only=options["finite"],
        **observe_fields(options),
    )


def _access(options: dict[str, Any]) -> "Access | None":
    from ingot.core.files import home
    from ingot.serve.access.keys import KEYS_FILE
    from ingot.serve.endpoint import Access, Tokens

    words = [options[f"oidc_{name}"] for name in ("issuer", "audience", "jwks")]
    if any(words) and not all(words):
        raise click.UsageError("--oidc-issuer, --oidc-audience and --oidc-jwks go together.")
    tokens = Tokens(*words) if all(words) else None
    keys = home() / KEYS_FILE if options["keys"] else None
    return Access(keys, tokens) if keys or tokens else None


def tls_files(certificate: Path | None, key: Path | None) -> "Tls | None":
    """Return both files, or None where neither is named."""
    from ingot.serve.endpoint import Tls

    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key go together.")
    return Tls(certificate, key) if certificate and key else None


def _all_facts(endpoint: "Endpoint") -> dict[str, Any]:
    return _facts(endpoint) | {"beside": [_facts(one) for one in endpoint.beside]}


def _facts(endpoint: "Endpoint") -> dict[str, Any]:
    version = endpoint.version
    return {
        "version": version.digest,
        "model": version.model,
        "config": version.config.to_json(),
        "host": endpoint.host,
        "port": endpoint.port,
        "grpc_port": endpoint.grpc_port,
        "workers": endpoint.workers,
        "finite_only": endpoint.finite_only,
        "generation": None if endpoint.generation is None else asdict(endpoint.generation),
    }
