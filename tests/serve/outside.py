"""What stands outside a server under test: its callers, its clock, and who waits for it."""

import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self):
        return self.now


def wait_for(claim, timeout_s: float = 30.0):
    """Return the first true value of a claim."""
    until = time.monotonic() + timeout_s
    while not (found := claim()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.002)
    return found


def connect(running):
    """Return a bare connection to a server."""
    parts = urlsplit(running.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def read_all(connection):
    """Return everything until the other side hangs up."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
