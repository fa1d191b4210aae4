"""What writes texts for a server: one batcher per model, fed from the event loop."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from ingot.core.closing import Closing
from ingot.core.errors import EngineError, IngotError, ServeError
from ingot.core.units import show_number
from ingot.data.data import Array
from ingot.runtime.engine import EngineConfig
from ingot.runtime.generation.batcher import Batcher, Crowded, Handle, Load
from ingot.runtime.generation.decoding import Decoding
from ingot.runtime.generation.drivers import open_decoding
from ingot.runtime.generation.request import Piece, Prompt
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.text import Tokenizer, end_tokens, tokenizer_of
from ingot.serve.endpoint import Endpoint, Generation
from ingot.serve.problems import RequestError, crowded

log = logging.getLogger(__name__)

MOST_UNREAD = 1024  # pieces that a caller may lag behind; what its connection holds comes on top


class Text:
    """A text that is being written, for one reader on an event loop.

    Args:
        loop: Of the reader.

    Attributes:
        most_unread: Pieces that wait for the reader at most, then the text is given up; None for
            a reader that is no slower than the server.
        prompt_tokens: Tokens of its prompt, once it is submitted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.most_unread: int | None = None
        self._pieces: list[Piece] = []
        self._failure: IngotError | None = None
        self._news = asyncio.Event()
        self._handle: Handle | None = None
        self._is_cancelled = False
        self.prompt_tokens = 0

    def begin(self, handle: Handle) -> None:
        """Take the handle of the request, which may have been given up meanwhile."""
        self._handle, self.prompt_tokens = handle, handle.prompt_tokens
        if self._is_cancelled:
            handle.cancel()

    def cancel(self) -> None:
        """Ask for an early end; nothing if it has ended."""
        self._is_cancelled = True
        if self._handle is not None:
            self._handle.cancel()

    def deliver(self, piece: Piece | EngineError) -> None:
        """Take a piece, or what ends them, in the thread of the batcher."""
        with suppress(RuntimeError):  # a loop that is closed has no reader any more
            self._loop.call_soon_threadsafe(self._take, piece)

    async def read(self) -> list[Piece]:
        """Wait for pieces and return all that are there, at least one.

        Raises:
            EngineError: The text failed; everything before was read.
            RequestError: The reader lagged too far behind (408).
        """
        while not self._pieces:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        found, self._pieces = self._pieces, []
        return found

    def _take(self, piece: Piece | EngineError) -> None:
        self._news.set()
        if self._failure is not None:
            return
        if isinstance(piece, EngineError):
            self._failure = piece
        elif self.most_unread is not None and len(self._pieces) >= self.most_unread:
            self._failure = RequestError(
                f"A caller must read what is written; {self.most_unread} pieces wait for this one. "
                "Read faster, or ask for the text as a whole.",
                status=408,
            )
            self.cancel()
        else:
            self._pieces.append(piece)


