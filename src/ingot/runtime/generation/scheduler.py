"""Continuous batching: who takes part in the next step of a decoder, and with how many tokens.

Requests join and leave between steps (Yu et al., Orca, 2022, section 3). Prompts are read in
chunks, so that texts under way go on meanwhile (Agrawal et al., Sarathi-Serve, 2024.
arXiv:2403.02310). When the cache is full, the youngest request gives its room back and is read
again later (Kwon et al., vLLM, 2023, section 4.5. arXiv:2309.06180).

No draw depends on any of this: a request has a sampler of its own, and scores depend on its own
tokens only.
"""

import logging
from bisect import insort
from collections.abc import Sequence
from itertools import count

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.runtime.generation.decoding import CacheFull, Decoding
from ingot.runtime.generation.request import Limits, Piece, Prompt, Request
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.text import Tokenizer

log = logging.getLogger(__name__)

MOST_RUNNING = 16
_HEADROOM = 32  # tokens kept free per sequence that runs, so that who is let in is not put out next
_ALONE = 8  # times as many tokens in a step that delays nobody
Work = list[tuple[Request, Sequence[int]]]
Found = list[tuple[Request, Array | EngineError]]
Event = tuple[int, Piece | EngineError]


class Scheduler:
    """Takes requests through a decoder, step by step. Not thread-safe; see `Batcher`.

    Attributes:
        preemptions: How often a request gave its room in the cache to others.
    """

    def __init__(
        self,
        decoding: Decoding,
        tokenizer: Tokenizer | None = None,
        *,
        most_running: int = MOST_RUNNING,
        step_tokens: int = 0,
    ) -> None:
        """Take over a decoder that holds no sequence.

        Args:
            decoding: Where sequences grow.
            tokenizer: For prompts and pieces of text.
            most_running: Requests that take part in a step at most.
            step_tokens: Tokens of a step at most; 0 for what the decoder likes best.

        Raises:
            EngineError: A step cannot hold a token of every request and one of a prompt.
        """
        step_tokens = step_tokens or max(decoding.step_tokens, most_running + 1)
        if not 1 <= most_running < step_tokens:
            raise EngineError(
                f"step_tokens must be above most_running, and that 1 or more; got {step_tokens} "
                f"and {most_running}. Every text under way takes one token of a step."
            )
        self._decoding, self._tokenizer = decoding, tokenizer
        self._most, self._step_tokens = most_running, step_tokens
        longest = min(decoding.positions, decoding.free_tokens)
        self._limits = Limits(decoding.vocab, longest)
        self._numbers = count()
        self._waiting: list[Request] = []  # both in the order in which they came
        self._running: list[Request] = []
        self.preemptions = 0

    @property
    def is_busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> int:
        """Requests that take part in the steps."""
        return len(self._running)

    def request(self, prompt: Prompt, sampling: Sampling) -> Request:
        """Check a request without letting it in; any thread may.

        Raises:
            DataError: The prompt does not fit.
        """
        return Request(
            next(self._numbers), prompt, sampling, tokenizer=self._tokenizer, limits=self._limits
        )

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        insort(self._waiting, request, key=_number)

    def cancel(self, number: int) -> list[Event]:
        """End a request and give back its room; nothing if it ended before."""
        for request in (*self._waiting, *self._running):
            if request.number == number:
                self._drop(request)
                return [(number, Piece(None, finish="cancelled"))]
        return []

    def clear(self) -> list[Event]:
        """Cancel every request."""
        numbers = [request.number for request in (*self._waiting, *self._running)]
        return [event for number in numbers for event in self.cancel(number)]

    def step(self) -> list[Event]:
        """Take one step of the decoder.

        Returns:
            By number of the request, its next piece, or why it failed. A failed request is over;
            the others go on.
        """
        self._admit()
        while self._running:
            work = self._plan()
            try:
                found = self._take(work)
            except CacheFull as error:
                if len(self._running) == 1:  # it fits the cache, so this is the engine's mistake
                    return [self._fail(self._running[0], error)]
                self._preempt(self._running[-1])
                continue
            return [event for request, row in found for event in self._grow(request, row)]
        return []

    def forget(self) -> list[Request]:
        """Let what runs wait again after the decoder has crashed: nobody can trust its sequences.

        Returns:
            Those requests, for `again`; nothing that they have written is lost.
        """
        crashed = list(self._running)
        for request in crashed:
            self._drop(request)
            self.add(request)
        return crashed

    def works(self) -> bool:
        """Say whether the decoder can read a token in a sequence of its own."""
        try:
            sequence = self._decoding.open_sequence()
            try:
                self._decoding.step([(sequence, [0])])
            finally:
                self._decoding.close_sequence(sequence)
        except Exception:  # engines raise anything, and this one has
            log.exception("the decoder still fails")
            return False
        return True

    def again(self, request: Request) -> list[Event]:
        """Read a text that was in a crash again, alone: one that crashes alone is at fault.

        Returns:
            Its next piece, or why it failed.
        """
        row: Array | EngineError | None = None
        try:
            self._let_in(request)
            while request.unread and not isinstance(row, EngineError):
                part = request.tokens[request.read : request.read + self._step_tokens]
                ((_, row),) = self._take([(request, part)])
        except CacheFull:
            self._preempt(request)
            return []
        except Exception as error:  # noqa: BLE001 # logged; the step held this request only
            row = _crashed(request, error)
        assert row is not None, "a text under way has a token to read"
        return self._grow(request, row)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._most:
            request = self._waiting[0]
            promised = sum(other.unread for other in self._running)
            needed = request.unread + promised + _HEADROOM * len(self._running)
            if self._running and needed > self._decoding.free_tokens:
                return
            self._let_in(request)

    def _let_in(self, request: Request) -> None:
        request.sequence = self._decoding.open_sequence()
        self._waiting.remove(request)
        insort(self._running, request, key=_number)

    def _plan(self) -> Work:
        """Return the tokens of a step: one for every text under way, the rest for prompts.

        Prompts share what is left evenly; what the shorter do not need goes to the longer ones.
        """
        alone = len(self._running) == 1  # nobody waits for the end of this step
        left, work = self._step_tokens * (_ALONE if alone else 1), Work()
        order = sorted(self._running, key=lambda request: (request.unread, request.number))
        for place, request in enumerate(order):
            share = -(-left // (len(order) - place))
            size = min(request.unread, share)
            work.append((request, request.tokens[request.read : request.read + size]))
            left -= size
        return work

    def _take(self, work: Work) -> Found:
        """Take the step; if the engine refuses it, take it for each alone: one may be at fault.

        Raises:
            CacheFull: There is no room for all; nothing was changed.
        """
        try:
            scores = self._decoding.step([(_sequence(request), part) for request, part in work])
        except CacheFull:
            raise
        except EngineError as error:
            return self._take_alone(work) if len(work) > 1 else [(work[0][0], error)]
        for request, part in work:
            request.read += len(part)
        return [(request, row) for (request, _), row in zip(work, scores, strict=True)]

    def _take_alone(self, work: Work) -> Found:
        found: Found = []
        for one in work:
            try:
                found += self._take([one])
            except CacheFull:
                if not found:
                    raise
                break  # the rest goes on in the next step
        return found

    def _grow(self, request: Request, found: Array | EngineError) -> list[Event]:
        if isinstance(found, EngineError):
            return [self._fail(request, found)]
        if request.unread:
            return []
        try:
            piece = request.grow(found)
        except EngineError as error:
            return [self._fail(request, error)]
        except Exception as error:  # noqa: BLE001 # logged; what is drawn and spelt is its own
            return [self._fail(request, _crashed(request, error))]
        if piece.finish is not None:
            self._drop(request)
        return [(request.number, piece)]

    def _preempt(self, request: Request) -> None:
        self._drop(request)
        self.add(request)
        self.preemptions += 1

    def _fail(self, request: Request, error: EngineError) -> Event:
        self._drop(request)
        return request.number, error

    def _drop(self, request: Request) -> None:
        """Take a request out; its room is free at once."""
        if request.sequence is None:
            self._waiting.remove(request)
            return
        self._running.remove(request)
        sequence, request.sequence, request.read = request.sequence, None, 0
        try:
            self._decoding.close_sequence(sequence)
        except Exception:  # of an engine that crashed
            log.exception("a sequence could not be closed")


def _crashed(request: Request, error: Exception) -> EngineError:
    log.error("text %d crashed", request.number, exc_info=error)
    return EngineError(
        "A text must not crash the engine that writes it; this one did. The log says how; change "
        "the prompt."
    )


def _number(request: Request) -> int:
    return request.number


def _sequence(request: Request) -> int:
    assert request.sequence is not None, "a request that runs has a sequence"
    return request.sequence
