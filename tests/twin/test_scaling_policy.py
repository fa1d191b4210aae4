import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.errors import ServeError
from ingot.twin.policy import Memory, ScalingPolicy, Seen

POLICY = ScalingPolicy()  # min 0, max 5, target 5, cool-downs 120 s


def decide(time_s, backlog, instances, memory=None, policy=POLICY):
    return policy.decide(Seen(time_s, backlog, instances), memory or Memory())


def test_the_first_job_at_zero_wakes_an_instance_without_a_cool_down():
    found = decide(0.5, 1, 0)

    assert (found.action, found.instances) == ("wake", 1)
    assert found.reason == "1 job and no instance"
    assert decide(1.0, 100, 1, found.memory).action == "out"


def test_a_wake_after_a_scale_in_does_not_wait_for_its_cool_down():
    shrunk = decide(500.0, 0, 3)

    assert (shrunk.action, shrunk.instances) == ("in", 0)
    assert decide(500.1, 1, 0, shrunk.memory).action == "wake"


@pytest.mark.parametrize(
    ("backlog", "instances"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (25, 5), (26, 5)]
)
def test_the_smallest_number_that_meets_the_target_is_wanted(backlog, instances):
    assert POLICY.wanted(backlog) == instances


def test_a_second_scale_out_waits_for_the_cool_down_and_says_so():
    first = decide(10.0, 10, 1)
    second = decide(20.0, 100, 2, first.memory)
    third = decide(130.0, 100, 2, second.memory)

    assert (first.action, first.instances) == ("out", 2)
    assert (second.action, second.instances) == ("hold", 2)
    assert second.reason.endswith("5 wanted; 110 s of the scale-out cool-down left")
    assert (third.action, third.instances) == ("out", 5)


def test_a_scale_in_waits_until_the_instances_were_not_needed_for_the_cool_down():
    busy = decide(100.0, 25, 5)
    early = decide(219.0, 3, 5, busy.memory)
    late = decide(220.0, 3, 5, early.memory)

    assert (early.action, early.instances) == ("hold", 5)
    assert "1 s of the scale-in cool-down left" in early.reason
    assert (late.action, late.instances) == ("in", 1)


def test_a_moment_of_need_starts_the_scale_in_cool_down_again():
    memory = decide(0.0, 25, 5).memory
    memory = decide(100.0, 0, 5, memory).memory
    memory = decide(110.0, 25, 5, memory).memory

    assert decide(125.0, 0, 5, memory).action == "hold"
    assert decide(230.0, 0, 5, memory).action == "in"


def test_scale_in_can_be_switched_off():
    found = decide(1e6, 0, 5, policy=ScalingPolicy(can_scale_in=False))

    assert (found.action, found.instances) == ("hold", 5)
    assert "scale-in is off" in found.reason


def test_the_minimum_is_kept_without_any_job():
    policy = ScalingPolicy(min_instances=2)

    assert decide(0.0, 0, 0, policy=policy).instances == 2
    assert decide(1e6, 0, 5, policy=policy).instances == 2


def test_a_lost_instance_of_the_minimum_comes_back_within_the_cool_down():
    policy = ScalingPolicy(min_instances=2)
    memory = decide(0.0, 100, 2, policy=policy).memory

    assert decide(1.0, 0, 1, memory, policy).instances == 2


def test_a_maximum_that_was_lowered_takes_effect_at_once():
    assert decide(0.0, 100, 9).instances == 5


def test_holding_at_the_maximum_names_it():
    assert "at the most of 5" in decide(0.0, 100, 5).reason


def test_backlog_per_instance_without_an_instance():
    assert Seen(0.0, 0, 0).per_instance == 0.0
    assert Seen(0.0, 1, 0).per_instance == math.inf


@pytest.mark.parametrize(
    "settings",
    [
        {"min_instances": 3, "max_instances": 2}, {"max_instances": 0}, {"min_instances": -1},
        {"target": 0}, {"target": math.inf}, {"in_cooldown_s": -1}, {"out_cooldown_s": math.inf},
    ],
)  # fmt: skip
def test_figures_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ServeError, match="; got "):
        ScalingPolicy(**settings)


@given(st.lists(st.tuples(st.floats(0.01, 90.0), st.integers(0, 60)), max_size=40))
def test_no_history_breaks_limits_cool_downs_or_wakes(history):
    policy = replace(POLICY, max_instances=4)
    memory, now, instances = Memory(), 0.0, 0
    outs, changes = [], []
    for pause, backlog in history:
        now += pause
        found = decide(now, backlog, instances, memory, policy)
        assert 0 <= found.instances <= 4
        assert found.reason
        assert instances or found.instances or not backlog
        if found.action == "out":
            assert not outs or now - outs[-1] >= policy.out_cooldown_s
            outs.append(now)
        if found.action == "in":
            assert not changes or now - changes[-1] >= policy.in_cooldown_s
            assert policy.wanted(backlog) == found.instances < instances
        if found.action in {"out", "in"}:
            changes.append(now)
        memory, instances = found.memory, found.instances
