import asyncio
import re
import time
from dataclasses import replace

import httpx
import pytest

from ingot.core.errors import ServeError
from ingot.serve.access.keys import KeyStore
from ingot.serve.console.live import MOST_LISTENERS, Listeners, Live
from ingot.serve.console.sessions import COOKIE
from ingot.serve.console.site import POLICY
from ingot.serve.endpoint import Access
from ingot.serve.problems import RequestError
from ingot.serve.server import check_endpoints, serve_in_thread

HTML = {"accept": "text/html"}
FLEET, ONE = "/console/endpoints", "/console/endpoints/doubler/3"


@pytest.fixture
def keys(tmp_path):
    return KeyStore(tmp_path / "keys.sqlite")


@pytest.fixture
def key(keys):
    """Keys by name, made before the server starts: it looks for new ones once a second."""
    scopes = {
        "console": "read:*", "all": "*", "other": "read:letters", "monitoring": "metrics",
    }  # fmt: skip
    return {name: keys.create(name, [scope])[0] for name, scope in scopes.items()}


@pytest.fixture
def shown(endpoint, doubler):
    with serve_in_thread(replace(endpoint, console=True), doubler) as running:
        yield running


@pytest.fixture
def guarded(endpoint, key, tmp_path, doubler):
    wanted = replace(endpoint, console=True, access=Access(tmp_path / "keys.sqlite"))
    with serve_in_thread(wanted, doubler) as running:
        yield running


def client_of(running, **more):
    return httpx.Client(base_url=running.url, trust_env=False, timeout=10, **more)


@pytest.fixture
def browser(shown):
    with client_of(shown, headers=HTML) as client:
        yield client


@pytest.fixture
def visitor(guarded):
    headers = HTML | {"origin": guarded.url}
    with client_of(guarded, headers=headers) as client:
        yield client


def sign_in(client, key):
    return client.post("/console/login", data={"key": key, "next": ONE})


def token_of(page):
    return re.search(r'name="token" value="(\w+)"', page.text)[1]


@pytest.mark.parametrize("path", [FLEET, ONE, "/console/nothing"])
def test_every_page_forbids_what_it_does_not_need(browser, path):
    headers = browser.get(path).headers

    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_the_console_begins_at_the_endpoints(browser):
    answer = browser.get("/console")

    assert (answer.status_code, answer.headers["location"]) == (303, FLEET)


def test_without_being_asked_for_there_is_no_console(http):
    assert http.get(FLEET).status_code == 404


def test_the_fleet_shows_every_version(browser):
    text = browser.get(FLEET).text

    assert re.search(r'href="/console/endpoints/doubler/3">doubler<span', text)
    assert "1 of 1 ready" in text


def test_a_page_and_its_twin_show_one_object(browser, body):
    browser.post("/v2/models/doubler/infer", json=body)
    twin = browser.get(ONE + ".json").json()
    by_header = browser.get(ONE, headers={"accept": "application/json"}).json()

    assert twin["row"]["digest"] == by_header["row"]["digest"]
    assert twin["row"]["state"] == "ready"
    assert twin["facts"]["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": ["batch", 2]}
    assert [chart["id"] for chart in twin["charts"]] == ["rate", "latency", "refusals"]
    assert twin["row"]["digest"] in browser.get(ONE).text


def test_the_line_to_copy_answers(browser, body):
    curl = browser.get(ONE + ".json").json()["curl"]
    url, sent = re.fullmatch(r"curl '(.+?)' -d '(.+)'", curl).groups()

    assert httpx.post(url, content=sent, trust_env=False).status_code == 200


def test_an_unknown_version_is_not_found(browser):
    answer = browser.get("/console/endpoints/doubler/4")

    assert answer.status_code == 404
    assert "No version of &#39;doubler&#39; has number &#39;4&#39;" in answer.text


def test_names_are_escaped_wherever_they_come_from(browser):
    hostile = "/console/endpoints/%3Cscript%3Ealert(1)%3C%2Fscript%3E/3"
    text = browser.get(hostile).text

    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_hostile_model_name_is_text(endpoint, doubler):
    name = "x\"'><img src=x onerror=alert(1)>"
    version = replace(endpoint.version, name=name)
    with (
        serve_in_thread(replace(endpoint, version=version, console=True), doubler) as running,
        client_of(running, headers=HTML) as client,
    ):
        text = client.get(FLEET).text

    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_static_files_may_be_kept_for_ever(browser):
    url = re.search(r'href="(/console/static/console.css\?v=\w+)"', browser.get(FLEET).text)[1]
    answer = browser.get(url)

    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("name", ["vendor/README.md", "../series.py", "..%2Fseries.py", "x.css"])
