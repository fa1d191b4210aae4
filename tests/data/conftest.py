"""A tokenizer of ten words, enough for every text test."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("[PAD]", "[UNK]", "a", "b", "c", "good", "bad", "film", "cat", "dog")


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path
