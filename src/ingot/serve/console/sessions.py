"""Sessions of people: a cookie instead of a key, and what makes a form safe to act on."""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ingot.serve.access.gate import Gate
from ingot.serve.access.scopes import Principal
from ingot.serve.address import is_loopback
from ingot.serve.problems import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

COOKIE = "ingot_console"
_IDLE_S, _LONGEST_S = 30 * 60.0, 12 * 3600.0
_MOST = 1000


@dataclass(slots=True)
class _Session:
    proof: str
    began: float
    used: float

    def is_over(self, now: float) -> bool:
        """Say whether it has ended by time; a clock that was set back ends it too."""
        idle, age = now - self.used, now - self.began
        return not (0 <= idle <= _IDLE_S and 0 <= age <= _LONGEST_S)


class Sessions:
    """Who looks at the console.

    A caller shows a key or token once. The cookie it gets holds a random name of the session,
    signed; the proof stays in this process's memory and is judged anew on every visit, so a key
    that is revoked or expires ends its sessions. A session ends after 30 minutes without a visit,
    after 12 hours, and with the server.

    Args:
        gate: Who may ask; None lets everybody.
        is_secure: Whether cookies are sent over TLS only.
        clock: UTC seconds since 1970.
    """

    def __init__(
        self, gate: Gate | None, *, is_secure: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._gate, self._is_secure, self._clock = gate, is_secure, clock
        self._secret = secrets.token_bytes(32)
        self._open: dict[str, _Session] = {}

    @property
    def is_needed(self) -> bool:
        """Whether visitors must sign in."""
        return self._gate is not None

    async def begin(self, proof: str, response: "Response") -> None:
        """Begin a session and give its cookie with a response.

        Args:
            proof: API key or token.
            response: What is answered.

        Raises:
            RequestError: It is neither, expired or revoked (401).
        """
        assert self._gate is not None
        await self._gate.identify(f"Bearer {proof}")
        now, name = self._clock(), secrets.token_urlsafe(24)
        for old in [n for n, s in self._open.items() if s.is_over(now)]:
            del self._open[old]
        if len(self._open) >= _MOST:
            self._open.pop(next(iter(self._open)))
        self._open[name] = _Session(proof, now, now)
        response.set_cookie(
            COOKIE, f"{name}.{self._sign('cookie', name)}", max_age=int(_LONGEST_S),
            path="/console", secure=self._is_secure, httponly=True, samesite="strict",
        )  # fmt: skip

    def end(self, request: "Request", response: "Response") -> None:
        """End the visitor's session and take its cookie back."""
        self._open.pop(self._name(request), None)
        response.delete_cookie(
            COOKIE, path="/console", secure=self._is_secure, httponly=True, samesite="strict"
        )

    async def visitor(self, request: "Request") -> Principal | None:
        """Return who asks; None where everybody may.

        An `Authorization` header does as well as a cookie, for programs that read the JSON twins.

        Raises:
            RequestError: No session, or its key is no longer valid (401); or an open console is
                asked for by a name that is not this machine's (403), as a page elsewhere could
                make a browser do.
        """
        if self._gate is None:
            if not is_loopback(request.url.hostname or ""):
                raise RequestError(
                    "A console without keys must be asked for as localhost; this request names "
                    "another host. Serve with --keys to open it to others.",
                    status=403,
                )
            return None
        given = request.headers.get("authorization", "")
        if given:
            return await self._gate.identify(given)
        name, now = self._name(request), self._clock()
        session = self._open.get(name)
        if session is None or session.is_over(now):
            self._open.pop(name, None)
            raise RequestError(
                "The console must know who asks; there is no session. Sign in.", status=401
            )
        try:
            caller = await self._gate.identify(f"Bearer {session.proof}")
        except RequestError:
            self._open.pop(name, None)
            raise
        session.used = now
        return caller

    def token(self, request: "Request") -> str:
        """Return what a form of this visitor must carry."""
        return self._sign("form", self._name(request))

    def check_form(self, request: "Request", token: str | None) -> None:
        """Refuse a form that may not be from a page of this console.

        Args:
            request: What arrived.
            token: What the form carried; None for the form that signs in, which needs none.

        Raises:
            RequestError: It comes from elsewhere, or carries another token (403).
        """
        origin = urlsplit(request.headers.get("origin", ""))
        site = request.headers.get("sec-fetch-site", "same-origin")
        is_ours = site == "same-origin" and origin.netloc == request.headers.get("host", "") != ""
        is_right = token is None or hmac.compare_digest(
            token.encode(), self.token(request).encode()
        )
        if not (is_ours and is_right):
            raise RequestError(
                "A form must come from a page of this console; this one does not, or its session "
                "has ended. Load the page again.",
                status=403,
            )

    def _name(self, request: "Request") -> str:
        name, _, mac = request.cookies.get(COOKIE, "").partition(".")
        is_ours = hmac.compare_digest(mac.encode(), self._sign("cookie", name).encode())
        return name if is_ours else ""

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.digest(self._secret, f"{purpose}|{text}".encode(), "sha256").hex()
