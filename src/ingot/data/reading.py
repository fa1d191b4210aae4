"""How a source is read: which column is what, how texts become tokens and pixels a tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingot.data.pixels import ImageSpec


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read one source; `None` and empty mean: guess.

    Attributes:
        task: What the targets mean.
        columns: Role -> column: `text`, `text_b`, `target`, `file`, or an input name.
        tokenizer: A `tokenizer.json`, for texts.
        max_length: Longest row in tokens.
        token_types: Also give `token_type_ids`.
        image: How pixels become a tensor.
        index: Table of labels beside a zip of images.
    """

    task: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Path | None = None
    max_length: int = 128
    token_types: bool = False
    image: "ImageSpec | None" = None
    index: Path | None = None
