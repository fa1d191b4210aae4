import threading
import time

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


class Crashing(FakeDecoding):
    """Raises what no engine should: at the steps that `at` names, and on its poison."""

    def __init__(self, at=(), crashes_on=(), **options):
        super().__init__(**options)
        self.at, self.crashes_on, self.tried = set(at), set(crashes_on), 0

    def step(self, work):
        self.tried += 1
        if self.tried in self.at or any(self.crashes_on & set(tokens) for _, tokens in work):
            raise RuntimeError("secret detail of the engine")
        return super().step(work)


def test_after_a_crash_every_text_goes_on_where_it_was(caplog):
    decoding = Crashing(at=[4])
    with Batcher(decoding) as batcher:
        handles = [batcher.submit([at, *PROMPT], Sampling(max_tokens=6)) for at in range(3)]
        found = [[piece.token for piece in handle] for handle in handles]
        crashes, is_open = batcher.load.crashes, batcher.is_open

    assert found == [continued([at, *PROMPT], 6) for at in range(3)]
    assert (crashes, is_open) == (1, True)
    assert decoding.rows == {}
    assert "secret detail" in caplog.text


def test_a_text_that_crashes_the_decoder_fails_and_its_neighbours_go_on():
    with Batcher(Crashing(crashes_on=[19])) as batcher:
        good = [batcher.submit([at, *PROMPT], Sampling(max_tokens=2)) for at in range(3)]
        bad = batcher.submit([19], Sampling(max_tokens=2))
        tokens = [[piece.token for piece in handle] for handle in good]
        with pytest.raises(EngineError, match="must not crash the engine") as caught:
            list(bad)
        later = batcher.submit(PROMPT, Sampling(max_tokens=2))

        assert [piece.token for piece in later] == continued(PROMPT, 2)
    expected = [continued([at, *PROMPT], 2) for at in range(3)]
    assert tokens == expected
    assert not any(19 in row for row in expected)
    assert "secret" not in str(caught.value)


def test_many_texts_that_crash_it_do_not_stop_a_batcher():
    with Batcher(Crashing(crashes_on=[19]), pauses_s=(0, 0)) as batcher:
        for _ in range(6):
            with pytest.raises(EngineError, match="must not crash"):
                list(batcher.submit([19]))

        assert [piece.token for piece in batcher.submit(PROMPT, Sampling(max_tokens=2))] == (
            continued(PROMPT, 2)
        )


def test_a_sequence_that_cannot_be_closed_after_a_crash_ends_no_text(caplog):
    class Stuck(Crashing):
        def close_sequence(self, sequence):
            if self.tried == 3:
                raise RuntimeError("no such sequence")
            super().close_sequence(sequence)

    with Batcher(Stuck(at=[3])) as batcher:
        handle = batcher.submit(PROMPT, Sampling(max_tokens=4))

        assert [piece.token for piece in handle] == continued(PROMPT, 4)
    assert "could not be closed" in caplog.text


def test_a_decoder_that_fails_for_a_while_loses_nothing_and_is_not_open_meanwhile():
    seen = []

    class Watched(Crashing):
        def step(self, work):
            seen.append(batcher.is_open)
            return super().step(work)

    with Batcher(Watched(at=[2, 3, 4]), pauses_s=(0, 0.01, 0.01, 0.01)) as batcher:
        handle = batcher.submit(PROMPT, Sampling(max_tokens=3))

        assert [piece.token for piece in handle] == continued(PROMPT, 3)
    assert seen[:5] == [True, True, False, False, False]
    assert seen[-1]


def test_scores_that_cannot_be_drawn_from_end_their_own_text_only():
    class Odd(FakeDecoding):
        def step(self, work):
            scores = list(super().step(work))
            return ["odd" if len(part) == 1 and part[0] == 19 else row
                    for (_, part), row in zip(work, scores, strict=True)]  # fmt: skip

    with Batcher(Odd()) as batcher:
        good = batcher.submit(PROMPT, Sampling(max_tokens=4))
        bad = batcher.submit([19])

        assert [piece.token for piece in good] == continued(PROMPT, 4)
        with pytest.raises(EngineError, match="must not crash"):
            list(bad)
        assert batcher.load.crashes == 0


def test_closing_does_not_wait_for_a_decoder_that_fails():
    decoding = Crashing(at=range(1, 100))
    batcher = Batcher(decoding, pauses_s=(60.0,))
    handle = batcher.submit(PROMPT)
    while batcher.is_open:
        time.sleep(0.001)
    batcher.close()

    assert [piece.finish for piece in handle] == ["cancelled"]


def test_a_decoder_that_does_not_come_back_ends_every_request_with_the_reason(caplog):
    decoding = FakeDecoding()
    decoding.step = None
    with Batcher(decoding, pauses_s=(0, 0)) as batcher:
        handle = batcher.submit(PROMPT)

        with pytest.raises(EngineError, match="it stopped: the decoder failed 2 times"):
            list(handle)
        assert not batcher.is_open
    assert "a batcher stopped" in caplog.text
