"""One text that is being generated: what was asked, what is there, and the next piece of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ingot.core.errors import DataError
from ingot.data.data import Array
from ingot.runtime.generation.sampling import Sampler, Sampling
from ingot.runtime.generation.text import TextStream, Tokenizer

Finish = Literal["stop", "length", "cancelled"]
Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to a text.

    Attributes:
        token: Its id; None if no token was drawn, because the request was cancelled.
        text: What became certain of the text: whole characters, perhaps none, perhaps of tokens
            before. Empty without a tokenizer.
        logprob: Log-probability of the token, where it was asked for.
        top: The most likely tokens with their log-probabilities, where they were asked for.
        finish: Why this is the last piece: `stop` for a stop token or string, `length` for
            `max_tokens` or the model's or the cache's limit, `cancelled`; None before.
    """

    token: int | None
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a prompt must fit.

    Attributes:
        vocab: Token ids are below it.
        tokens: The longest sequence.
    """

    vocab: int
    tokens: int


class Request:
    """A text under way.

    Attributes:
        number: Requests that came earlier have lower ones.
        tokens: The prompt and what was generated.
        read: How many of them the decoder holds.
        sequence: The decoder's number of the sequence; None while it holds none.
    """

    def __init__(
        self,
        number: int,
        prompt: Prompt,
        sampling: Sampling,
        *,
        tokenizer: Tokenizer | None,
        limits: Limits,
    ) -> None:
        """Check a request.

        Args:
            number: Of the request.
            prompt: Text, or token ids.
            sampling: How to go on.
            tokenizer: For prompts that are texts, and for pieces of text.
            limits: What the prompt must fit.

        Raises:
            DataError: The prompt is empty, too long, has an unknown id, or is a text and there is
                no tokenizer.
        """
        self.number = number
        self.tokens = _tokens_of(prompt, tokenizer)
        _check(self.tokens, limits)
        if sampling.stop and tokenizer is None:
            raise DataError(
                "Stop strings must come with a tokenizer; the model carries none. Use stop_tokens."
            )
        ends = () if tokenizer is None else tokenizer.ends
        self._ends = frozenset(ends if sampling.stop_tokens is None else sampling.stop_tokens)
        # The last token of a text is never read, so it needs no place.
        self._longest = min(len(self.tokens) + sampling.max_tokens, limits.tokens + 1)
        self._sampler = Sampler(sampling, self.tokens)
        self._text = TextStream(tokenizer, self.tokens, sampling.stop)
        self.read = 0
        self.sequence: int | None = None

    @property
    def unread(self) -> int:
        """Tokens that the decoder has not read yet; at least 1 while the text goes on."""
        return len(self.tokens) - self.read

    def grow(self, scores: Array) -> Piece:
        """Draw the next token.

        Args:
            scores: After the last token `(vocab,)`.

        Raises:
            EngineError: The scores are no distribution.
        """
        drawn = self._sampler.draw(scores)
        self.tokens.append(drawn.token)
        finish: Finish | None = None
        if drawn.token in self._ends:
            text, finish = self._text.end(), "stop"
        else:
            text = self._text.add(drawn.token)
            if not self._text.stopped and len(self.tokens) >= self._longest:
                text, finish = text + self._text.end(), "length"
            finish = "stop" if self._text.stopped else finish
        return Piece(drawn.token, text, drawn.logprob, drawn.top, finish)


def _tokens_of(prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    if not isinstance(prompt, str):
        return [int(token) for token in prompt]
    if tokenizer is None:
        raise DataError(
            "A prompt that is text must come with a tokenizer; the model carries none. Give token "
            "ids (--tokens), or load the model with its tokenizer.json (--tokenizer)."
        )
    return tokenizer.encode(prompt)


def _check(tokens: Sequence[int], limits: Limits) -> None:
    if not 1 <= len(tokens) <= limits.tokens:
        raise DataError(
            f"A prompt must have 1 to {limits.tokens} tokens, what the model and its cache take; "
            f"got {len(tokens)}. Change it, or open the model with a larger cache."
        )
    odd = next((token for token in tokens if not 0 <= token < limits.vocab), None)
    if odd is not None:
        raise DataError(
            f"Token ids must be between 0 and {limits.vocab - 1}; got {odd}. Use the tokenizer "
            "that the model was trained with."
        )
