"""Tokens to text, piece by piece: never half a character, never a part of a stop string."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.data.texts import read_tokenizer
from ingot.models.ends import ends_of
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
        ends: Ids of the tokens that end a text.
        special: Ids of the tokens that are no text.
    """

    def __init__(self, path: Path, *, ends: Sequence[int] = ()) -> None:
        """Read the file.

        Args:
            path: Of the `tokenizer.json`.
            ends: Ids of the tokens that end a text; those with a name in common use if not given.

        Raises:
            DataError: It is not there or cannot be read.
        """
        self._library: Any = read_tokenizer(path)  # the library has no types
        self._library.no_truncation()
        self._library.no_padding()
        added = self._library.get_added_tokens_decoder().items()
        self.special = frozenset(int(number) for number, token in added if token.special)
        guessed = (self._library.token_to_id(end) for end in _ENDS)
        self.ends = tuple(ends) or tuple(end for end in guessed if end in self.special)

    def encode(self, text: str, *, bare: bool = False) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: The text.
            bare: Without what the tokenizer puts around it.
        """
        return list(self._library.encode(text, add_special_tokens=not bare).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special tokens have none."""
        return str(self._library.decode(list(tokens)))

    def spell(self, token: int) -> str:
        """Return the text of one token alone; that of a special token is its name."""
        return str(self._library.decode([token], skip_special_tokens=False))

    def find(self, name: str) -> int:
        """Return the id of a token by its name, e.g. `</s>`.

        Raises:
            DataError: There is no such token.
        """
        found = self._library.token_to_id(name)
        if found is None:
            known = sorted(self._library.id_to_token(token) for token in self.special)
            raise DataError(f"No token is called {name!r}. {suggest(name, known)}")
        return int(found)


def tokenizer_of(model: Model, path: Path | None = None) -> Tokenizer | None:
    """Return the tokenizer of a model, with the tokens that end its texts; None if it has none.

    Args:
        model: May carry a tokenizer, and how its texts end.
        path: A `tokenizer.json` to use in place of the model's own.

    Raises:
        DataError: The file is not there or cannot be read.
    """
    path = path or model.tokenizer_path
    return None if path is None else Tokenizer(path, ends=ends_of(model).tokens)


def end_tokens(
    model: Model, tokenizer: Tokenizer | None, names: Sequence[str] = ()
) -> tuple[int, ...]:
    """Return the ids of the tokens that end a text.

    Args:
        model: Carries them if it came from a Hugging Face folder.
        tokenizer: Knows them, or finds them by name.
        names: Ids or names that are used instead, e.g. `2` or `</s>`.

    Raises:
        DataError: No token has such a name, or there is no tokenizer to find it.
    """
    if not names:
        return ends_of(model).tokens if tokenizer is None else tokenizer.ends
    return tuple(_end_token(name, tokenizer) for name in names)


def _end_token(name: str, tokenizer: Tokenizer | None) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    if tokenizer is None:
        raise DataError(
            f"A token must be given by its id where there is no tokenizer; got {name!r}. Give the "
            "id, or a tokenizer."
        )
    return tokenizer.find(name)


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
