import numpy as np
import pytest
from fake_decoder import VOCAB, FakeDecoding, continued
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.core.errors import DataError, EngineError
from ingot.runtime.generation.generate import generate
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.scheduler import Scheduler

PROMPT = [3, 1, 4]


def tokens_of(events, number):
    return [piece.token for at, piece in events if at == number]


def finish(scheduler):
    """Take every step; return all events."""
    events = []
    while scheduler.is_busy:
        events += scheduler.step()
    return events


def submit(scheduler, prompt, **settings_):
    request = scheduler.request(prompt, Sampling(**settings_))
    scheduler.add(request)
    return request.number


def test_the_likeliest_tokens_are_those_of_the_scores():
    pieces = list(generate(FakeDecoding(), PROMPT, Sampling(max_tokens=6)))

    assert [piece.token for piece in pieces] == continued(PROMPT, 6)
    assert [piece.finish for piece in pieces] == [None] * 5 + ["length"]


def test_a_stop_token_ends_the_text():
    wanted = continued(PROMPT, 6)
    stop = next(token for token in wanted if wanted.index(token) >= 2)

    pieces = list(generate(FakeDecoding(), PROMPT, Sampling(max_tokens=6, stop_tokens=(stop,))))

    assert [piece.token for piece in pieces] == wanted[: wanted.index(stop) + 1]
    assert pieces[-1].finish == "stop"


def test_a_text_ends_where_the_model_has_no_more_positions():
    pieces = list(generate(FakeDecoding(positions=5), PROMPT, Sampling(max_tokens=50)))

    assert len(pieces) == 3  # two more are read; the last is not
    assert pieces[-1].finish == "length"


def test_the_last_token_is_never_read():
    decoding = FakeDecoding()

    list(generate(decoding, PROMPT, Sampling(max_tokens=4)))

    assert sum(sum(step.values()) for step in decoding.steps) == len(PROMPT) + 3


