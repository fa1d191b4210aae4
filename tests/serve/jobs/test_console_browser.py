"""The console in a real browser: Debian's Chromium, driven by Playwright."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from job_sessions import BREAK
from job_words import JOBS, request_of
from outside import wait_for

from ingot.serve import assembly
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.server import serve_in_thread
from ingot.serve.traffic.plan import Shadow, Traffic
from ingot.twin.canary import Canary

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
HANG = -4.0

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(),
    reason="no browser at /usr/bin/chromium; install it with: apt-get install chromium",
)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Give a function that opens a window; whatever any of them complains about fails the test."""
    complaints, contexts = [], []

    def open_window(width=1280, **more):
        context = chromium.new_context(viewport={"width": width, "height": 844}, **more)
        context.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " e => console.error('policy', e.violatedDirective, e.blockedURI))"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else 0,
        )
        return page

    open_window.complaints = complaints
    yield open_window
    for context in contexts:
        context.close()
    assert complaints == []


class Doubler:
    """A session that needs no engine."""

    from ingot.runtime.engine import EngineConfig

    config = EngineConfig()

    def run(self, feeds):
        return {"y": feeds["x"] + feeds["x"], "kept": feeds["mask"] > 0}

    def executed(self):
        return ()

    def close(self):
        pass


@contextmanager
def servers(endpoint, settings, access=None):
    shown = replace(endpoint, console=True, drain_s=0.1, access=access)
    with serve_in_thread(shown, Doubler()) as live, serve_jobs_in_thread(shown, settings) as jobs:
        yield SimpleNamespace(live=live.url, jobs=jobs.url)


@pytest.fixture
def urls(endpoint, settings):
    with servers(endpoint, settings) as found:
        yield found


def put_job(urls, value=HANG, **more):
    body = request_of(value, 0.0) | more
    return httpx.post(urls.jobs + JOBS, json=body, trust_env=False).json()["job"]


def infer(urls):
    body = request_of(1.0, 2.0)
    return httpx.post(urls.live + "/v2/models/doubler/infer", json=body, trust_env=False)


def every_page(urls, job):
    one = "/console/endpoints/doubler/3"
    live = [urls.live + path for path in ("/console/endpoints", one)]
    paths = ("/console/endpoints", one, "/console/jobs", f"/console/jobs/{job}", "/console/scaling")
    return live + [urls.jobs + path for path in paths]


def test_every_page_loads_without_complaint_and_fits_a_phone(urls, opened):
    infer(urls)
    job = put_job(urls, id="a-name-without-any-place-to-break-it-" * 6)
    for width, scheme in ((390, "dark"), (1280, "light")):
        page = opened(width, color_scheme=scheme)
        for url in every_page(urls, job):
            page.goto(url)
            page.get_by_text("live", exact=True).wait_for()

            beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            headings = page.evaluate(
                "[...document.querySelectorAll('main :is(h1,h2,h3)')].map(h => +h.tagName[1])"
            )
            assert beyond <= 0, url
            assert headings.count(1) == 1, url
            assert all(b - a <= 1 for a, b in pairwise(headings)), url


@pytest.mark.parametrize("script", ["htmx", "hx-sse", "console"])
def test_a_page_is_live_in_whatever_order_its_scripts_arrive(urls, opened, script):
    page = opened()

    def later(route):
        page.wait_for_timeout(300)
        route.continue_()

    page.route(f"**/{script}.*js*", later)
    page.goto(urls.live + "/console/endpoints")

    page.get_by_text("live", exact=True).wait_for()


def test_a_page_that_cannot_be_live_says_so_and_keeps_its_data(urls, opened):
    page = opened()
    refused = {"status": 503, "body": "full", "content_type": "text/plain"}
    page.route("**/events/**", lambda route: route.fulfill(**refused))
    page.goto(urls.live + "/console/endpoints")
    page.get_by_text("not connected").wait_for()

    assert page.get_by_role("link", name="doubler:3").is_visible()
    opened.complaints.clear()  # the browser itself logs a 503


