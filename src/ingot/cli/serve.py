"""`ingot serve`: answer requests with a released version."""

from pathlib import Path
from typing import Any

import click

from ingot.cli._async_options import async_options, async_settings
from ingot.cli._options import json_option
from ingot.cli._print import print_json, say
from ingot.core.digest import short


@click.command()
@click.argument("target", metavar="NAME@STAGE")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address; loopback unless given."
)
@click.option("--port", default=8000, show_default=True, help="Port; 0 picks a free one.")
@click.option(
    "--log", type=click.Path(path_type=Path), help="Observation log; in the Ingot home by default."
)
@click.option(
    "--drain-s", default=10.0, show_default=True, help="Seconds for requests in flight at the end."
)
@click.option("--dry-run", is_flag=True, help="Check that it could be served, and stop.")
@async_options
@json_option
def command(
    *,
    target: str,
    host: str,
    port: int,
    log: Path | None,
    drain_s: float,
    dry_run: bool,
    as_json: bool,
    is_async: bool,
    **async_values: Any,  # the options that only an asynchronous endpoint reads
) -> None:
    """Serve a released version over the Open Inference Protocol v2 (REST).

    \b
    Examples:
      ingot serve digits@prod
      ingot serve digits:3 --port 0
      ingot serve digits@prod --async --max-instances 3
    """
    from ingot.core.files import home
    from ingot.registry.registry import Registry
    from ingot.serve.endpoint import Endpoint

    with Registry.open() as registry:
        version = registry.resolve(target)
        model = registry.model_of(version)
    endpoint = Endpoint(version, model, host, port, log or home() / "observations.sqlite", drain_s)
    if as_json:
        print_json(
            {
                "version": version.digest,
                "model": version.model,
                "config": version.config.to_json(),
                "host": host,
                "port": port,
            }
        )
    else:
        say(f"{version.label} (version {short(version.digest)}) on {version.config.label}")
    if dry_run:
        return
    if is_async:
        from ingot.serve.jobs.server import run_jobs

        settings = async_settings(version.name, async_values)
        run_jobs(endpoint, settings, on_ready=lambda url: say(f"taking jobs at {url}"))
        return
    endpoint.run(on_ready=lambda url: say(f"answering at {url}"))
