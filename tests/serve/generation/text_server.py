"""A decoder without weights, a tokenizer of letters, and what reads their answers."""

import json
import threading
import time

from fake_decoder import VOCAB, FakeDecoding, continued
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ingot.models.model import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("input_ids", "int64", ("batch", "sequence")),),
    (TensorSpec("logits", "float32", ("batch", "sequence", VOCAB)),),
)
LETTERS = "ABCDEFGHIJKLMNOPQRST"


def save_tokenizer(folder, words=tuple(LETTERS), special=()):
    """Write a tokenizer whose tokens are these words, in the letters that stand for bytes."""
    library = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True) for name in special])
    library.save(str(folder / "tokenizer.json"))


def text_of(prompt, count):
    """Return what the fake decoder writes after a prompt of letters, without a server."""
    tokens = continued([LETTERS.index(letter) for letter in prompt], count)
    return "".join(LETTERS[token] for token in tokens)


class Gated(FakeDecoding):
    """Takes a step only when it is let, once `is_shut` is set: the first token is for readiness."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gate, self.is_shut = threading.Semaphore(0), False

    def step(self, work):
        if self.is_shut:
            assert self.gate.acquire(timeout=20), "a test must let every step through"
        return super().step(work)

    def shut(self):
        self.is_shut = True
        self.steps.clear()


def events(answer):
    """Return what the events of a stream hold."""
    return [
        row.removeprefix("data: ") if row == "data: [DONE]" else json.loads(row[6:])
        for row in answer.text.split("\n\n")
        if row
    ]


def wait_until(holds, timeout_s=20):
    """Wait for something that another thread does."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)