def test_a_page_without_scripts_shows_its_data(urls, opened):
    job = put_job(urls, id="order-7")
    page = opened(java_script_enabled=False)
    page.goto(urls.jobs + "/console/jobs")

    assert page.get_by_text("order-7").is_visible()
    page.get_by_role("link", name=job[:8]).click()
    assert page.get_by_role("heading", level=1).inner_text() == f"Job {job[:8]}"


def test_a_keyboard_reaches_everything_and_shows_where_it_is(urls, opened):
    page = opened()
    page.goto(urls.live + "/console/endpoints")
    page.get_by_text("live", exact=True).wait_for()
    seen = []
    for _ in range(6):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(
            "(() => { const e = document.activeElement;"
            " return [e.textContent.trim().split(/\\s+/)[0], e.matches(':focus-visible')]; })()"
        ))  # fmt: skip

    assert [word for word, _ in seen] == [
        "Skip", "Ingot", "Endpoints", "Dark", "doubler:3", "this",
    ]  # fmt: skip
    assert all(is_shown for _, is_shown in seen)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/endpoints/doubler/3")


def test_the_skip_link_leads_to_the_content(urls, opened):
    page = opened()
    page.goto(urls.live + "/console/endpoints")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    assert page.evaluate("document.activeElement.id") == "main"


def test_the_theme_follows_the_system_and_a_choice_stays(urls, opened):
    page = opened(color_scheme="dark")
    page.goto(urls.live + "/console/endpoints")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Use the light theme").click()
    light = page.evaluate(ground)
    page.reload()

    assert (dark, light) == ("rgb(19, 19, 18)", "rgb(247, 245, 241)")
    assert page.evaluate(ground) == light


def test_news_arrives_by_itself_and_focus_stays(urls, opened):
    page = opened()
    page.goto(urls.jobs + "/console/jobs")
    page.get_by_text("live", exact=True).wait_for()
    page.get_by_role("link", name="all").focus()
    put_job(urls, id="order-8")
    page.get_by_text("order-8").wait_for()

    assert page.evaluate("document.activeElement.textContent.trim().startsWith('all')")
    assert "1" in page.locator("#said").inner_text()


def test_charts_are_drawn_and_grow(urls, opened):
    page = opened()
    page.set_default_timeout(30_000)  # a point comes when its ten seconds are over
    page.goto(urls.live + "/console/endpoints/doubler/3")
    infer(urls)
    page.locator("[data-chart=rate] canvas").wait_for()
    page.wait_for_function(
        "document.querySelector('[data-chart=rate] [data-line]').textContent !== '\\u2013'"
    )

    assert page.locator("canvas").count() == 3


def test_a_job_is_cancelled_after_a_confirmation(urls, opened):
    job = put_job(urls)
    page = opened(390)
    page.goto(f"{urls.jobs}/console/jobs/{job}")
    button = page.get_by_role("button", name="Yes, cancel it")
    before = button.is_visible()
    page.get_by_text("Cancel this job").click()
    button.click()
    page.locator(".state-cancelled").wait_for()

    assert not before
    state = httpx.get(f"{urls.jobs}{JOBS}/{job}", trust_env=False).json()["state"]
    assert state == "cancelled"


def test_a_dead_job_and_then_all_the_dead_are_retried_after_a_confirmation(urls, opened):
    job = put_job(urls, BREAK)
    status = f"{urls.jobs}{JOBS}/{job}"
    page = opened(390)
    page.goto(f"{urls.jobs}/console/jobs/{job}")
    page.locator(".state-dead").first.wait_for()
    button = page.get_by_role("button", name="Yes, retry it")
    before = button.is_visible()
    page.get_by_text("Retry this job").click()
    button.click()
    attempt = wait_for_death(status, after=3)
    page.goto(f"{urls.jobs}/console/jobs?state=dead")
    page.get_by_text("Retry all dead jobs").click()
    page.get_by_role("button", name="Yes, retry all").click()
    page.wait_for_url("**/console/jobs")

    assert not before
    assert attempt == 6  # three tries, and three more
    assert wait_for_death(status, after=6) == 9


