"""The rule of a canary: what breaks it, what lets it on, and how often it errs."""

import numpy as np
import pytest
from scipy.stats import norm

from ingot.core.errors import ClaimError, ServeError
from ingot.twin.canary import Canary, Memory
from ingot.twin.conditions import Judgement, judge, read_condition
from ingot.twin.tally import Counts, Seen

GOOD = Counts(1000, 0)
ERRORS = Canary(4, ("error_rate <= 0.01",), steps=(0.05, 0.5, 1.0), step_s=60, step_requests=200)


def decide(canary=ERRORS, *, t=100.0, counts=GOOD, memory=None, **more):
    seen = Seen(t, counts, more.pop("baseline", Counts(9000, 0)), **more)
    return canary.decide(seen, memory or canary.start(0.0))


def test_a_broken_claim_rolls_back_at_once_and_says_why():
    found = decide(t=1.0, counts=Counts(50, 20))

    assert (found.action, found.weight, found.memory.state) == ("roll back", 0.0, "rolled back")
    assert "error_rate <= 0.01 is broken: 0.4" in found.reason
    assert found.judgements[0].low > 0.01


def test_held_claims_and_a_minimum_that_is_over_lead_to_the_next_step():
    found = decide(counts=Counts(2000, 0))

    assert (found.action, found.weight) == ("next", 0.5)
    assert found.memory == Memory(step=1, since_s=100.0)


@pytest.mark.parametrize(("t", "n"), [(59.0, 2000), (100.0, 199)])
def test_nothing_moves_before_the_least_of_a_step_is_over(t, n):
    canary = Canary(4, ("error_rate <= 0.2",), steps=(0.05, 1.0), step_s=60, step_requests=200)

    assert decide(canary, t=t, counts=Counts(n, 0)).action == "stay"


def test_an_undecided_claim_stays_and_rolls_back_after_the_longest_time():
    few = Counts(200, 2)
    stayed = decide(counts=few)
    late = decide(t=86_400.0, counts=few, memory=stayed.memory)

    assert (stayed.action, stayed.judgements[0].outcome) == ("stay", "undecided")
    assert late.action == "roll back"
    assert "not decided within 86400 s" in late.reason


def test_a_canary_that_nobody_asks_is_rolled_back_in_the_end():
    found = decide(t=86_400.0, counts=Counts())

    assert (found.action, found.judgements[0].outcome) == ("roll back", "undecided")


def test_the_last_step_ends_it():
    found = decide(counts=Counts(3000, 0), memory=Memory(step=2), baseline=None)

    assert (found.action, found.weight, found.memory.state) == ("done", 1.0, "done")


@pytest.mark.parametrize("state", ["done", "rolled back"])
def test_what_has_ended_never_moves_again(state):
    memory = Memory(state=state, step=2)

    found = decide(counts=Counts(5000, 5000), memory=memory)

    assert (found.action, found.memory) == ("stay", memory)
    assert found.weight == (1.0 if state == "done" else 0.0)


def test_looks_come_when_the_requests_have_grown_by_half():
    memory, looks = ERRORS.start(0.0), []
    for n in range(100):
        found = decide(t=1.0, counts=Counts(n, 0), memory=memory)
        looks += [n] if found.judgements else []
        memory = found.memory

    assert looks == [10, 15, 23, 35, 53, 80]


def test_looks_spend_parts_of_alpha_that_sum_to_it():
    canary = Canary(4, ("error_rate <= 0.01", "p95_ms <= 50"), steps=(0.5, 1.0), alpha=0.08)
    levels = [
        decide(canary, t=1.0, memory=Memory(looks=k)).judgements[0].level for k in range(1000)
    ]

    assert levels[0] == pytest.approx(1 - 0.08 / 2 / 2 / 2)
    assert levels[1] == pytest.approx(1 - 0.08 / 2 / 2 / 6)
    # two steps and two claims spend these parts four times over
    assert 4 * sum(1 - level for level in levels) == pytest.approx(0.08, rel=2e-3)


def test_without_a_baseline_only_claims_about_the_version_itself_are_judged():
    canary = Canary(4, ("error_rate <= baseline + 0.001", "error_rate <= 0.1"), steps=(1.0,))

    found = decide(canary, t=400.0, baseline=None)

    assert [judgement.outcome for judgement in found.judgements] == ["alone", "held"]
    assert found.action == "done"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"require": ()}, "must have a claim"),
        ({"steps": ()}, "rise from above 0"), ({"steps": (0.0, 1.0)}, "rise from above 0"),
        ({"steps": (0.5, 0.5)}, "rise from above 0"), ({"steps": (0.5, 1.5)}, "steps up to 1"),
        ({"longest_s": 300.0}, "step_s < longest_s"), ({"alpha": 0.0}, "0 < alpha < 1"),
        ({"step_requests": 0}, "at least 1 request"),
    ],
)  # fmt: skip
def test_plans_that_nothing_could_be_decided_by_are_refused(change, complaint):
    with pytest.raises(ServeError, match=complaint):
        Canary(**{"version": 4, "require": ("error_rate <= 0.01",)} | change)


