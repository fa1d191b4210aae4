"""Turn texts and pairs of texts into token arrays with a `tokenizer.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.errors import DataError
from ingot.core.extras import need
from ingot.data.data import Array
from ingot.data.reading import Reading

Texts = Sequence[str] | Sequence[tuple[str, str]]


def encode_texts(
    texts: Texts,
    reading: Reading,
    *,
    tokenizer: Any = None,  # tokenizers.Tokenizer has no types
) -> dict[str, Array]:
    """Return `input_ids` and `attention_mask`, `(rows, longest)` int64.

    A row is a text or a pair that is read as one sequence. Rows are cut at `reading.max_length`
    tokens and padded to the longest row with the tokenizer's own padding token.
    `reading.token_types` adds `token_type_ids`.

    Args:
        texts: One text or pair per row.
        reading: Names the tokenizer and the limit.
        tokenizer: That tokenizer from `open_tokenizer`, for callers who encode again and again.

    Raises:
        DataError: There is no tokenizer, or it cannot be read, or a text is empty.
    """
    tokenizer = tokenizer or open_tokenizer(reading)
    for index, text in enumerate(texts):
        if not (text if isinstance(text, str) else all(text)):
            raise DataError(
                f"Every text must have at least one character; got {text!r} in row {index}. "
                "Fill it in or remove the row."
            )
    encoded = tokenizer.encode_batch(list(texts))
    arrays = {
        "input_ids": np.array([row.ids for row in encoded], dtype=np.int64),
        "attention_mask": np.array([row.attention_mask for row in encoded], dtype=np.int64),
    }
    if reading.token_types:
        arrays["token_type_ids"] = np.array([row.type_ids for row in encoded], dtype=np.int64)
    return arrays


def open_tokenizer(reading: Reading) -> Any:  # tokenizers.Tokenizer has no types
    """Return the tokenizer of a reading, set to cut at its limit and to pad to the longest row.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path, max_length = reading.tokenizer, reading.max_length
    if path is None:
        raise DataError(
            "Texts must come with a tokenizer; got none. Give its tokenizer.json (--tokenizer), "
            "or write tokenizer = 'tokenizer.json' in data.toml."
        )
    if max_length < 1:
        raise DataError(f"max_length must be at least 1 token; got {max_length}. Give 128.")
    tokenizer = read_tokenizer(path)
    own = tokenizer.padding or {}
    tokenizer.enable_truncation(max_length=max_length)
    # A file may fix the padded length; the longest row of the split is enough and cheaper.
    tokenizer.enable_padding(
        pad_id=own.get("pad_id", tokenizer.token_to_id("[PAD]") or 0),
        pad_token=own.get("pad_token", "[PAD]"),
        pad_type_id=own.get("pad_type_id", 0),
    )
    return tokenizer


def read_tokenizer(path: Path) -> Any:  # Any: tokenizers.Tokenizer has no types
    """Return the tokenizer of a `tokenizer.json`, cutting and padding as the file says.

    Raises:
        DataError: It is not there or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"The tokenizer must be a file; {path} is not there. Check the path.")
    library: Any = need("tokenizers", extra="all", what="Reading texts")
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            f"{path.name!r} must be a tokenizer.json; it cannot be read: {error}. "
            "Save it again with tokenizer.save(path)."
        ) from error
    return tokenizer
