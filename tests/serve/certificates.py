"""Certificates for tests, made by the machine's openssl."""

import subprocess

import pytest

from ingot.serve.endpoint import Tls


def make_certificate(folder):
    """Return a certificate of 127.0.0.1 that is its own authority."""
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine has no openssl that makes certificates")
    return Tls(folder / "cert.pem", folder / "key.pem")