def test_only_static_files_are_given(browser, name):
    assert browser.get("/console/static/" + name).status_code == 404


def test_an_open_console_off_loopback_is_refused(endpoint):
    with pytest.raises(ServeError, match="loopback or ask for keys"):
        check_endpoints((replace(endpoint, console=True, host="0.0.0.0"),))


def test_a_console_with_keys_may_be_anywhere(endpoint, keys, tmp_path):
    access = Access(tmp_path / "keys.sqlite")

    check_endpoints((replace(endpoint, console=True, host="0.0.0.0", access=access),))


def test_an_open_console_answers_to_names_of_this_machine_only(browser):
    answer = browser.get(FLEET, headers={"host": "rebound.example.com"})

    assert answer.status_code == 403
    assert browser.get(FLEET, headers={"host": "localhost:1"}).status_code == 200


def test_without_a_session_there_is_a_login_and_then_the_page(visitor, key):
    first = visitor.get(ONE)
    done = sign_in(visitor, key["console"])
    page = visitor.get(ONE)

    assert first.headers["location"] == "/console/login?next=" + ONE
    assert (done.status_code, done.headers["location"]) == (303, ONE)
    assert page.status_code == 200


def test_programs_without_a_session_get_a_problem(visitor):
    answer = visitor.get(ONE + ".json")

    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_programs_show_a_key(guarded, key):
    with client_of(guarded, headers={"authorization": f"Bearer {key['console']}"}) as client:
        assert client.get(ONE + ".json").status_code == 200


def test_the_cookie_holds_no_key_and_is_kept_from_scripts(visitor, key):
    cookie = sign_in(visitor, key["console"]).headers["set-cookie"]

    assert key["console"].split("_", 2)[2] not in cookie  # a secret may hold an underscore
    assert {"HttpOnly", "SameSite=strict", "Path=/console"} <= set(cookie.split("; "))
    assert "Secure" not in cookie


def test_over_tls_the_cookie_is_sent_over_tls_only(endpoint):
    from starlette.responses import Response

    from ingot.serve.access.scopes import Principal
    from ingot.serve.console.sessions import Sessions

    class Everybody:
        async def identify(self, authorization):
            return Principal("all", frozenset({"*"}))

    response = Response()
    asyncio.run(Sessions(Everybody(), is_secure=True).begin("key", response))

    assert "Secure" in response.headers["set-cookie"]


def test_a_wrong_key_is_told_so(visitor):
    answer = sign_in(visitor, "ingot_nobody_nothing")

    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert COOKIE not in answer.cookies


def test_a_cookie_of_somebody_elses_making_is_none(visitor, key):
    sign_in(visitor, key["console"])
    good = visitor.cookies[COOKIE]
    visitor.cookies.clear()
    visitor.cookies.set(COOKIE, good[:-1] + ("0" if good[-1] != "0" else "1"))

    assert visitor.get(ONE).status_code == 303


def test_a_revoked_key_ends_its_session(visitor, keys, key):
    sign_in(visitor, key["console"])
    before = visitor.get(ONE).status_code
    keys.revoke(key["console"].split("_")[1])
    time.sleep(1.1)  # servers notice within a second

    assert (before, visitor.get(ONE).status_code) == (200, 303)


def test_signing_out_ends_the_session_and_not_only_the_cookie(visitor, key):
    sign_in(visitor, key["console"])
    cookie = visitor.cookies[COOKIE]
    visitor.post("/console/logout", data={"token": token_of(visitor.get(ONE))})
    visitor.cookies.clear()
    visitor.cookies.set(COOKIE, cookie)

    assert visitor.get(ONE).status_code == 303


@pytest.mark.parametrize("key", ["idle", "old"])
def test_a_session_ends_by_time(key):
    from starlette.requests import Request
    from starlette.responses import Response

    from ingot.serve.access.scopes import Principal
    from ingot.serve.console.sessions import Sessions

    class Everybody:
        async def identify(self, authorization):
            return Principal("all", frozenset({"*"}))

    async def visits():
        now = [0.0]
        sessions = Sessions(Everybody(), is_secure=False, clock=lambda: now[0])
        response = Response()
        await sessions.begin("key", response)
        cookie = response.headers["set-cookie"].split(";")[0].encode()
        request = Request({"type": "http", "headers": [(b"cookie", cookie)], "path": "/"})
        steps = [29 * 60.0] * 24 + [26 * 60.0] if key == "old" else [31 * 60.0]
        for step in steps[:-1]:
            now[0] += step
            await sessions.visitor(request)
        now[0] += steps[-1]
        await sessions.visitor(request)

    with pytest.raises(RequestError, match="no session"):
        asyncio.run(visits())