def test_a_claim_that_cannot_be_read_is_refused_with_the_plan():
    with pytest.raises(ClaimError, match="error_rate"):
        Canary(4, ("eror_rate <= 0.01",))


def test_a_judgement_without_requests_is_said_in_few_words():
    assert str(Judgement("p95_ms <= 50", "undecided")) == "p95_ms <= 50 is undecided"
    assert Judgement("p95_ms <= 50", "undecided").to_json()["high"] is None


def simulate(canary, rng, *, rates, per_tick, ticks, tick_s=10.0, latencies=None):
    """Run a canary through seeded binomial traffic; return its end and the seconds to it."""
    memory, counts = canary.start(0.0), [np.zeros(2, int), np.zeros(2, int)]
    buckets = [{}, {}]
    for tick in range(1, ticks):
        weight = canary.weight(memory)
        split = rng.binomial(per_tick, weight)
        for side, n in enumerate((split, per_tick - split)):
            counts[side] += n, rng.binomial(n, rates[side])
            if latencies is not None:
                for bucket, times in enumerate(rng.multinomial(n, latencies)):
                    buckets[side][bucket] = buckets[side].get(bucket, 0) + int(times)
        canary_counts, base = (
            Counts(*map(int, pair), dict(seen)) for pair, seen in zip(counts, buckets, strict=True)
        )
        baseline = base if weight < 1 else None
        decision = canary.decide(Seen(tick * tick_s, canary_counts, baseline), memory)
        if decision.memory.step != memory.step:
            counts, buckets = [np.zeros(2, int), np.zeros(2, int)], [{}, {}]
        memory = decision.memory
        if memory.state != "running":
            break
    return memory.state, tick * tick_s, decision


def test_a_version_that_fails_one_request_in_twenty_is_rolled_back_every_time():
    canary = Canary(4, ("error_rate <= 0.01",))
    ends = [
        simulate(canary, np.random.default_rng(seed), rates=(0.05, 0.0), per_tick=500, ticks=5000)
        for seed in range(20)
    ]

    assert {state for state, _, _ in ends} == {"rolled back"}
    assert all("is broken" in decision.reason for _, _, decision in ends)


# chances of the buckets of latencies around 5 ms, from 1 ms up
LOGNORMAL = np.diff(norm.cdf((np.arange(180) / 50 - np.log(5)) / 0.4), prepend=0.0)
LOGNORMAL[-1] += 1 - LOGNORMAL.sum()


def ends_of_equal_versions(
    runs, *, rate, require, ticks=2000, latencies=None, steps=(0.01, 0.05, 0.25, 1.0)
):
    """Return how many canaries that equal their baseline ended how, by their last word."""
    canary = Canary(4, require, steps=steps, step_requests=200)
    ends = {"done": 0, "broken": 0, "undecided": 0}
    for seed in range(runs):
        rng = np.random.default_rng([seed, 4])
        state, _, decision = simulate(
            canary, rng, rates=(rate, rate), per_tick=6000, ticks=ticks, tick_s=30.0,
            latencies=latencies,
        )  # fmt: skip
        is_broken = any(judgement.outcome == "broken" for judgement in decision.judgements)
        ends["done" if state == "done" else "broken" if is_broken else "undecided"] += 1
    return ends


def test_an_equal_version_is_hardly_ever_rolled_back():
    require = ("error_rate <= baseline + 0.01", "p95_ms <= 1.2x baseline")

    ends = ends_of_equal_versions(500, rate=0.005, require=require, latencies=LOGNORMAL)

    assert ends["done"] >= 0.95 * 500


def test_a_version_that_is_just_as_bad_as_its_claim_allows_is_hardly_ever_called_broken():
    ends = ends_of_equal_versions(
        500, rate=0.01, require=("error_rate <= 0.01",), ticks=300, steps=(0.2,)
    )

    assert ends["broken"] <= 0.05 * 500


def test_the_same_looks_without_correction_would_call_many_broken():
    claim, broken = read_condition("error_rate <= 0.01"), 0
    for seed in range(60):
        rng, n, errors = np.random.default_rng(seed), 0, 0
        for _ in range(300):
            n, errors = n + 1200, errors + int(rng.binomial(1200, 0.01))
            if judge(claim, Seen(0.0, Counts(n, errors)), 0.95).outcome == "broken":
                broken += 1
                break

    assert broken >= 0.1 * 60


def test_a_version_that_is_half_again_as_slow_is_rolled_back():
    memory = ERRORS.start(0.0)
    canary = Canary(4, ("p95_ms <= 1.2x baseline",))
    slow = {bucket + 20: n for bucket, n in enumerate(np.round(LOGNORMAL * 5000).astype(int))}
    fast = dict(enumerate(np.round(LOGNORMAL * 5000).astype(int)))

    found = canary.decide(Seen(1.0, Counts(5000, 0, slow), Counts(5000, 0, fast)), memory)

    assert found.action == "roll back"
    assert found.judgements[0].value == pytest.approx(np.exp(20 / 50), rel=0.03)
