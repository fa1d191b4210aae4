"""`ingot doctor`: what this machine and this install can do."""

import shutil

import click

from ingot import __version__
from ingot.cli._options import json_option
from ingot.cli._print import print_facts, print_json, print_table
from ingot.core.extras import is_installed
from ingot.core.files import home
from ingot.core.units import show_bytes

EXTRAS = {
    "compress": ("torch", "onnxscript"),
    "openvino": ("openvino",),
    "native": ("ingot_native",),
    "hf": ("transformers",),
    "data": ("pyarrow", "PIL"),
    "report": ("jinja2",),
    "serve": ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client", "fsspec"),
    "console": ("starlette", "jinja2"),
    "grpc": ("grpc",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp"),
    "oidc": ("jwt", "cryptography"),
    "postgres": ("psycopg",),
    "deploy": ("yaml",),
    "ray": ("ray",),
}


@click.command()
@json_option
def command(as_json: bool) -> int:
    """Show engines, instruction sets, extras and disk; exit 1 if no engine works.

    \b
    Examples:
      ingot doctor
      ingot doctor --json
    """
    from ingot.runtime.engines import engines
    from ingot.runtime.machine import describe_machine

    facts = describe_machine()
    found = {name: engine.available() for name, engine in engines().items()}
    extras = {e: [m for m in modules if not is_installed(m)] for e, modules in EXTRAS.items()}
    folder = home()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    ok = any(status.ok for status in found.values())
    if as_json:
        print_json(
            {
                "ingot": __version__,
                "machine": facts,
                "home": str(folder),
                "free_bytes": free,
                "engines": {
                    n: {"ok": s.ok, "version": s.version, "reason": s.reason}
                    for n, s in found.items()
                },
                "extras": {
                    e: {"ok": not missing, "missing": missing} for e, missing in extras.items()
                },
            }
        )
        return 0 if ok else 1
    print_facts(
        [
            ("ingot", __version__),
            ("home", f"{folder} ({show_bytes(free)} free)"),
            *((k, v if isinstance(v, (str, int)) else _flat(v)) for k, v in facts.items()),
        ]
    )
    print_table(
        "Engines",
        ("engine", "state", "version", "reason"),
        [(n, "ready" if s.ok else "missing", s.version, s.reason) for n, s in found.items()],
    )
    print_table(
        "Extras",
        ("extra", "state", "to install"),
        [
            (e, "ready" if not m else "missing", f'pip install "ingot[{e}]"' if m else "")
            for e, m in extras.items()
        ],
    )
    return 0 if ok else 1


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
