"""A client of the traffic pages, on the standard library alone."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ingot.serve.client import ask


# Any: parsed JSON; what it holds is in docs/how-to/split-traffic.md
def traffic(
    url: str,
    name: str,
    change: Mapping[str, object] | None = None,
    *,
    token: str = "",
    timeout_s: float = 30.0,
) -> dict[str, Any]:
    """Ask a server how the requests for a name are dealt, perhaps after a change.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`.
        name: Name of the model there.
        change: `{"weights": {"3": 0.9, "2": 0.1}}`, `{"roll_back": True}` or `{"start": True}`.
        token: API key or token of the caller, where the server asks for one.
        timeout_s: Seconds to wait for each step of the exchange.

    Raises:
        ServeError: No answer, or the server refused; its own message is quoted.
    """
    path = f"/v2/models/{quote(name, safe='')}/traffic"
    headers = {"authorization": f"Bearer {token}"} if token else {}
    method, body = "GET", None
    if change is not None:
        method, body = "POST", json.dumps(dict(change)).encode()
        headers["content-type"] = "application/json"
    found: dict[str, Any] = ask(url, method, path, body=body, headers=headers, timeout_s=timeout_s)[
        0
    ]
    return found
