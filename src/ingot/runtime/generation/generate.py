"""generate: one prompt, continued piece by piece."""

from collections.abc import Iterator

from ingot.core.errors import EngineError
from ingot.runtime.generation.decoding import Decoding
from ingot.runtime.generation.request import Piece, Prompt
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.scheduler import Scheduler
from ingot.runtime.generation.text import Tokenizer


def generate(
    decoding: Decoding,
    prompt: Prompt,
    sampling: Sampling | None = None,
    *,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Piece]:
    """Continue a prompt; give every token as soon as it is drawn.

    Stopping early, by leaving the loop, gives back the room in the cache.

    Args:
        decoding: A decoder that holds no sequence, from `open_decoding`.
        prompt: Text, or token ids.
        sampling: How to draw and when to stop; the most likely tokens if not given.
        tokenizer: For prompts that are texts, and for pieces of text.

    Raises:
        DataError: The prompt does not fit.
        EngineError: The engine failed.
    """
    scheduler = Scheduler(decoding, tokenizer, most_running=1)
    request = scheduler.request(prompt, sampling or Sampling())
    scheduler.add(request)
    return _pieces(scheduler)


def _pieces(scheduler: Scheduler) -> Iterator[Piece]:
    try:
        while scheduler.is_busy:
            for _, piece in scheduler.step():
                if isinstance(piece, EngineError):
                    raise piece
                yield piece
    finally:
        scheduler.clear()
