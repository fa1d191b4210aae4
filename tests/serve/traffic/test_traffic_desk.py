"""The traffic of a name at work, without a server: dealt, decided, recorded, restored."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from outside import Clock

from ingot.core.errors import ServeError
from ingot.serve.traffic import desk as desk_module
from ingot.serve.traffic.desk import TrafficDesk
from ingot.serve.traffic.plan import Shadow, Traffic
from ingot.serve.traffic.split import Split
from ingot.serve.traffic.ticket import TICKET
from ingot.twin.canary import Canary

CANARY = Canary(4, ("error_rate <= 0.05",), steps=(0.2, 1.0), step_s=10, step_requests=50)


@pytest.fixture
def versions(endpoint):
    return [replace(endpoint.version, number=number) for number in (3, 2, 4)]


@pytest.fixture
def plan(tmp_path: Path):
    return Traffic(canary=CANARY, record=tmp_path / "traffic.sqlite", seed=1)


@pytest.fixture
def open_desk(versions):
    """Give `open_desk(plan)`; what it opens is closed at the end."""
    opened = []

    def make(plan, clock=None):
        opened.append(TrafficDesk(plan, versions, clock=clock or Clock()))
        return opened[-1]

    yield make
    for desk in opened:
        desk.close()


def deal(desk, n, statuses=lambda number: 200):
    """Deal requests of n units through the dealer; return how many each version got."""
    got = {}

    def route(number):
        async def answer(scope, receive, send):
            got[number] = got.get(number, 0) + 1
            scope[TICKET].tally.count(statuses(number), 0.001)

        return answer

    dealer = desk.dealer({number: route(number) for number in (3, 2, 4)})

    async def all_of_them():
        for i in range(n):
            await dealer({"headers": [(b"ingot-unit", b"u%d" % i)]}, None, None)

    asyncio.run(all_of_them())
    return got


def test_a_canary_that_fails_gets_no_request_after_the_decision(open_desk, plan):
    desk = open_desk(plan)
    deal(desk, 300, lambda number: 500 if number == 4 else 200)

    decision = desk.tick()

    assert decision.action == "roll back"
    assert desk.state == "rolled back"
    assert 4 not in deal(desk, 300)


def test_a_table_that_is_replaced_is_dealt_by_at_once(open_desk, plan):
    desk = open_desk(plan)
    dealer = desk.dealer({})

    desk.roll_back("ann")

    assert dealer.table is desk.table


def test_a_canary_that_holds_goes_on_with_fresh_counts_and_then_is_done(open_desk, plan):
    clock = Clock()
    desk = open_desk(plan, clock)
    deal(desk, 1000)
    clock.now += 10
    desk.tick()
    second = desk.describe()
    deal(desk, 1000)
    clock.now += 10
    desk.tick()

    assert second["weights"] == {"3": 0.0, "4": 1.0}
    assert second["counts"] == {"4": {"requests": 0, "errors": 0}}
    assert desk.state == "done"
    assert [row["action"] for row in desk.describe()["decisions"]] == ["start", "next", "done"]
    assert desk.advice() == "ingot promote doubler:4 STAGE"


def test_a_rolled_back_canary_does_not_come_back_with_a_restart(open_desk, plan):
    first = open_desk(plan)
    deal(first, 300, lambda number: 500 if number == 4 else 200)
    first.tick()
    first.close()

    again = open_desk(plan)
    easier = replace(CANARY, require=("error_rate <= 0.9",), steps=(0.5, 1.0))
    with_another_plan = open_desk(replace(plan, canary=easier))

    for desk in (again, with_another_plan):
        assert desk.state == "rolled back"
        assert desk.table.split.weight(4) == 0
        assert desk.tick() is None
    assert again.advice() == "ingot serve doubler:3"


def test_somebody_can_start_it_again_and_is_named(open_desk, plan):
    desk = open_desk(plan)
    desk.roll_back("ann")
    desk.restart("bob")

    assert desk.state == "running"
    assert desk.table.split.weight(4) == 0.2
    rows = [(row["action"], row["who"]) for row in desk.describe()["decisions"]]
    assert rows == [("start", ""), ("roll back", "ann"), ("start", "bob")]


def test_a_restart_goes_on_at_the_step_that_was_reached_and_keeps_what_looks_cost(open_desk, plan):
    clock = Clock()
    slow = replace(plan, canary=replace(CANARY, steps=(0.2, 0.4, 1.0)))
    first = open_desk(slow, clock)
    deal(first, 1000)
    clock.now += 10
    first.tick()
    deal(first, 100)
    looked = first.tick()
    first.close()
    assert looked.judgements

    again = open_desk(slow, clock)
    deal(again, 100)

    assert again.table.split.weight(4) == 0.4
    assert again.tick().memory.looks == looked.memory.looks + 1


def test_weights_set_by_hand_stay_and_end_the_rule(open_desk, plan):
    desk = open_desk(plan)
    desk.set_weights({3: 0.5, 2: 0.5}, "ann")
    desk.close()

    again = open_desk(plan)

    assert again.state == "by hand"
    assert again.tick() is None
    assert again.describe()["weights"] == {"3": 0.5, "2": 0.5}


def test_another_split_is_not_overruled_by_what_was_set_for_the_one_before(open_desk, tmp_path):
    plan = Traffic(Split(((3, 0.5), (2, 0.5))), record=tmp_path / "t.sqlite")
    open_desk(plan).set_weights({2: 1.0}, "ann")

    same = open_desk(plan)
    other = open_desk(replace(plan, split=Split(((3, 0.9), (2, 0.1)))))

    assert same.table.split.weights == ((2, 1.0),)
    assert other.table.split.weights == ((3, 0.9), (2, 0.1))


def test_the_canary_takes_from_all_versions_of_the_split(open_desk, plan):
    desk = open_desk(replace(plan, split=Split(((3, 0.75), (2, 0.25)))))

    assert desk.table.split.weights == ((3, pytest.approx(0.6)), (2, pytest.approx(0.2)), (4, 0.2))


def test_tickets_name_arm_and_propensity(open_desk, plan):
    desk = open_desk(plan)
    units = [f"u{i}" for i in range(200)]
    tickets = {desk.table.deal(unit, desk._rng)[1] for unit in units}

    assert {(t.arm, t.propensity, t.header) for t in tickets} == {
        ("3", 0.8, (b"ingot-arm", b"3")), ("4", 0.2, (b"ingot-arm", b"4")),
    }  # fmt: skip


def test_what_cannot_be_recorded_still_happens(open_desk, plan, caplog):
    desk = open_desk(plan)
    desk._record.close()

    desk.roll_back("ann")

    assert desk.table.split.weight(4) == 0
    assert "was not recorded" in caplog.text


def test_a_check_that_fails_does_not_end_the_watch(open_desk, plan, monkeypatch, caplog):
    monkeypatch.setattr(desk_module, "TICK_S", 0.001)
    desk, ticks = open_desk(plan), threading.Semaphore(0)

    def tick():
        ticks.release()
        raise ZeroDivisionError

    monkeypatch.setattr(desk, "tick", tick)
    desk.start(lambda: False)

    assert ticks.acquire(timeout=20)
    assert ticks.acquire(timeout=20)
    desk.close()
    assert "could not be checked" in caplog.text


def test_nothing_is_decided_while_the_server_drains(open_desk, plan, monkeypatch):
    monkeypatch.setattr(desk_module, "TICK_S", 0.001)
    desk, asked = open_desk(plan), threading.Semaphore(0)
    deal(desk, 300, lambda number: 503 if number == 4 else 200)

    desk.start(lambda: asked.release() or True)

    assert asked.acquire(timeout=20)
    assert asked.acquire(timeout=20)
    assert desk.state == "running"


def test_another_plan_for_a_canary_that_was_not_rolled_back_begins_anew(open_desk, plan):
    clock = Clock()
    first = open_desk(plan, clock)
    deal(first, 1000)
    clock.now += 10
    assert first.tick().action == "next"

    again = open_desk(replace(plan, canary=replace(CANARY, steps=(0.1, 1.0))))

    assert again.table.split.weight(4) == 0.1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"split": Split(((7, 1.0),))}, "Version 7 of 'doubler' must be served"),
        ({"canary": replace(CANARY, version=9)}, "Version 9"),
    ],
)
def test_plans_for_versions_that_are_not_served_are_refused(open_desk, plan, change, complaint):
    with pytest.raises(ServeError, match=complaint):
        open_desk(replace(plan, **change))


def test_a_canary_alone_is_refused(plan, versions):
    with pytest.raises(ServeError, match="alone here"):
        TrafficDesk(plan, versions[2:])


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Traffic(canary=CANARY), "must have a record"),
        (
            lambda: Traffic(Split(((4, 1.0),)), canary=CANARY, record=Path("t")),
            "must not be in the split",
        ),
        (
            lambda: Traffic(
                canary=replace(CANARY, require=("agreement >= 0.9",)), record=Path("t"),
                shadow=Shadow(2),
            ),
            "must have the canary as shadow",
        ),
        (lambda: Shadow(4, share=0.0), "0 < share <= 1"),
    ],
)  # fmt: skip
def test_plans_that_contradict_themselves_are_refused(build, complaint):
    with pytest.raises(ServeError, match=complaint):
        build()


def test_by_hand_without_a_canary_is_refused(open_desk, tmp_path):
    desk = open_desk(Traffic(Split(((3, 1.0),))))

    with pytest.raises(ServeError, match="must have a canary"):
        desk.roll_back("ann")
    with pytest.raises(ServeError, match="must have a canary"):
        desk.restart("ann")
    with pytest.raises(ServeError, match="Valid: 2, 3, 4"):
        desk.set_weights({8: 1.0}, "ann")
    assert desk.tick() is None


def test_a_roll_back_reaches_the_other_server_and_its_step_does_not(open_desk, plan):
    clock = Clock()
    one, other = open_desk(plan, clock), open_desk(plan, clock)
    deal(one, 1000)
    deal(other, 1000)
    clock.now += 10
    one.tick()
    other.tick()
    steps = [desk.table.split.weight(4) for desk in (one, other)]
    deal(one, 300, lambda number: 500)
    one.tick()

    heard = other.tick()

    assert steps == [1.0, 1.0]
    assert heard is None
    assert [desk.state for desk in (one, other)] == ["rolled back"] * 2
    assert 4 not in deal(other, 300)
    actions = [row["action"] for row in one.describe()["decisions"]]
    assert actions == ["start", "next", "next", "roll back"]


def test_a_step_is_of_one_server(open_desk, plan):
    clock = Clock()
    one, other = open_desk(plan, clock), open_desk(plan, clock)
    deal(one, 1000)
    clock.now += 10
    one.tick()

    other.tick()

    assert [desk.table.split.weight(4) for desk in (one, other)] == [1.0, 0.2]


def test_a_roll_back_that_a_step_crossed_holds_after_a_restart(open_desk, plan, monkeypatch):
    clock = Clock()
    one, other = open_desk(plan, clock), open_desk(plan, clock)
    deal(other, 1000)
    clock.now += 10
    hear = other._hear
    monkeypatch.setattr(other, "_hear", lambda: (hear(), one.roll_back("ann")))
    assert other.tick().action == "next"
    monkeypatch.undo()

    other.tick()
    again = open_desk(plan, clock)

    assert [desk.state for desk in (one, other, again)] == ["rolled back"] * 3
    assert one.tick() is None
    assert one.state == "rolled back"


def test_what_is_set_by_hand_reaches_servers_without_a_canary(open_desk, plan, tmp_path):
    split = Traffic(Split(((3, 0.5), (2, 0.5))), record=tmp_path / "hand.sqlite")
    one, other = open_desk(split), open_desk(split)
    one.set_weights({3: 0.9, 2: 0.1}, "ann")

    other.tick()
    other.set_weights({3: 1.0, 2: 0.0}, "bob")
    for desk in (one, other):
        desk.tick()

    assert [desk.table.split.weight(3) for desk in (one, other)] == [1.0, 1.0]
    assert [row["who"] for row in one.describe()["decisions"]] == ["", "ann", "bob"]


def test_what_was_decided_before_a_start_is_not_heard_again(open_desk, plan):
    first = open_desk(plan)
    first.roll_back("ann")
    first.restart("bob")

    again = open_desk(plan)
    table = again.table
    again.tick()

    assert again.table is table


def test_a_record_that_cannot_be_read_does_not_keep_a_canary_from_its_judge(open_desk, plan):
    desk = open_desk(plan)
    deal(desk, 300, lambda number: 500 if number == 4 else 200)
    desk._record.close()

    assert desk.tick().action == "roll back"