def test_leaving_early_gives_back_the_room():
    decoding = FakeDecoding()

    for _ in generate(decoding, PROMPT, Sampling(max_tokens=50)):
        break

    assert decoding.rows == {}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "1 to 100 tokens"),
        ([1] * 101, "1 to 100 tokens"),
        ([VOCAB], "between 0 and 19"),
        ([-1], "between 0 and 19"),
        ("text", "must come with a tokenizer"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_at_once(prompt, words):
    with pytest.raises(DataError, match=words):
        generate(FakeDecoding(), prompt)


def test_stop_strings_without_a_tokenizer_are_refused():
    with pytest.raises(DataError, match="Stop strings"):
        generate(FakeDecoding(), PROMPT, Sampling(stop=("x",)))


def test_a_long_prompt_is_read_in_chunks_while_others_go_on():
    decoding = FakeDecoding(step_tokens=8)
    scheduler = Scheduler(decoding, most_running=4)
    short = submit(scheduler, PROMPT, max_tokens=30)
    scheduler.step()
    long = submit(scheduler, [2] * 40, max_tokens=2)

    before = len(decoding.steps)
    while not tokens_of(events := scheduler.step(), long):
        assert tokens_of(events, short), "the text under way must get a token in every step"

    chunks = [step[2] for step in decoding.steps[before:]]
    assert chunks == [7, 7, 7, 7, 7, 5]


def test_prompts_share_a_step_evenly():
    decoding = FakeDecoding(step_tokens=12)
    scheduler = Scheduler(decoding, most_running=4)
    for size in (20, 20, 2):
        submit(scheduler, [1] * size, max_tokens=1)

    scheduler.step()

    assert decoding.steps[0] == {3: 2, 1: 5, 2: 5}


def test_nobody_beside_takes_a_larger_step():
    decoding = FakeDecoding(step_tokens=8)

    list(generate(decoding, [1] * 90, Sampling(max_tokens=1)))

    assert [sum(step.values()) for step in decoding.steps] == [64, 26]


def test_no_more_run_than_may():
    decoding = FakeDecoding()
    scheduler = Scheduler(decoding, most_running=2)
    for _ in range(5):
        submit(scheduler, PROMPT, max_tokens=3)

    finish(scheduler)

    assert max(len(step) for step in decoding.steps) == 2


def test_requests_are_let_in_as_they_came():
    scheduler = Scheduler(FakeDecoding(), most_running=1)
    numbers = [submit(scheduler, PROMPT, max_tokens=2) for _ in range(4)]

    events = finish(scheduler)

    assert [number for number, piece in events if piece.finish] == numbers


def test_a_full_cache_puts_out_the_youngest_and_its_text_is_the_same():
    how = Sampling(max_tokens=40, temperature=1.0, seed=5)
    alone = [[p.token for p in generate(FakeDecoding(), prompt, how)] for prompt in _prompts(4)]
    decoding = FakeDecoding(pages=40, page=4)
    scheduler = Scheduler(decoding, most_running=4)
    for prompt in _prompts(4):
        scheduler.add(scheduler.request(prompt, how))

    events = finish(scheduler)

    assert decoding.opened > 4, "somebody must have been put out"
    assert [tokens_of(events, number) for number in range(4)] == alone
    assert decoding.rows == {}


def test_the_oldest_is_never_put_out():
    decoding = FakeDecoding(pages=40, page=4)
    scheduler = Scheduler(decoding, most_running=4)
    for prompt in _prompts(4):
        submit(scheduler, prompt, max_tokens=40)

    finish(scheduler)

    first = [step[1] for step in decoding.steps if 1 in step]
    assert sum(first) == len(_prompts(4)[0]) + 39


def test_a_text_alone_may_fill_the_cache():
    pieces = list(generate(FakeDecoding(pages=2, page=4), PROMPT, Sampling(max_tokens=50)))

    assert len(pieces) == 6
    assert pieces[-1].finish == "length"


def test_a_request_that_the_engine_refuses_fails_alone():
    decoding = FakeDecoding(poison=[19])
    scheduler = Scheduler(decoding, most_running=4)
    good = submit(scheduler, PROMPT, max_tokens=3, stop_tokens=(19,))
    bad = submit(scheduler, [19], max_tokens=3)

    events = finish(scheduler)

    errors = [piece for number, piece in events if number == bad]
    assert [type(error) for error in errors] == [EngineError]
    assert tokens_of(events, good) == continued(PROMPT, 3)
    assert decoding.rows == {}


def test_scores_that_are_no_numbers_fail_their_request_only(monkeypatch):
    decoding = FakeDecoding()
    scheduler = Scheduler(decoding, most_running=4)
    bad, good = (submit(scheduler, PROMPT, max_tokens=3) for _ in range(2))
    step = decoding.step

    def spoiled(work):
        scores = step(work)
        scores[[number == 1 for number, _ in work]] = np.nan
        return scores

    monkeypatch.setattr(decoding, "step", spoiled)
    events = finish(scheduler)

    assert [type(piece) for number, piece in events if number == bad] == [EngineError]
    assert tokens_of(events, good) == continued(PROMPT, 3)


def test_a_cancelled_request_says_so_and_gives_back_its_room():
    decoding = FakeDecoding()
    scheduler = Scheduler(decoding, most_running=1)
    running, waiting = (submit(scheduler, PROMPT, max_tokens=9) for _ in range(2))
    scheduler.step()

    events = scheduler.cancel(running) + scheduler.cancel(waiting)

    assert [piece.finish for _, piece in events] == ["cancelled", "cancelled"]
    assert decoding.rows == {}
    assert scheduler.cancel(running) == []
    assert not scheduler.is_busy


def test_a_step_must_hold_more_tokens_than_requests():
    with pytest.raises(EngineError, match="above most_running"):
        Scheduler(FakeDecoding(), most_running=8, step_tokens=8)


def _prompts(count):
    return [list(range(1, 5 + 2 * at)) for at in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_text_does_not_depend_on_its_company(data):
    count = data.draw(st.integers(1, 6))
    prompts = [
        data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12))
        for _ in range(count)
    ]
    how = [{"max_tokens": data.draw(st.integers(1, 40)), "temperature": 1.0, "seed": at,
            "top_p": 0.9, "repetition_penalty": 1.3} for at in range(count)]  # fmt: skip
    decoding = FakeDecoding(
        pages=data.draw(st.integers(14, 30)), page=4, step_tokens=data.draw(st.integers(5, 30))
    )
    scheduler = Scheduler(decoding, most_running=data.draw(st.integers(1, 4)))
    arrivals = [data.draw(st.integers(0, 5)) for _ in range(count)]
    events = []
    for prompt, options, wait in zip(prompts, how, arrivals, strict=True):
        submit(scheduler, prompt, **options)
        for _ in range(wait):
            events += scheduler.step()
    events += finish(scheduler)

    for number, (prompt, options) in enumerate(zip(prompts, how, strict=True)):
        alone = generate(FakeDecoding(pages=decoding.pages, page=4), prompt, Sampling(**options))
        assert tokens_of(events, number) == [piece.token for piece in alone]
    assert decoding.rows == {}


def test_a_text_that_finds_no_room_when_it_is_read_again_waits_and_goes_on():
    scheduler = Scheduler(FakeDecoding(pages=10))
    numbers = [submit(scheduler, [at, *PROMPT], max_tokens=22) for at in range(2)]
    events = [event for _ in range(17) for event in scheduler.step()]  # both fill the cache

    again = [scheduler.again(request) for request in scheduler.forget()]

    assert [len(found) for found in again] == [1, 0]
    assert (scheduler.running, scheduler.preemptions) == (1, 1)
    events += again[0] + finish(scheduler)
    for number in numbers:
        assert tokens_of(events, number) == continued([number, *PROMPT], 22)
