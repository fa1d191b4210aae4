"""The routes of a console: pages, their JSON twins, their streams, buttons, signing in."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from ingot.core.errors import ServeError
from ingot.serve.access.gate import Gate
from ingot.serve.address import is_loopback
from ingot.serve.answers import problem
from ingot.serve.console.live import TICK_S, Listeners, Live
from ingot.serve.console.page import ROOT, Action, Content, Page, Section, Visit
from ingot.serve.console.rendering import Renderer, encode, static_files
from ingot.serve.console.sessions import Sessions
from ingot.serve.endpoint import Endpoint
from ingot.serve.problems import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    Answer = Callable[[Request], Awaitable[Response]]

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # nothing leaves this server; with no-referrer browsers would send forms with a null origin
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "vary": "accept, cookie, authorization",
}
_FRESH, _FOR_EVER = "no-store", "public, max-age=31536000, immutable"
_MOST_FORM_BYTES = 16 * 1024


def check_console(endpoint: Endpoint) -> None:
    """Refuse a console that anybody in reach could use.

    Raises:
        ServeError: It would be open on an address that is not this machine's own.
        MissingExtraError: Jinja2 is not installed.
    """
    if not endpoint.console:
        return
    if endpoint.access is None and not is_loopback(endpoint.host):
        raise ServeError(
            "A console must be on loopback or ask for keys; this one would be open on "
            f"{endpoint.host!r}. Serve with --keys, or leave --host out."
        )
    Renderer((), has_sessions=False)


@dataclass(frozen=True, slots=True)
class Console:
    """What a console is made of.

    Attributes:
        sections: Its navigation; the first is where it begins.
        pages: Its pages.
        is_draining: Says whether the server stops.
        actions: Its buttons.
        tick_s: Seconds between two looks of a live page.
    """

    sections: Sequence[Section]
    pages: Sequence[Page]
    is_draining: Callable[[], bool]
    actions: Sequence[Action] = ()
    tick_s: float = TICK_S


def console_routes(
    console: Console, endpoint: Endpoint, *, gate: Gate | None = None
) -> "list[BaseRoute]":
    """Return every route of a console, all of them under `/console`.

    Args:
        console: What it shows.
        endpoint: Its address, which says whether cookies need TLS.
        gate: Who may look; None lets everybody on loopback.
    """
    from starlette.routing import Route

    site = _Site(console, Sessions(gate, is_secure=endpoint.tls is not None))
    routes: list[BaseRoute] = [
        Route(path, site.guarded(answer), methods=methods)
        for path, answer, methods in (
            (ROOT, site.start, ["GET"]),
            (ROOT + "/", site.start, ["GET"]),
            (ROOT + "/login", site.sign_in_page, ["GET"]),
            (ROOT + "/login", site.sign_in, ["POST"]),
            (ROOT + "/logout", site.sign_out, ["POST"]),
            (ROOT + "/static/{name:path}", site.static, ["GET"]),
        )
    ]
    for action in console.actions:
        answer = site.guarded(partial(site.act, action))
        routes.append(Route(ROOT + action.path, answer, methods=["POST"]))
    for page in console.pages:
        for path, show in (
            (page.path + ".json", site.twin), ("/events" + page.path, site.stream),
            (page.path, site.show),
        ):  # fmt: skip
            answer = site.guarded(partial(show, page))
            routes.append(Route(ROOT + path, answer, methods=["GET"]))
    routes.append(Route(ROOT + "/{rest:path}", site.guarded(site.lost)))
    return routes


class _Site:
    def __init__(self, console: Console, sessions: Sessions) -> None:
        self._console, self._sessions = console, sessions
        self._renderer = Renderer(console.sections, has_sessions=sessions.is_needed)
        self._listeners = Listeners()

    def guarded(self, answer: "Answer") -> "Answer":
        """Return a route with the headers of every page, and with refusals that people can read."""

        async def guard(request: "Request") -> "Response":
            try:
                response = await answer(request)
            except RequestError as error:
                response = self._refusal(request, error)
            except Exception:  # a process edge: the log says why, the visitor gets a page
                log.exception("%s failed", request.url.path)
                failure = RequestError("The server failed. Its log says why.", status=500)
                response = self._refusal(request, failure)
            response.headers.update(_HEADERS)
            response.headers.setdefault("cache-control", _FRESH)
            return response

        return guard

    async def start(self, _request: "Request") -> "Response":
        return _see(self._console.sections[0].path)

    async def show(self, page: Page, request: "Request") -> "Response":
        if not _wants_html(request):
            return await self.twin(page, request)
        content = await page.read(await self._visit(request))
        live = ROOT + "/events" + request.url.path.removeprefix(ROOT)
        if request.url.query:
            live += "?" + request.url.query
        text = self._renderer.page(
            page.template, content, section=page.section,
            live=live if page.is_live else "", token=self._sessions.token(request),
        )  # fmt: skip
        return _html(text)

    async def twin(self, page: Page, request: "Request") -> "Response":
        from starlette.responses import Response

        content = await page.read(await self._visit(request))
        return Response(encode(content), media_type="application/json")

    async def stream(self, page: Page, request: "Request") -> "Response":
        from starlette.responses import StreamingResponse

        await self._visit(request)
        if self._console.is_draining():
            raise RequestError("The server stops. Load the page again when it is back.", status=503)
        self._listeners.check()
        token = self._sessions.token(request)

        async def read(since: float) -> Content:
            return await page.read(await self._visit(request, since))

        live = Live(
            read, partial(self._renderer.live, page.template, token=token),
            self._console.is_draining, self._listeners, self._console.tick_s,
        )  # fmt: skip
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(live.events(), headers=headers, media_type="text/event-stream")

    async def act(self, action: Action, request: "Request") -> "Response":
        visit = await self._visit(request)
        form = await _form(request)
        self._sessions.check_form(request, form.get("token", ""))
        return _see(await action.act(visit))

    async def static(self, request: "Request") -> "Response":
        from starlette.responses import Response

        found = static_files().get(request.path_params["name"])
        if found is None:
            return await self.lost(request)
        return Response(found[0], headers={"cache-control": _FOR_EVER}, media_type=found[1])

    async def sign_in_page(self, request: "Request") -> "Response":
        if not self._sessions.is_needed:
            return _see(self._console.sections[0].path)
        return self._sign_in_form(request.query_params.get("next", ""))

    async def sign_in(self, request: "Request") -> "Response":
        if not self._sessions.is_needed:
            return _see(self._console.sections[0].path)
        form = await _form(request)
        self._sessions.check_form(request, None)
        response = _see(_path_of(form.get("next", ""), self._console.sections[0].path))
        try:
            await self._sessions.begin(form.get("key", "").strip(), response)
        except RequestError:
            words = "This key is not valid here: unknown, expired or revoked. Check it, or make "
            return self._sign_in_form(form.get("next", ""), words + "one with: ingot keys create")
        return response

    async def sign_out(self, request: "Request") -> "Response":
        form = await _form(request)
        self._sessions.check_form(request, form.get("token", ""))
        response = _see("/login")
        self._sessions.end(request, response)
        return response

    async def lost(self, request: "Request") -> "Response":
        path = request.url.path[:200]
        raise RequestError(f"No page of the console is at {path!r}. Start at {ROOT}.", status=404)

    async def _visit(self, request: "Request", since: float = 0.0) -> Visit:
        caller = await self._sessions.visitor(request)
        base = f"{request.url.scheme}://{request.url.netloc}"
        return Visit(caller, request.path_params, request.query_params, base, since)

    def _sign_in_form(self, target: str, words: str = "") -> "Response":
        text = self._renderer.page(
            "login.html", None, section="", live="", token="", target=target, words=words
        )
        return _html(text, 401 if words else 200)

    def _refusal(self, request: "Request", error: RequestError) -> "Response":
        if not _wants_html(request) or "/events/" in request.url.path:
            return problem(error.status, str(error))
        if error.status == 401:
            return _see("/login?next=" + quote(request.url.path, safe="/"))
        text = self._renderer.page(
            "error.html", None, section="", live="", token=self._sessions.token(request),
            status=error.status, words=str(error),
        )  # fmt: skip
        return _html(text, error.status)


def _wants_html(request: "Request") -> bool:
    if request.url.path.endswith(".json"):
        return False
    accept = request.headers.get("accept", "")
    return "text/html" in accept or "application/json" not in accept


def _html(text: str, status: int = 200) -> "Response":
    from starlette.responses import HTMLResponse

    return HTMLResponse(text, status)


def _see(path: str) -> "Response":
    from starlette.responses import RedirectResponse

    return RedirectResponse(ROOT + path, 303)


def _path_of(target: str, default: str) -> str:
    """Return the part of a target below the console; the default if it leads elsewhere."""
    parts = urlsplit(target)
    is_ours = not (parts.scheme or parts.netloc) and parts.path.startswith(ROOT + "/")
    return parts.path.removeprefix(ROOT) if is_ours else default


async def _form(request: "Request") -> dict[str, str]:
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        parts.append(part)
        if size > _MOST_FORM_BYTES:
            raise RequestError(f"A form must take at most {_MOST_FORM_BYTES:,} bytes.", status=413)
    found = parse_qs(b"".join(parts).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}
