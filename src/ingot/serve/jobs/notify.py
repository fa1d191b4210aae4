"""Telling callers about the end of a job: CloudEvents over HTTP, signed, to public addresses only.

The event is CloudEvents 1.0 in structured JSON. It is signed as Standard Webhooks says
(https://www.standardwebhooks.com): `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over
`ID.TIMESTAMP.BODY`.
"""

import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingot.core.digest import Json, canonical_json
from ingot.core.errors import ServeError
from ingot.core.files import read_secret
from ingot.serve.jobs.job import Job, Notice
from ingot.serve.jobs.status import show_job
from ingot.serve.jobs.store import JobStore
from ingot.serve.problems import RequestError

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_LEASE_S = 60.0
_TRIES = 8
_BACK_OFF_S = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
_AT_ONCE = 4
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host."""
    return [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def check_url(url: str, allowed: Sequence[str]) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL that may be notified, as far as its text tells.

    Args:
        url: As the caller sent it.
        allowed: Names and networks beyond the public ones.

    Raises:
        RequestError: It is no http(s) URL, carries credentials, or names an address that is not
            public and not allowed.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RequestError(f"notify must be a URL; got {url[:200]!r}: {error}.") from error
    host = parts.hostname or ""
    is_plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= 2048
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc or not is_plain:
        raise RequestError(
            f"notify must be an http(s) URL without credentials; got {url[:200]!r}. Correct it."
        )
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost" or host.endswith(".localhost"):
            _need_public(ipaddress.ip_address("127.0.0.1"), host, allowed)
    else:
        _need_public(literal, host, allowed)
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def choose_address(
    host: str, port: int, allowed: Sequence[str], *, look_up: Resolve = resolve
) -> str:
    """Return the address to connect to; every address of the host must be allowed.

    The connection is made to this very address, so a name that resolves otherwise a moment later
    gains nothing.

    Raises:
        RequestError: One of the addresses is not public and not allowed.
        OSError: The name has none.
    """
    found = look_up(host, port)
    for text in found:
        _need_public(ipaddress.ip_address(text.partition("%")[0]), host, allowed)
    if not found:
        raise OSError(f"{host} has no address")
    return found[0]


def sign(key: bytes, event: str, stamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`.

    Examples:
        >>> sign(b"key", "id", 1, b"{}")
        'v1,5PVmP2AfJGwnp9flV+flrzfukNWA9zyUdqvI+IQalVs='
    """
    mac = hmac.new(key, f"{event}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mac).decode()


def read_key(path: Path) -> bytes:
    """Return the key that events are signed with; it is made at the first call.

    The file holds `whsec_` and base64, as Standard Webhooks writes keys, readable by its owner.

    Raises:
        ServeError: It holds something else.
    """
    kept = read_secret(path, lambda: b"whsec_" + base64.b64encode(os.urandom(32)))
    try:
        key = base64.b64decode(kept.strip().removeprefix(b"whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ServeError(
            f"A webhook key must be whsec_ and base64; {path.name!r} holds something else. Restore "
            "it, or delete it: a new key is then made, which receivers must be given."
        )
    return key


def event_of(job: Job) -> dict[str, Json]:
    """Return the CloudEvent that tells how a job ended."""
    return {
        "specversion": "1.0",
        "id": f"{job.id}.{job.attempt}.{job.state.value}",
        "source": f"/v2/models/{job.endpoint}/jobs",
        "type": f"io.ingot.job.{job.state.value}",
        "subject": job.id,
        "time": datetime.fromtimestamp(job.ended, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": show_job(job),
    }


class Notifier:
    """Tells what ended, from the store's own list, so that no end is forgotten in a crash.

    An end is told at least once and up to eight times over two hours; receivers know repeats by the
    event's id. Redirects are not followed.

    Args:
        store: Whose jobs.
        key: What events are signed with.
        allowed: Names and networks beyond the public ones.
        look_up: Finds addresses.
        clock: UTC seconds since 1970.
    """

    def __init__(
        self,
        store: JobStore,
        key: bytes,
        *,
        allowed: Sequence[str] = (),
        look_up: Resolve = resolve,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._key, self._allowed = store, key, tuple(allowed)
        self._look_up, self._clock = look_up, clock
        self._owner = os.urandom(8).hex()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ingot-notify")

    def tell(self) -> int:
        """Tell everything that is due now; return how many tellings were tried."""
        notices = self._store.notices(self._owner, n=4 * _AT_ONCE, lease_s=_LEASE_S)
        list(self._pool.map(self._tell_one, notices))
        return len(notices)

    def close(self) -> None:
        """End; what was not told is told after the next start."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _tell_one(self, notice: Notice) -> None:
        job = self._store.get(notice.job)
        if job is None or not job.state.is_end:  # forgotten, or put back meanwhile
            return
        try:
            status = self._post(notice.url, event_of(job))
            delivered, final, reason = 200 <= status < 300, status == 410, f"answer {status}"
        except RequestError as error:
            delivered, final, reason = False, True, str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            delivered, final, reason = False, False, repr(error)
        last = final or notice.tries >= _TRIES
        again_in_s = None if last else _BACK_OFF_S[min(notice.tries, len(_BACK_OFF_S)) - 1]
        if not delivered:
            log.warning("job %s: telling %s failed: %s", notice.job, notice.url, reason)
        self._store.settle(notice, delivered=delivered, again_in_s=again_in_s)

    def _post(self, url: str, event: dict[str, Json]) -> int:
        scheme, host, port = check_url(url, self._allowed)
        address = choose_address(host, port, self._allowed, look_up=self._look_up)
        body, stamp = canonical_json(event), int(self._clock())
        parts = urlsplit(url)
        headers = {
            "content-type": "application/cloudevents+json; charset=utf-8",
            "webhook-id": str(event["id"]),
            "webhook-timestamp": str(stamp),
            "webhook-signature": sign(self._key, str(event["id"]), stamp, body),
            "user-agent": "ingot",
        }
        connection = _connection(scheme, host, port, address)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    def connect(_target: object, timeout: Any = None, _source: object = None) -> socket.socket:
        # the name stays in the Host header and in the certificate's check; the address is ours
        return socket.create_connection((address, port), timeout)

    if scheme == "https":
        context = ssl.create_default_context()
        made: Any = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    else:
        made = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    made._create_connection = partial(connect)
    connection: http.client.HTTPConnection = made
    return connection


def _need_public(address: Address, host: str, allowed: Sequence[str]) -> None:
    inner = _embedded(address)
    if _is_allowed(inner, host, allowed):
        return
    if not inner.is_global or inner.is_multicast:
        raise RequestError(
            f"notify must name a public address; {host!r} is {inner}, which is not. "
            "Start the endpoint with --notify-allow for its name or network.",
            status=403,
        )


def _is_allowed(address: Address, host: str, allowed: Sequence[str]) -> bool:
    for entry in allowed:
        if entry.lower() == host.lower():
            return True
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            continue
        if address.version == network.version and address in network:
            return True
    return False


def _embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
