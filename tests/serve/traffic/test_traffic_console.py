"""The traffic of a name on the console's pages: what is shown, and the button that rolls back."""

import asyncio
import re
from dataclasses import replace

import httpx
import numpy as np
import pytest
from outside import Clock

from ingot.observe.stats import Stats
from ingot.serve import assembly
from ingot.serve.access.keys import KeyStore
from ingot.serve.console.arms import ClaimState, OutputAgreement, arm_charts, read_traffic
from ingot.serve.console.endpoints import EndpointPages
from ingot.serve.console.page import Visit
from ingot.serve.console.series import StatsSource
from ingot.serve.endpoint import Access
from ingot.serve.metrics import Metrics
from ingot.serve.problems import RequestError
from ingot.serve.server import serve_in_thread
from ingot.serve.traffic.agreement import Sums
from ingot.serve.traffic.desk import TrafficDesk
from ingot.serve.traffic.plan import Shadow, Traffic
from ingot.serve.traffic.split import Split
from ingot.twin.canary import Canary

CANARY = Canary(4, ("error_rate <= 0.05",), steps=(0.2, 1.0), step_s=10, step_requests=50)
ONE = "/console/endpoints/doubler/4"
BODY = {
    "inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]},
        {"name": "mask", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    made = Metrics()
    made.stats = Stats(clock=clock, wall=clock)
    return made


@pytest.fixture
def open_desk(endpoint, clock):
    opened = []

    def make(plan):
        versions = [replace(endpoint.version, number=number) for number in (3, 2, 4)]
        opened.append(TrafficDesk(plan, versions, clock=clock))
        return opened[-1]

    yield make
    for desk in opened:
        desk.close()


@pytest.fixture
def plan(tmp_path):
    return Traffic(canary=CANARY, record=tmp_path / "traffic.sqlite", seed=1)


def state_of(desk, metrics, *, may_operate=True):
    return read_traffic(desk, StatsSource(metrics), may_operate=may_operate)


def answer(desk, number, n, status=200):
    """Count answers of a version as the server does."""
    for _ in range(n):
        desk.table.tallies[number].count(status, 0.001)


def test_before_the_first_look_claims_are_undecided_and_say_their_bound(open_desk, plan, metrics):
    found = state_of(open_desk(plan), metrics)

    assert found.claims == (ClaimState("error_rate <= 0.05", "undecided", "share", 0.05),)
    assert found.looked is None
    assert [(step.share, step.state) for step in found.steps] == [(0.2, "now"), (1.0, "later")]


def test_the_last_look_gives_each_claim_its_interval(open_desk, plan, metrics, clock):
    desk = open_desk(plan)
    answer(desk, 4, 10)
    clock.now = 1003.0
    desk.tick()
    found = state_of(desk, metrics)

    (claim,) = found.claims
    assert (claim.outcome, claim.value, claim.low, claim.requests) == ("undecided", 0.0, 0.0, 10)
    # Clopper and Pearson without an error: 1 - (spent / 2)^(1 / n), 0.05 spent on 2 steps, look 1
    assert claim.high == pytest.approx(1 - (0.05 / 2 / 2 / 2) ** 0.1)
    assert found.looked == 1003.0


@pytest.mark.parametrize(
    ("status", "n", "state", "outcome", "steps"),
    [
        (500, 20, "rolled back", "broken", ["stopped", "left"]),
        (200, 300, "running", "held", ["done", "now"]),
    ],
)
def test_what_a_look_decided_is_shown(
    open_desk, plan, metrics, clock, status, n, state, outcome, steps
):
    desk = open_desk(plan)
    answer(desk, 4, n, status)
    clock.now += 10
    desk.tick()
    found = state_of(desk, metrics)

    assert (found.state, found.claims[0].outcome) == (state, outcome)
    assert [step.state for step in found.steps] == steps
    assert (found.decisions[0].who, found.decisions[-1].action) == ("canary", "start")


def test_claims_of_a_canary_that_began_anew_are_not_those_of_the_last_time(
    open_desk, plan, metrics
):
    desk = open_desk(plan)
    answer(desk, 4, 20, 500)
    desk.tick()
    desk.restart("ann")

    assert state_of(desk, metrics).looked is None


def test_checks_that_changed_nothing_are_left_out_but_for_the_newest(open_desk, plan, metrics):
    desk = open_desk(plan)
    for n in (10, 20, 40):
        answer(desk, 4, n)
        desk.tick()
    looking = [one.action for one in state_of(desk, metrics).decisions]
    desk.roll_back("ann")

    assert looking == ["stay", "start"]
    assert [one.action for one in state_of(desk, metrics).decisions] == ["roll back", "start"]


def test_arms_have_figures_of_what_was_dealt_to_them(open_desk, plan, metrics):
    desk = open_desk(plan)
    answer(desk, 3, 3)
    series = metrics.series("doubler", "3")
    for _ in range(4):
        series.count(200, 0.002, "3")
    series.count(503, 0.002, "3")
    series.count(503, 0.002, "pinned")
    main, canary = state_of(desk, metrics).arms

    assert (main.number, main.share, main.role, main.step_requests) == (3, 0.8, "", 3)
    assert (main.recent.requests, main.recent.error_share) == (5, 0.2)
    assert main.recent.p95_ms == pytest.approx(2.0, rel=0.01)
    assert (canary.role, canary.recent.requests) == ("canary", 0)


def test_charts_of_arms_share_one_axis(open_desk, plan, metrics, clock):
    desk = open_desk(plan)
    metrics.series("doubler", "4").count(200, 0.002, "4")
    clock.now += 10
    rate, tail = arm_charts(desk, StatsSource(metrics), since=0.0)

    assert rate.times == tail.times == (1010.0,)
    assert [line.label for line in rate.lines] == ["version 3", "version 4"]
    assert [line.values for line in rate.lines] == [(0.0,), (0.1,)]
    assert tail.lines[0].values == (None,)
    assert tail.lines[1].values[0] == pytest.approx(2.0, rel=0.01)


def test_a_plan_without_a_canary_has_shares_and_no_steps(open_desk, metrics):
    found = state_of(open_desk(Traffic(Split(((3, 0.5), (2, 0.5))))), metrics)

    assert (found.state, found.canary, found.steps, found.claims) == ("split", None, (), ())
    assert [arm.share for arm in found.arms] == [0.5, 0.5]
    assert not found.can_roll_back


def test_there_is_no_button_without_the_scope_or_once_it_is_out(open_desk, plan, metrics):
    desk = open_desk(plan)
    can = state_of(desk, metrics).can_roll_back
    may_not = state_of(desk, metrics, may_operate=False).can_roll_back
    desk.roll_back("ann")

    assert (can, may_not, state_of(desk, metrics).can_roll_back) == (True, False, False)


def test_an_interval_without_an_end_reaches_the_edge():
    claim = ClaimState("p95_ms <= 1.5x baseline", "undecided", "x", 1.5, 1.0, 0.5, None)
    low, value, high, bound = claim.places

    assert 0 < low < value < bound < high == 100


class Times:
    def run(self, feeds):
        return {"y": feeds["x"] * 2, "kept": feeds["mask"] > 0}

    def close(self):
        return


@pytest.fixture
def dealt(endpoint, monkeypatch, plan):
    """Return an endpoint with a console whose canary and shadow is version 4."""
    monkeypatch.setattr(assembly, "_open_session", lambda _: Times())
    beside = (replace(endpoint, version=replace(endpoint.version, number=4)),)
    watched = replace(plan, shadow=Shadow(4, share=0.5))
    return replace(endpoint, console=True, traffic=watched, beside=beside)


def open_client(running, **headers):
    return httpx.Client(base_url=running.url, trust_env=False, timeout=20, headers=headers)


def test_the_card_and_its_twin_show_one_object(dealt):
    with serve_in_thread(dealt) as running, open_client(running, accept="text/html") as client:
        for i in range(20):
            client.post("/v2/models/doubler/infer", json=BODY, headers={"ingot-unit": f"robot-{i}"})
        twin = client.get(ONE + ".json").json()["traffic"]
        text = client.get(ONE).text
        fleet = client.get("/console/endpoints").text

    arms = {arm["number"]: arm for arm in twin["arms"]}
    assert arms[3]["recent"]["requests"] + arms[4]["recent"]["requests"] == 20
    assert arms[4]["recent"]["requests"] == arms[4]["step_requests"] > 0
    assert "Traffic of doubler" in text
    assert "error_rate &lt;= 0.05" in text
    assert f'href="{ONE}#traffic">20 % of the requests, canary<' in fleet


@pytest.fixture
def guarded(dealt, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    keys = {name: store.create(name, [f"{name}:*"])[0] for name in ("read", "operate")}
    with (
        serve_in_thread(replace(dealt, access=Access(tmp_path / "keys.sqlite"))) as running,
        open_client(running, accept="text/html", origin=running.url) as client,
    ):
        yield client, keys, running


def sign_in(client, key):
    client.cookies.clear()
    client.post("/console/login", data={"key": key})


def token_of(page):
    return re.search(r'name="token" value="(\w+)"', page.text)[1]


def test_rolling_back_takes_the_canary_out_and_says_who(guarded):
    client, keys, _ = guarded
    sign_in(client, keys["operate"])
    form = {"token": token_of(client.get(ONE))}
    answers = [client.post(ONE + "/roll-back", data=form) for _ in range(2)]
    twin = client.get(ONE + ".json").json()["traffic"]

    assert [(one.status_code, one.headers["location"]) for one in answers] == [(303, ONE)] * 2
    assert {arm["number"]: arm["share"] for arm in twin["arms"]} == {3: 1.0, 4: 0.0}
    told = [(one["action"], one["who"]) for one in twin["decisions"]]
    assert told == [("roll back", "operate"), ("start", "")]


def test_rolling_back_asks_for_the_scope(guarded):
    client, keys, _ = guarded
    sign_in(client, keys["read"])
    page = client.get(ONE)
    answer = client.post(ONE + "/roll-back", data={"token": token_of(page)})

    assert answer.status_code == 403
    assert "roll it back" not in page.text
    assert "operate:doubler" in page.text


@pytest.mark.parametrize("forged", ["token", "origin"])
def test_rolling_back_from_elsewhere_is_refused(guarded, forged):
    client, keys, running = guarded
    sign_in(client, keys["operate"])
    token = "0" * 64 if forged == "token" else token_of(client.get(ONE))
    origin = "https://evil.example" if forged == "origin" else running.url
    answer = client.post(ONE + "/roll-back", data={"token": token}, headers={"origin": origin})

    assert answer.status_code == 403
    assert client.get(ONE + ".json").json()["traffic"]["state"] == "running"


@pytest.mark.parametrize(("name", "status"), [("doubler", 422), ("letters", 404)])
def test_without_a_canary_there_is_nothing_to_roll_back(open_desk, metrics, name, status):
    desk = open_desk(Traffic(Split(((3, 0.5), (4, 0.5)))))
    pages = EndpointPages((), StatsSource(metrics), {"doubler": desk})
    with pytest.raises(RequestError) as caught:
        asyncio.run(pages.roll_back(Visit(None, {"name": name, "number": 4})))

    assert caught.value.status == status


@pytest.mark.parametrize(
    ("claim", "unit", "bound", "is_difference"),
    [
        ("error_rate <= baseline + 0.05", "share", 0.05, True),
        ("p95_ms <= 1.2x baseline", "x", 1.2, False),
        ("p99_ms <= 5 ms", "ms", 5.0, False),
    ],
)
def test_figures_of_a_claim_have_their_unit(
    open_desk, plan, metrics, claim, unit, bound, is_difference
):
    desk = open_desk(replace(plan, canary=replace(CANARY, require=(claim,))))
    (found,) = state_of(desk, metrics).claims

    assert (found.unit, found.bound, found.is_difference) == (unit, bound, is_difference)


def test_copies_are_told_by_output_and_by_what_became_of_them(
    open_desk, plan, metrics, monkeypatch
):
    desk = open_desk(replace(plan, shadow=Shadow(4, share=0.5)))
    sums = Sums(dropped=2, statuses={(200, 200): 4, (200, 500): 3, (500, 200): 1})
    answers = ({"y": np.array([[1.0, 2.0]])}, {"y": np.array([[2.0, 1.0]])})
    sums.add(answers[0], answers[0], 0.01)
    sums.add(*answers, 0.01)
    monkeypatch.setattr(TrafficDesk, "sums", sums)
    shadow = state_of(desk, metrics).shadow

    assert (shadow.compared, shadow.agreed, shadow.dropped, shadow.refused) == (2, 1, 2, 3)
    assert shadow.outputs == (OutputAgreement("y", 2, 1, 1.0),)
