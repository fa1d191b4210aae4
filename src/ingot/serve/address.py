"""Where a server answers: its socket, its URL, its certificate."""

import ipaddress
import socket

from ingot.core.errors import ServeError
from ingot.serve.endpoint import Tls


def bind(host: str, port: int) -> socket.socket:
    """Return a socket of an address, before a model is loaded; listening starts when it is ready.

    Args:
        host: Name or address.
        port: 0 takes a free one.

    Raises:
        ServeError: The address is taken or not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "no port is above 65535"
        raise ServeError(
            f"An endpoint must have an address of its own; {host}:{port} gives {reason}. "
            "Choose another port, or 0 for a free one."
        ) from error
    return listener


def url_of(listener: socket.socket, tls: Tls | None) -> str:
    """Return the URL of a socket, e.g. `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Say whether a name or address can only be this machine's own.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_tls(tls: Tls | None) -> None:
    """Refuse files that no connection could be encrypted with.

    Raises:
        ServeError: They are not PEM, or do not belong together.
    """
    if tls is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"Certificate and key must be PEM files that belong together; got {error}. "
            "Check --tls-cert and --tls-key."
        ) from error
