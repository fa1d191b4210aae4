"""Tokens to text, piece by piece: never half a character, never a part of a stop string."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.data.texts import read_tokenizer
from ingot.models.model import Model

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for bytes that are no character
_CONTEXT = 8  # tokens of the prompt that the text of the first new one may depend on
# How decoders on the public hubs call the token that ends a text. A `tokenizer.json` lists special
# tokens, but does not say which of them this is.
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>",
         "<end_of_turn>", "<|end|>")  # fmt: skip


class Tokenizer:
    """Text to token ids and back, from a `tokenizer.json`.

    Attributes:
        ends: Ids of the special tokens that end a text, known by the names in common use; empty if
            it has none of them.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataError: It is not there or cannot be read.
        """
        self._library: Any = read_tokenizer(path)  # the library has no types
        self._library.no_truncation()
        self._library.no_padding()
        special = {t.content for t in self._library.get_added_tokens_decoder().values()
                   if t.special}  # fmt: skip
        self.ends = tuple(int(self._library.token_to_id(end)) for end in _ENDS if end in special)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with what the tokenizer puts around it."""
        return list(self._library.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special tokens have none."""
        return str(self._library.decode(list(tokens)))


def tokenizer_of(model: Model) -> Tokenizer | None:
    """Return the tokenizer that a model carries, or None."""
    path = model.tokenizer_path
    return None if path is None else Tokenizer(path)


class TextStream:
    """The text of tokens that come one by one.

    What is given out is never taken back: bytes that are no whole character yet, and characters
    that a stop string may begin with, are held until more is known.

    Attributes:
        stopped: Whether a stop string was found; nothing comes after it.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, prompt: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        """Start a text.

        Args:
            tokenizer: None gives no text.
            prompt: Tokens before the first one; they are not given out.
            stop: Strings that end the text.
        """
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        # Tokens from `_start` on are decoded together: those before `_read` for what they do to
        # the text of the next one (its leading space), those after it because they are new.
        self._tokens = list(prompt[-_CONTEXT:])
        self._start, self._read, self._given = 0, len(self._tokens), 0
        self._held = ""  # read, but a stop string may begin with it
        self.stopped = False
        if tokenizer is not None and self._tokens:
            self._given = len(tokenizer.decode(self._tokens).rstrip(_UNREADABLE))

    def add(self, token: int) -> str:
        """Return the text that a token makes certain; often none, sometimes of tokens before it."""
        if self._tokenizer is None or self.stopped:
            return ""
        self._tokens.append(token)
        found = self._tokenizer.decode(self._tokens[self._start :])
        sure = found.rstrip(_UNREADABLE)
        new, self._given = sure[self._given :], max(self._given, len(sure))
        if new and sure == found:
            self._start, self._read = self._read, len(self._tokens)
            self._given = len(self._tokenizer.decode(self._tokens[self._start :]))
        return self._without_stop(new)

    def end(self) -> str:
        """Return what was held back, once no token comes any more."""
        if self._tokenizer is None or self.stopped:
            return ""
        rest = self._tokenizer.decode(self._tokens[self._start :])[self._given :]
        self._given += len(rest)
        text, held = self._without_stop(rest), self._held
        self._held = ""
        return text + held

    def _without_stop(self, new: str) -> str:
        text = self._held + new
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        sure, self._held = text[: len(text) - kept], text[len(text) - kept :]
        return sure


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text a stop string begins with."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
