"""Decoding: a language model with sequences in it that grow token by token."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.runtime.engine import EngineConfig


class CacheFull(EngineError):
    """The cache of keys and values has no room for the tokens of a step; nothing was changed."""


@runtime_checkable
class Decoding(Protocol):
    """A language model with sequences in it that grow.

    The scores of a token depend on its own sequence only: not on how its tokens were cut into
    steps, nor on the sequences beside it. Not thread-safe.

    Attributes:
        config: The engine that runs it, and how.
        why: Why it is slower than it could be; empty if it is not.
        vocab: Scores in a row.
        positions: Tokens that a sequence may have.
        step_tokens: Tokens of a step beyond which larger steps are hardly faster per token.
    """

    config: EngineConfig
    why: str
    vocab: int
    positions: int
    step_tokens: int

    @property
    def free_tokens(self) -> int:
        """Tokens that the cache still has room for."""
        ...

    def open_sequence(self) -> int:
        """Start an empty sequence and return its number."""
        ...

    def close_sequence(self, sequence: int) -> None:
        """Forget a sequence and give back its room."""
        ...

    def step(self, work: Sequence[tuple[int, Sequence[int]]]) -> Array:
        """Let sequences grow, each by one token or more, and return the scores after the last.

        Args:
            work: Number of a sequence and its new tokens; no sequence twice.

        Returns:
            `(len(work), vocab)` float32.

        Raises:
            CacheFull: There is no room for all of these tokens; nothing was changed.
            EngineError: The engine refused; nothing was changed.
        """
        ...

    def close(self) -> None:
        """Free the memory; twice is once."""
        ...
