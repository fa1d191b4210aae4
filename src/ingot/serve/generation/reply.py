"""A text on its way to the caller: what was asked, what is written, how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ingot.runtime.generation.request import Piece
from ingot.runtime.generation.text import Tokenizer
from ingot.serve.generation.asking import Ask
from ingot.serve.generation.writer import Text


@dataclass(frozen=True, slots=True)
class Source:
    """Who answers.

    Attributes:
        model: Name of the model.
        version: Its number.
        digest: Of the version.
        tokenizer: Of the model.
        ends: Ids of the tokens that end a text.
    """

    model: str
    version: str
    digest: str
    tokenizer: Tokenizer
    ends: frozenset[int]


@dataclass(slots=True)
class Reply:
    """What is known of one answer.

    Attributes:
        source: Who answers.
        ask: What was asked.
        request_id: Of the request.
        created: UTC seconds since 1970 at which it came.
        text: Where pieces come from.
        fresh: Pieces that were read and are not sent.
        pieces: All that were read.
        tokens: How many tokens they are.
        offset: Characters of the text whose tokens were described.
        status: How it ended; 503 until it has, for whoever is cut off.
    """

    source: Source
    ask: Ask
    request_id: str
    created: int
    text: Text
    fresh: list[Piece] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0
    offset: int = 0
    status: int = 503

    def take(self, pieces: Sequence[Piece]) -> None:
        """Add pieces that were read."""
        self.fresh += pieces
        self.pieces += pieces
        self.tokens += sum(piece.token is not None for piece in pieces)

    def send(self) -> list[Piece]:
        """Return the pieces that are not sent yet, as sent."""
        found, self.fresh = self.fresh, []
        return found

    @property
    def is_over(self) -> bool:
        """Whether the text has come to an end of its own."""
        return bool(self.pieces) and self.pieces[-1].finish in {"stop", "length"}

    @property
    def written(self) -> str:
        """The text."""
        return "".join(piece.text for piece in self.pieces)

    def is_end(self, piece: Piece) -> bool:
        """Say whether a piece is the last because of a token that ends a text."""
        stops = self.ask.sampling.stop_tokens or ()
        return piece.finish == "stop" and piece.token in stops