def wait_for_death(status, after):
    """Return the attempts of a job once it has died with more than some."""

    def died():
        found = httpx.get(status, trust_env=False).json()
        return found["attempt"] if found["state"] == "dead" and found["attempt"] > after else 0

    return wait_for(died)


@pytest.fixture
def dealt(endpoint, monkeypatch, tmp_path):
    """Return the URL of a server whose canary and shadow is version 4 of `doubler`."""
    monkeypatch.setattr(assembly, "_open_session", lambda _: Doubler())
    canary = Canary(4, ("error_rate <= 0.5",), steps=(0.5, 1.0), step_s=600)
    plan = Traffic(canary=canary, shadow=Shadow(4), record=tmp_path / "traffic.sqlite")
    beside = (replace(endpoint, version=replace(endpoint.version, number=4)),)
    wanted = replace(endpoint, console=True, drain_s=0.1, traffic=plan, beside=beside)
    with serve_in_thread(wanted) as running:
        yield running.url


def test_the_traffic_card_fits_a_phone_and_is_reached_from_the_fleet(dealt, opened):
    urls = SimpleNamespace(live=dealt)
    for _ in range(40):
        infer(urls)
    page = opened(390, color_scheme="dark")
    page.goto(dealt + "/console/endpoints")
    page.get_by_role("link", name="50 % of the requests, canary").click()
    page.wait_for_url("**/doubler/4#traffic")
    page.get_by_text("live", exact=True).wait_for()
    page.locator(".claims .range").wait_for()  # the first look has come

    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator(".arms tbody tr").count() == 2
    assert page.locator(".claims .state svg").count() == 1  # an outcome has a shape and a word
    assert page.locator("[aria-current=step]").inner_text().split() == ["50", "%", "now"]
    assert page.locator("[data-chart=arm_p95] h3").inner_text() == "p95 by version"


def test_a_canary_is_rolled_back_by_keyboard_after_a_confirmation(dealt, opened):
    page = opened()
    page.goto(dealt + "/console/endpoints/doubler/4")
    page.get_by_text("live", exact=True).wait_for()
    button = page.get_by_role("button", name="Yes, roll it back")
    before = button.is_visible()
    page.locator("#confirm summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(2500)  # what is live comes again meanwhile: the form stays open
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("stopped here").wait_for()

    assert not before
    found = httpx.get(dealt + "/v2/models/doubler/traffic", trust_env=False).json()
    assert (found["state"], found["weights"]) == ("rolled back", {"3": 1.0, "4": 0.0})
    assert page.get_by_text("rolled back by hand").is_visible()
    assert page.locator("#confirm").count() == 0


def test_signing_in_and_out(opened, endpoint, settings, tmp_path):
    keys = KeyStore(tmp_path / "keys.sqlite")
    key, kept = keys.create("console", ["read:*"])
    with servers(endpoint, settings, Access(tmp_path / "keys.sqlite")) as urls:
        page = opened()
        page.goto(urls.jobs + "/console/jobs")
        page.get_by_label("Key").fill(key)
        page.keyboard.press("Enter")
        page.get_by_text("live", exact=True).wait_for()
        arrived = page.url
        keys.revoke(kept.id)
        page.get_by_label("Key").wait_for()  # the stream notices and the page asks again

        assert arrived == urls.jobs + "/console/jobs"
        assert wait_for(lambda: page.url.endswith("/console/login?next=/console/jobs"))
        assert page.evaluate("document.cookie") == ""
        page.context.close()  # before the servers: a page that lives would complain