@pytest.mark.parametrize("next_", ["https://evil.example", "//evil.example/console/", "/v2", ""])
def test_signing_in_leads_nowhere_else(visitor, key, next_):
    answer = visitor.post("/console/login", data={"key": key["console"], "next": next_})

    assert answer.headers["location"] == FLEET


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ""])
def test_forms_from_elsewhere_are_refused(visitor, key, origin):
    sign_in(visitor, key["console"])
    token = token_of(visitor.get(ONE))
    answer = visitor.post("/console/logout", data={"token": token}, headers={"origin": origin})

    assert answer.status_code == 403


def test_forms_without_the_token_are_refused(visitor, key):
    sign_in(visitor, key["console"])

    assert visitor.post("/console/logout", data={"token": "0" * 64}).status_code == 403
    assert visitor.get(ONE).status_code == 200


def test_a_form_of_many_bytes_is_not_read(visitor):
    assert visitor.post("/console/login", content=b"x" * 20_000).status_code == 413


def test_a_key_sees_the_models_that_it_may_read(visitor, key):
    sign_in(visitor, key["other"])

    assert visitor.get(FLEET + ".json").json()["rows"] == []
    assert "No endpoint for this key" in visitor.get(FLEET).text
    assert visitor.get(ONE).status_code == 403


def test_a_key_for_metrics_sees_figures_and_no_more(visitor, key):
    sign_in(visitor, key["monitoring"])

    assert len(visitor.get(FLEET + ".json").json()["rows"]) == 1
    assert visitor.get(ONE).status_code == 403


def test_a_cookie_opens_the_console_and_nothing_else(visitor, key, body):
    sign_in(visitor, key["all"])
    cookie = f"{COOKIE}={visitor.cookies[COOKIE]}"
    answer = visitor.post("/v2/models/doubler/infer", json=body, headers={"cookie": cookie})

    assert answer.status_code == 401


def test_a_stream_gives_the_part_that_changes(browser):
    with browser.stream("GET", "/console/events/endpoints") as stream:
        lines = stream.iter_lines()
        found = next(line for line in lines if line.startswith("data: "))

    assert stream.headers["content-type"].startswith("text/event-stream")
    assert "1 of 1 ready" in found


def test_draining_ends_streams(endpoint, doubler):
    running = serve_in_thread(replace(endpoint, console=True), doubler)
    with client_of(running) as client, client.stream("GET", "/console/events/endpoints") as stream:
        lines = stream.iter_lines()
        next(lines)
        running.state.is_draining = True

        assert list(lines)[-1] == ""
        assert client.get("/console/events/endpoints").status_code == 503
    running.stop()


class Shown:
    title = summary = ""
    charts = ()


def live(listeners=None, is_draining=lambda: False, html="one\r\ntwo\rthree"):
    async def read(since):
        return Shown()

    return Live(read, lambda content: html, is_draining, listeners or Listeners(), tick_s=0.01)


async def first(stream, count):
    return [await anext(stream) for _ in range(count)]


def test_every_kind_of_line_end_stays_in_its_event():
    async def read():
        stream = live().events()
        return (await first(stream, 2))[1]

    assert asyncio.run(read()) == b"data: one\ndata: two\ndata: three\n\n"


def test_listeners_are_counted_and_bounded():
    async def listen():
        listeners = Listeners()
        streams = [live(listeners).events() for _ in range(MOST_LISTENERS)]
        for stream in streams:
            await anext(stream)
        full = listeners.count
        with pytest.raises(RequestError, match="may be live"):
            listeners.check()
        for stream in streams:
            await stream.aclose()
        return full, listeners.count

    assert asyncio.run(listen()) == (MOST_LISTENERS, 0)


def test_a_stream_whose_visitor_may_no_longer_look_says_so_and_ends():
    async def listen():
        async def read(since):
            raise RequestError("No.", status=401)

        stream = Live(read, str, lambda: False, Listeners())
        return [event async for event in stream.events()]

    assert asyncio.run(listen())[1] == b"event: over\ndata: No.\n\n"
