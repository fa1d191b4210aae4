"""A decoder without weights: scores are drawn from a seed that the tokens of a sequence make."""

import zlib

import numpy as np

from ingot.core.errors import EngineError
from ingot.runtime.engine import EngineConfig
from ingot.runtime.generation.decoding import CacheFull

VOCAB = 20


def scores_after(tokens):
    """Return what the fake gives after these tokens; tests compute with it, too."""
    seed = zlib.crc32(np.array(tokens, np.int64).tobytes())
    return np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)


def continued(prompt, count):
    """Return the likeliest continuation, one token after another."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(scores_after(tokens))))
    return tokens[len(prompt) :]


class FakeDecoding:
    """Keeps tokens in pages like the real one, refuses all or nothing, and notes every step."""

    def __init__(self, *, pages=1000, page=4, positions=100, step_tokens=8, poison=()):
        self.config, self.why = EngineConfig("fake"), ""
        self.vocab, self.positions, self.step_tokens = VOCAB, positions, step_tokens
        self.pages, self.page, self.poison = pages, page, set(poison)
        self.rows, self.opened, self.steps, self.is_closed = {}, 0, [], False

    def _used(self, extra=()):
        grown = {number: len(row) for number, row in self.rows.items()}
        for number, tokens in extra:
            grown[number] += len(tokens)
        return sum(-(-length // self.page) for length in grown.values())

    @property
    def free_tokens(self):
        return (self.pages - self._used()) * self.page

    def open_sequence(self):
        self.opened += 1
        self.rows[self.opened] = []
        return self.opened

    def close_sequence(self, sequence):
        del self.rows[sequence]

    def step(self, work):
        numbers = [number for number, _ in work]
        assert len(set(numbers)) == len(numbers), "a sequence twice"
        assert all(len(tokens) for _, tokens in work), "a sequence without tokens"
        if any(self.poison & set(tokens) for _, tokens in work):
            raise EngineError("a token is poisoned")
        if self._used(work) > self.pages:
            raise CacheFull("no page is free")
        for number, tokens in work:
            self.rows[number] += [int(token) for token in tokens]
            assert len(self.rows[number]) <= self.positions
        self.steps.append({number: len(tokens) for number, tokens in work})
        return np.stack([scores_after(self.rows[number]) for number in numbers])

    def close(self):
        self.is_closed = True
