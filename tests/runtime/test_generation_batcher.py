import threading

import pytest
from fake_decoder import FakeDecoding, continued

from ingot.core.errors import DataError, EngineError
from ingot.runtime.generation.batcher import Batcher
from ingot.runtime.generation.sampling import Sampling

PROMPT = [3, 1, 4]


class Gated(FakeDecoding):
    """Takes a step only when it is let: so a test knows what is under way."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gate = threading.Semaphore(0)

    def step(self, work):
        assert self.gate.acquire(timeout=10), "a test must let every step through"
        return super().step(work)


def test_texts_stream_from_their_handles_and_are_those_of_one_alone():
    with Batcher(FakeDecoding(pages=20)) as batcher:
        handles = [batcher.submit([1, at], Sampling(max_tokens=10)) for at in range(8)]
        found = [[piece.token for piece in handle] for handle in handles]

    assert found == [continued([1, at], 10) for at in range(8)]


def test_a_request_joins_while_another_runs():
    decoding = Gated()
    with Batcher(decoding) as batcher:
        first = batcher.submit(PROMPT, Sampling(max_tokens=3))
        decoding.gate.release()
        stream = iter(first)
        assert next(stream).token == continued(PROMPT, 1)[0]
        second = batcher.submit([7], Sampling(max_tokens=1))
        decoding.gate.release(20)

        assert [piece.token for piece in second] == continued([7], 1)
        assert [piece.token for piece in stream] == continued(PROMPT, 3)[1:]


def test_a_cancelled_text_ends_and_its_room_is_free():
    decoding = Gated()
    with Batcher(decoding) as batcher:
        handle = batcher.submit(PROMPT, Sampling(max_tokens=50))
        decoding.gate.release()
        next(iter(handle))
        handle.cancel()
        decoding.gate.release(100)
        pieces = list(handle)

        assert pieces[-1].finish == "cancelled"
    assert decoding.rows == {}


def test_closing_cancels_what_is_under_way():
    decoding = Gated()
    batcher = Batcher(decoding)
    handle = batcher.submit(PROMPT, Sampling(max_tokens=50))
    decoding.gate.release(3)
    next(iter(handle))

    closer = threading.Thread(target=batcher.close)
    closer.start()
    decoding.gate.release(100)
    closer.join(timeout=10)

    assert list(handle)[-1].finish == "cancelled"
    with pytest.raises(EngineError, match="must be open"):
        batcher.submit(PROMPT)
    batcher.close()


def test_a_bad_prompt_is_refused_where_it_is_submitted():
    with Batcher(FakeDecoding()) as batcher, pytest.raises(DataError, match="Token ids"):
        batcher.submit([99])


def test_more_requests_than_may_wait_are_refused():
    decoding = Gated()
    with Batcher(decoding, most_waiting=2) as batcher:
        handles = [batcher.submit(PROMPT, Sampling(max_tokens=1)) for _ in range(2)]
        with pytest.raises(EngineError, match="At most 2 requests"):
            batcher.submit(PROMPT)
        decoding.gate.release(10)
        assert [handle.text() for handle in handles] == ["", ""]


def test_a_failed_request_raises_from_its_handle_and_the_others_go_on():
    with Batcher(FakeDecoding(poison=[19])) as batcher:
        bad = batcher.submit([19])
        good = batcher.submit(PROMPT, Sampling(max_tokens=2))

        with pytest.raises(EngineError, match="poisoned"):
            list(bad)
        assert [piece.token for piece in good] == continued(PROMPT, 2)
        assert list(bad) == []


def test_pieces_may_go_to_a_function_in_place_of_the_handle():
    found, over = [], threading.Event()

    def deliver(piece):
        found.append(piece.token)
        if piece.finish is not None:
            over.set()

    with Batcher(FakeDecoding()) as batcher:
        batcher.submit(PROMPT, Sampling(max_tokens=4), deliver=deliver)
        assert over.wait(timeout=10)

    assert found == continued(PROMPT, 4)


def test_a_function_that_fails_ends_its_own_request_only(caplog):
    def deliver(piece):
        raise ValueError("the client went away")

    with Batcher(FakeDecoding()) as batcher:
        batcher.submit(PROMPT, deliver=deliver)
        good = batcher.submit(PROMPT, Sampling(max_tokens=4))

        assert [piece.token for piece in good] == continued(PROMPT, 4)
    assert "could not be delivered" in caplog.text


def test_a_decoder_that_breaks_ends_every_request_with_the_reason(caplog):
    decoding = FakeDecoding()
    decoding.step = None
    with Batcher(decoding) as batcher:
        handle = batcher.submit(PROMPT)

        with pytest.raises(EngineError, match="it stopped"):
            list(handle)
    assert "a batcher stopped" in caplog.text
