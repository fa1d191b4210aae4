"""Many texts at once: submit a prompt, get a handle that streams; one thread takes the steps."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from ingot.core.closing import Closing
from ingot.core.errors import EngineError
from ingot.runtime.generation.decoding import Decoding
from ingot.runtime.generation.request import Piece, Prompt, Request
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.scheduler import MOST_RUNNING, Event, Scheduler
from ingot.runtime.generation.text import Tokenizer

Deliver = Callable[[Piece | EngineError], None]
_PAUSES_S = (0.0, 0.1, 0.4, 1.5)  # before each look whether a decoder that crashed works again
log = logging.getLogger(__name__)


class Crowded(EngineError):
    """As many requests are under way as may be; nothing was taken."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a batcher has to do.

    Attributes:
        running: Requests that take part in the steps.
        waiting: Requests that wait for room.
        free_tokens: Tokens that the cache had room for after the last step.
        preemptions: How often a request gave its room to others, since the start.
        crashes: How often the decoder crashed and went on, since the start.
    """

    running: int
    waiting: int
    free_tokens: int
    preemptions: int
    crashes: int = 0


class Handle:
    """A text under way: iterate over it for its pieces, from one thread.

    Attributes:
        number: Of the request; earlier ones have lower numbers.
        prompt_tokens: Tokens of its prompt.
    """

    def __init__(self, number: int, prompt_tokens: int, cancel: Callable[[int], None]) -> None:
        """Made by `Batcher.submit`."""
        self.number, self.prompt_tokens = number, prompt_tokens
        self._cancel = cancel
        self._pieces: SimpleQueue[Piece | EngineError] = SimpleQueue()
        self._over = False

    def __iter__(self) -> Iterator[Piece]:
        """Give the pieces as they come; the last one says why it is the last.

        Raises:
            EngineError: The request failed.
        """
        while not self._over:
            piece = self._pieces.get()
            if isinstance(piece, EngineError):
                self._over = True
                raise piece
            self._over = piece.finish is not None
            yield piece

    def text(self) -> str:
        """Wait for the end and return the text of the pieces that are still to come.

        Raises:
            EngineError: The request failed.
        """
        return "".join(piece.text for piece in self)

    def cancel(self) -> None:
        """Ask for an early end; the last piece says `cancelled` if it was not over by then."""
        self._cancel(self.number)


class Batcher(Closing):
    """Generates many texts at once on one decoder.

    A text with its seed is the same alone and in company. Submitting is thread-safe.

    When the decoder crashes, its texts are read again one by one and go on; one that crashes it
    alone fails. It stops for good only if the decoder does not come back.
    """

    def __init__(
        self,
        decoding: Decoding,
        tokenizer: Tokenizer | None = None,
        *,
        most_running: int = MOST_RUNNING,
        most_waiting: int = 256,
        step_tokens: int = 0,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> None:
        """Take over a decoder that holds no sequence, and start the thread.

        Args:
            decoding: Where sequences grow; the caller closes it after this.
            tokenizer: For prompts and pieces of text.
            most_running: Requests in a step at most.
            most_waiting: Requests that are not over at most, those that run included; more are
                refused.
            step_tokens: Tokens of a step at most; 0 for what the decoder likes best.
            pauses_s: Before each look whether a decoder that crashed works again.

        Raises:
            EngineError: `step_tokens` is not above `most_running`.
        """
        self._scheduler = Scheduler(
            decoding, tokenizer, most_running=most_running, step_tokens=step_tokens
        )
        self._decoding, self._most = decoding, most_waiting
        self._free = decoding.free_tokens
        self._deliver: dict[int, Deliver] = {}
        self._arrived: deque[Request] = deque()
        self._cancelled: deque[int] = deque()
        self._closing = self._is_broken = False
        self._pauses_s, self._tries, self._crashes = pauses_s, 0, 0
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ingot-batcher", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: Prompt, sampling: Sampling | None = None, *, deliver: Deliver | None = None
    ) -> Handle:
        """Let a prompt be continued.

        Args:
            prompt: Text, or token ids.
            sampling: How; the most likely tokens if not given.
            deliver: Called with every piece, or the error that ends them, in the batcher's thread,
                in place of the handle's iterator: for event loops. It must be quick.

        Raises:
            DataError: The prompt does not fit.
            Crowded: Too many requests are under way.
            EngineError: The batcher is closed.
        """
        request = self._scheduler.request(prompt, sampling or Sampling())
        handle = Handle(request.number, len(request.tokens), self._cancel)
        with self._news:
            if self._closing:
                raise EngineError("A batcher must be open to take a prompt; it was closed.")
            if len(self._deliver) >= self._most:
                raise Crowded(
                    f"At most {self._most} requests may be under way; there are as many. Try again "
                    "later, or raise most_waiting."
                )
            self._deliver[request.number] = deliver or handle._pieces.put
            self._arrived.append(request)
            self._news.notify()
        return handle

    @property
    def is_open(self) -> bool:
        """Whether texts grow: not after it was closed or stopped, nor while the decoder fails."""
        return not (self._closing or self._is_broken)

    @property
    def load(self) -> Load:
        """What it has to do; any thread may ask, and nothing waits for the answer."""
        scheduler, under_way = self._scheduler, len(self._deliver)
        running = scheduler.running
        waiting = max(0, under_way - running)
        return Load(running, waiting, self._free, scheduler.preemptions, self._crashes)

    def close(self) -> None:
        """Cancel what is not over, and stop the thread; twice is once."""
        with self._news:
            self._closing = True
            self._news.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _cancel(self, number: int) -> None:
        with self._news:
            self._cancelled.append(number)
            self._news.notify()

    def _run(self) -> None:
        try:
            while self._take_news():
                events = self._step()
                # kept, because an engine that is in a step lets whoever asks wait for its end
                self._free = self._decoding.free_tokens
                self._hand_out(events)
            self._hand_out(self._scheduler.clear())
        except Exception as error:  # the edge of the thread: nobody else would ever hear of it
            log.exception("a batcher stopped")
            self._fail(error)

    def _step(self) -> list[Event]:
        try:
            events = self._scheduler.step()
        except Exception:  # engines raise anything; who is at fault is found out below
            log.exception("the decoder crashed; its texts are read again")
            self._is_broken = True
            events = self._recover()
            self._is_broken = False
            self._crashes += 1
        else:
            self._tries = 0
        return events

    def _recover(self) -> list[Event]:
        """Go on with what was in a crash, one text after another.

        Raises:
            EngineError: The decoder does not come back.
        """
        crashed = self._scheduler.forget()
        events: list[Event] = []
        while self._comes_back():
            if not crashed:
                return events
            events += self._scheduler.again(crashed.pop(0))
            self._tries = 0
        if self._closing:
            return events
        raise EngineError(f"the decoder failed {len(self._pauses_s)} times in a row")

    def _comes_back(self) -> bool:
        """Wait until the decoder works; say no when it does not, or there is no time left."""
        while self._tries < len(self._pauses_s):
            with self._news:
                if self._news.wait_for(lambda: self._closing, self._pauses_s[self._tries]):
                    return False
            self._tries += 1
            if self._scheduler.works():
                return True
        return False

    def _take_news(self) -> bool:
        """Wait for something to do; say whether to go on."""
        with self._news:
            while not (
                self._arrived or self._cancelled or self._closing or self._scheduler.is_busy
            ):
                self._news.wait()
            arrived, cancelled = list(self._arrived), list(self._cancelled)
            self._arrived.clear()
            self._cancelled.clear()
            closing = self._closing
        for request in arrived:
            self._scheduler.add(request)
        for number in cancelled:
            self._hand_out(self._scheduler.cancel(number))
        return not closing

    def _hand_out(self, events: list[Event]) -> None:
        for number, piece in events:
            deliver = self._deliver[number]
            if isinstance(piece, EngineError) or piece.finish is not None:
                with self._news:
                    del self._deliver[number]
            try:
                deliver(piece)
            except Exception:  # the caller's function: the other requests must go on
                log.exception("a piece of request %d could not be delivered", number)
                self._cancel(number)

    def _fail(self, error: Exception) -> None:
        with self._news:
            self._closing = True
            waiting, self._deliver = list(self._deliver.values()), {}
        reason = EngineError(f"The batcher must go on; it stopped: {error}. Open another.")
        for deliver in waiting:
            deliver(reason)
