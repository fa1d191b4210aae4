"""HAProxy as Ray Serve starts it, kept on its lead.

Ray's proxy leaves HAProxy behind when it is killed, and opens two ports of it on every address of
the machine. Ray starts whatever executable `RAY_SERVE_HAPROXY_BINARY_PATH` names; we name a script
of ours, which binds the process to the life of the one that starts it, narrows the configuration,
and then becomes HAProxy.
"""

import os
import re
import signal
import sys
from pathlib import Path

from ingot.serve.deploy.processes import die_with_parent
from ingot.serve.endpoint import Tls
from ingot.serve.problems import PROBLEM_TYPE, encode_problem

BINARY, ADDRESS, REFUSAL = "INGOT_HAPROXY", "INGOT_HAPROXY_ADDRESS", "INGOT_HAPROXY_REFUSAL"
CERTIFICATE = "INGOT_HAPROXY_CERTIFICATE"
_EVERYWHERE = re.compile(r"^(\s*bind\s+)(?:\*|0\.0\.0\.0|\[?::\]?)?:(\d+)", re.MULTILINE)
_NOBODY = re.compile(r"^(backend default_backend\n\s*).+$", re.MULTILINE)
_REFUSALS = re.compile(r"^(\s*errorfile \d+ ).+$", re.MULTILINE)


def write_wrapper(folder: Path) -> Path:
    """Write the script that becomes HAProxy.

    Args:
        folder: Where; only its owner may write there.
    """
    path = folder / "haproxy"
    path.write_text(
        f"#!{sys.executable}\nfrom ingot.serve.deploy.haproxy import main\n\nmain()\n",
        encoding="utf-8",
    )
    path.chmod(0o700)
    return path


def write_refusal(folder: Path) -> Path:
    """Write the answer for a request that no replica takes: a problem document, to ask again."""
    words = "A replica must be there to answer; none took the request. Send it again."
    body = encode_problem(503, words)
    head = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        f"content-type: {PROBLEM_TYPE}\r\ncontent-length: {len(body)}\r\n"
        "retry-after: 1\r\nconnection: close\r\n\r\n"
    )
    path = folder / "refusal.http"
    path.write_bytes(head.encode() + body)
    return path


def write_certificate(folder: Path, tls: Tls) -> Path:
    """Write chain and key into one file, as HAProxy wants them, which only its owner may read."""
    path = folder / "certificate.pem"
    path.touch(mode=0o600)
    path.write_bytes(tls.certificate.read_bytes() + b"\n" + tls.key.read_bytes())
    return path


def narrow(config: str, address: str, refusal: str, certificate: str = "") -> str:
    r"""Return a configuration that listens where it was asked to, and refuses in our words.

    Args:
        config: As Ray wrote it: answers on loopback, counts on every address.
        address: Where it shall answer, `host:port`.
        refusal: File with the answer when no replica takes a request.
        certificate: File with the chain and the key to encrypt with; none if empty.

    Examples:
        >>> narrow("  bind :9101\n  bind 127.0.0.1:8000\n", "10.0.0.1:8000", "x")
        '  bind 127.0.0.1:9101\n  bind 10.0.0.1:8000\n'
    """
    port = address.rpartition(":")[2]
    config = _EVERYWHERE.sub(r"\g<1>127.0.0.1:\2", config)
    place = f"{address} ssl crt {certificate}" if certificate else address
    config = re.sub(
        rf"^(\s*bind\s+)127\.0\.0\.1:{port}\b(?! ssl)",
        lambda match: match[1] + place,
        config,
        flags=re.MULTILINE,
    )
    config = _REFUSALS.sub(lambda match: match[1] + refusal, config)
    # our application has every path, so where Ray knows of no path, it has no replica yet
    return _NOBODY.sub(r"\g<1>http-request deny deny_status 503", config)


def main() -> None:
    """Become HAProxy; the process that started this one takes it along when it ends."""
    die_with_parent(signal.SIGKILL, os.getppid())
    words = sys.argv[1:]
    if "-f" in words:
        path = Path(words[words.index("-f") + 1])
        named = (os.environ.get(name, "") for name in (ADDRESS, REFUSAL, CERTIFICATE))
        path.write_text(narrow(path.read_text(), *named))
    binary = os.environ[BINARY]
    os.execv(binary, [binary, *words])  # noqa: S606 # no shell