class Writer(Closing):
    """Writes many texts at once on one decoder.

    It stands where a runner of inferences would: it says whether the model can answer, and refuses
    tensors.

    Attributes:
        tokenizer: Of the model.
        ends: Ids of the tokens that end a text.
        cache_tokens: Room of the cache, in tokens.
        tokens: Tokens that were read in prompts, and written, since the start.
    """

    def __init__(
        self,
        decoding: Decoding,
        tokenizer: Tokenizer,
        settings: Generation,
        *,
        ends: tuple[int, ...],
        most_unread: int = MOST_UNREAD,
    ) -> None:
        """Take over a decoder that holds no sequence; the caller closes it after this.

        Args:
            decoding: Where texts grow.
            tokenizer: For prompts and pieces.
            settings: How many texts, and how large a step.
            ends: Ids of the tokens that end a text.
            most_unread: Pieces that a reader may lag behind.

        Raises:
            EngineError: The settings do not go together.
        """
        self.tokenizer, self.ends = tokenizer, ends
        self.cache_tokens, self.tokens = decoding.free_tokens, [0, 0]
        self._most, self._most_unread = settings.most_waiting, most_unread
        self._batcher = Batcher(
            decoding,
            tokenizer,
            most_running=settings.most_running,
            most_waiting=settings.most_waiting,
            step_tokens=settings.step_tokens,
        )

    def close(self) -> None:
        """End what is being written."""
        self._batcher.close()

    @property
    def ready(self) -> int:
        """1 while texts are written; 0 while the decoder fails, and once the batcher stopped."""
        return int(self._batcher.is_open)

    @property
    def load(self) -> Load:
        """What there is to do."""
        return self._batcher.load

    async def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Refuse tensors.

        Raises:
            RequestError: Always (404).
        """
        del feeds
        raise RequestError(
            "A model that is served to write texts takes texts, not tensors. POST to its path "
            "/generate or /generate_stream, call ModelStreamInfer over gRPC, or serve it without "
            "--generate.",
            status=404,
        )

    def rehearse(self) -> None:
        """Write one token.

        Raises:
            EngineError: The model cannot.
        """
        list(self._batcher.submit([0], Sampling(max_tokens=1, stop_tokens=())))

    def text(self) -> Text:
        """Return a text for `start`, to be read on the running event loop.

        Raises:
            RequestError: As many are under way as may be (429).
        """
        load = self._batcher.load
        if load.running + load.waiting >= self._most:
            raise crowded(self._most)
        return Text(asyncio.get_running_loop())

    def start(
        self, text: Text, prompt: Prompt, sampling: Sampling, *, is_stream: bool = False
    ) -> None:
        """Submit a prompt; from any thread, because long ones take time to read.

        Args:
            text: From `text`.
            prompt: To continue.
            sampling: How.
            is_stream: Whether pieces go to a caller that may be slow.

        Raises:
            RequestError: As many are under way as may be (429).
            DataError: The prompt does not fit.
            EngineError: The batcher has stopped.
        """
        text.most_unread = self._most_unread if is_stream else None
        try:
            text.begin(self._batcher.submit(prompt, sampling, deliver=text.deliver))
        except Crowded:
            raise crowded(self._most) from None
        self.tokens[0] += text.prompt_tokens


def check_generation(endpoint: Endpoint) -> None:
    """Refuse settings that do not go together, before anything is opened.

    Raises:
        ServeError: A setting is out of range, or belongs to inferences.
    """
    settings, label = endpoint.generation, endpoint.version.label
    if settings is None:
        return
    if endpoint.workers or endpoint.batching is not None:
        raise ServeError(
            f"{label} writes texts in the server's own process, many in one step already; got "
            f"{show_number(endpoint.workers, 'worker')} and batching {endpoint.batching}. "
            "Leave both out."
        )
    least = {"cache_tokens": 1, "most_running": 1, "most_waiting": 1, "step_tokens": 0}
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise ServeError(
                f"{name} of {label} must be {low} or more; got {getattr(settings, name)}. Raise it."
            )


def slow_words(endpoint: Endpoint, config: EngineConfig, why: str) -> str:
    """Return what is said of an endpoint whose engine keeps no keys and values.

    Args:
        endpoint: What is served.
        config: The engine that writes.
        why: Why it is not the native engine.
    """
    version = endpoint.version
    return (
        f"{version.label} on {config.label}: every token reads its whole text again: {why}. To "
        "mend it, release a version that was judged on the native engine: ingot compress MODEL "
        "--method quantize-weights --out small; ingot compare MODEL small --data DATA --engine "
        "native --baseline-engine onnxruntime --require 'cosine >= 0.99' --out small; ingot "
        f"release {version.name} small. Weights in float run there with --precision bf16."
    )


def open_writer(endpoint: Endpoint, stack: ExitStack, decoding: Decoding | None = None) -> Writer:
    """Return a writer that has written a token; it is closed with the stack.

    Args:
        endpoint: What is served.
        stack: Closes what is opened.
        decoding: An open decoder to use, which stays the caller's; opened if not given.

    Raises:
        ServeError: The model has no tokenizer, or writes nothing.
        EngineError: No decoder can be opened.
        DataError: An end token has no such name.
    """
    settings, model = endpoint.generation or Generation(), endpoint.model
    label = endpoint.version.label
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ServeError(
            f"A model that writes texts must carry a tokenizer; {label} has none. Load it again "
            "with its tokenizer.json (--tokenizer), and release that."
        )
    ends = end_tokens(model, tokenizer, settings.end_tokens)
    if decoding is None:
        decoding = _open(endpoint, settings)
        stack.callback(decoding.close)
    if decoding.why:
        log.warning(slow_words(endpoint, decoding.config, decoding.why))
    writer = stack.enter_context(Writer(decoding, tokenizer, settings, ends=ends))
    try:
        writer.rehearse()
    except EngineError as error:
        raise ServeError(
            f"A model must write a token before its endpoint is ready; {label} gives: {error} "
            "Try it with: ingot generate."
        ) from error
    return writer


def _open(endpoint: Endpoint, settings: Generation) -> Decoding:
    return open_decoding(
        endpoint.model,
        endpoint.version.config,
        cache_tokens=settings.cache_tokens,
        cache_bits=settings.cache_bits,
        is_fixed=False,
    )
