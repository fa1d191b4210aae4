from hypothesis import given
from hypothesis import strategies as st

from ingot.search.pareto import frontier

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12)


def test_a_point_that_is_worse_everywhere_is_not_on_the_frontier():
    assert frontier([(1, 5), (2, 1), (2, 6)]) == [True, True, False]


def test_equal_points_share_the_frontier():
    assert frontier([(1, 1), (1, 1)]) == [True, True]


@given(points)
def test_something_is_always_on_the_frontier(costs):
    assert any(frontier(costs)) == bool(costs)


@given(points)
def test_what_is_off_the_frontier_is_beaten_by_something_on_it(costs):
    on = frontier(costs)
    edge = [c for c, good in zip(costs, on, strict=True) if good]

    for cost, good in zip(costs, on, strict=True):
        beaten = any(all(x <= y for x, y in zip(e, cost, strict=True)) and e != cost for e in edge)
        assert beaten != good
