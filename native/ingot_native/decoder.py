"""Run a packed language model: sequences gain tokens, and each token gets scores."""

import ctypes
import os
from collections.abc import Sequence
from operator import index
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ingot_native.encoder import Ids, joined
from ingot_native.errors import InputError
from ingot_native.handle import Handle, opened
from ingot_native.layout import Packed

CACHE_BITS = (32, 8)
_MOST_TOKENS = 1 << 40


class Decoder:
    """A packed causal language model with a cache of keys and values, ready to run.

    Sequences live on between calls. The scores of a token have the same bits however its sequence
    was cut into steps, whatever else was in them, and on any number of threads. Calls from several
    threads wait for one another. After a fork the child may go on with sequences of its own copy.

    Attributes:
        spec: What it is made of.
        vocab: Scores in a row of the answer.
        positions: Tokens that a sequence can have.
        threads: Threads it runs on, the calling one included.
        isa: Instruction set of its kernels.
    """

    def __init__(
        self,
        packed: Packed | str | os.PathLike[str],
        threads: int = 0,
        *,
        isa: str | None = None,
        cache_tokens: int = 4096,
        cache_bits: int = 32,
    ) -> None:
        """Load the kernels, start the threads and set the cache aside.

        Args:
            packed: What `pack` returned, or a file that `write_packed` wrote: it is mapped, not
                copied.
            threads: 0 for one per granted core; never more than the affinity mask holds.
            isa: One of `granted_sets()`, or None for the fastest.
            cache_tokens: Tokens of all sequences together that there is room for, in pages of 32.
                Memory is used when a sequence first grows into it.
            cache_bits: 32 keeps keys and values as they are; 8 rounds each token's key and value of
                each head to eight bits, in a quarter of the memory.

        Raises:
            PackedFileError: The file is damaged.
            PackError: Tensors do not fit the spec.
            InputError: It is no causal language model, or another argument is out of range.
            LibraryError: The library is missing, or refused: unknown instruction set, no memory.
        """
        self._model = Handle("decoder", "ingot_decoder_free")
        packed = opened(packed)
        self.spec = packed.spec
        if not (self.spec.causal and self.spec.vocab_head):
            raise InputError(
                "A decoder must be a causal language model (spec.causal, spec.vocab_head); got "
                f"causal={self.spec.causal}, vocab_head={self.spec.vocab_head}. "
                "Run it with Encoder."
            )
        if not 1 <= cache_tokens <= _MOST_TOKENS or cache_bits not in CACHE_BITS:
            raise InputError(
                f"cache_tokens must be 1 to {_MOST_TOKENS} and cache_bits one of {CACHE_BITS}; "
                f"got {cache_tokens} and {cache_bits}."
            )
        self._model.create("ingot_decoder_create", packed, threads, isa, cache_tokens, cache_bits)
        self.threads = int(self._model.ask("ingot_decoder_threads"))
        self.isa: str = self._model.ask("ingot_decoder_isa").decode()
        self.vocab = int(self._model.ask("ingot_decoder_width"))
        self.positions = self.spec.positions

    @property
    def free_tokens(self) -> int:
        """Tokens that fit the pages which no sequence has taken."""
        return int(self._model.ask("ingot_free_tokens"))

    def open_sequence(self) -> int:
        """Begin a sequence without tokens; returns its number, which is never used again.

        Raises:
            LibraryError: The decoder is closed.
        """
        number = ctypes.c_int64()
        self._model.call("ingot_sequence_open", ctypes.byref(number))
        return number.value

    def close_sequence(self, sequence: int) -> None:
        """End a sequence and give back its pages.

        Raises:
            InputError: There is no such sequence.
            LibraryError: The decoder is closed.
        """
        self._model.call("ingot_sequence_close", sequence)

    def length(self, sequence: int) -> int:
        """Tokens that a sequence has.

        Raises:
            InputError: There is no such sequence.
            LibraryError: The decoder is closed.
        """
        number = ctypes.c_int64()
        self._model.call("ingot_sequence_length", sequence, ctypes.byref(number))
        return number.value

    def trim(self, sequence: int, length: int) -> None:
        """Forget all tokens of a sequence after the first `length`, and give back their pages.

        Raises:
            InputError: There is no such sequence, or it is shorter.
            LibraryError: The decoder is closed.
        """
        self._model.call("ingot_sequence_trim", sequence, length)

    def step(self, work: Sequence[tuple[int, Ids]], *, every: bool = False) -> NDArray[np.float32]:
        """Give sequences more tokens, and score what may follow.

        Either all sequences gain their tokens, or an error is raised and nothing has changed.

        Args:
            work: Sequences, each once, with the tokens that it gains: a prompt or a part of it, the
                token that was chosen last, or any of these beside one another.
            every: Score what may follow each of these tokens, not only the last of each sequence.

        Returns:
            `(len(work), vocab)`, or with `every` `(tokens, vocab)`, sequence after sequence.

        Raises:
            InputError: A token or a sequence that the decoder does not have, no tokens for a
                sequence, a sequence that would be too long or is there twice.
            CacheFull: The cache has no room: close or trim sequences, and try again.
            LibraryError: The decoder is closed.
        """
        ids, offsets = joined("Token ids", [tokens for _, tokens in work], self.spec.vocab)
        sequences = np.array([index(sequence) for sequence, _ in work], np.int64)
        scores = np.empty((len(ids) if every else len(work), self.vocab), np.float32)
        self._model.call(
            "ingot_decode",
            ids.ctypes.data,
            len(ids),
            offsets.ctypes.data,
            sequences.ctypes.data,
            len(work),
            every,
            scores.ctypes.data,
            scores.size,
        )
        return scores

    def close(self) -> None:
        """Stop the threads and give back the memory, after a call in progress; twice is once."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_model"):
            self.close()
