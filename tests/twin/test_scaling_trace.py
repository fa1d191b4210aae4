import math

import numpy as np

from ingot.twin.policy import ScalingPolicy
from ingot.twin.trace import replay


def test_one_job_wakes_is_served_and_the_endpoint_goes_back_to_zero():
    found = replay(ScalingPolicy(), [2.5], service_s=1.0, start_s=0.25)

    changes = [(d.seen.time_s, d.action, d.instances) for d in found.decisions]
    assert found.finished_s == (3.75,)
    assert found.longest_wait_s == 0.0
    assert changes[:4] == [
        (0.0, "hold", 0), (1.0, "hold", 0), (2.0, "hold", 0), (2.5, "wake", 1)
    ]  # fmt: skip
    # needed last at 3.0 with the job in hand, so the cool-down of 120 s ends at 123.0
    assert changes[-1] == (123.0, "in", 0)
    assert found.instance_s == 123.0 - 2.5


def test_an_instance_serves_as_many_at_once_as_it_is_told():
    arrivals = [0.0] * 5
    policy = ScalingPolicy(max_instances=1)

    two = replay(policy, arrivals, service_s=1.0, concurrency=2, start_s=0.0)
    one = replay(policy, arrivals, service_s=1.0, concurrency=1, start_s=0.0)

    assert two.finished_s == (1.0, 1.0, 2.0, 2.0, 3.0)
    assert one.finished_s == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_no_arrival_is_no_instance():
    found = replay(ScalingPolicy(), [], service_s=1.0)

    assert found.instance_s == 0.0
    assert {d.instances for d in found.decisions} == {0}


def test_ten_thousand_requests_rise_to_the_most_and_end_at_zero():
    arrivals = np.arange(10_000) / 50.0  # 50 a second for 200 s; five instances serve 40 a second

    found = replay(ScalingPolicy(), arrivals.tolist(), service_s=0.25, concurrency=2)
    series = found.series()

    assert not any(math.isnan(at) for at in found.finished_s)
    assert all(np.diff(found.finished_s) >= 0)
    assert max(series["instances"]) == 5
    assert series["instances"][-1] == series["backlog"][-1] == 0
    # 10 jobs a second too many for 200 s
    assert 1990 <= max(series["backlog"]) <= 2110
    assert np.diff(series["time_s"]).max() <= 1.0
    assert found.longest_wait_s == 0.0
