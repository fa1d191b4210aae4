"""What is counted about texts, as Prometheus reads it."""

from typing import TYPE_CHECKING

from ingot.serve.generation.writer import Writer
from ingot.serve.metrics import Metrics, Series

if TYPE_CHECKING:
    from prometheus_client import Histogram  # type: ignore[import-not-found, unused-ignore]

_FIRST_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)


class Figures:
    """Counts of the texts of one model.

    Args:
        metrics: Of the server.
        series: Of the model.
        labels: Name and number of the version.
        writer: What writes; its own counts are read when Prometheus asks.
    """

    def __init__(
        self, metrics: Metrics, series: Series, labels: tuple[str, str], writer: Writer
    ) -> None:
        self._writer = writer
        self._first: Histogram = metrics.histogram(
            "ingot_first_token_seconds", "From arrival to the first token of a text.", _FIRST_S
        ).labels(*labels)
        self._token: Histogram = metrics.histogram(
            "ingot_token_seconds", "Of each token of a text after the first, on average.", _TOKEN_S
        ).labels(*labels)
        watch = series.watch
        watch("ingot_texts_running", "Texts that take part in the steps of the decoder.",
              lambda: writer.load.running, kind="gauge")  # fmt: skip
        watch("ingot_texts_waiting", "Texts that wait for room.",
              lambda: writer.load.waiting, kind="gauge")  # fmt: skip
        watch("ingot_cache_use", "Part of the cache of keys and values that is taken, 0 to 1.",
              lambda: 1 - writer.load.free_tokens / writer.cache_tokens, kind="gauge")  # fmt: skip
        watch("ingot_text_preemptions", "Texts that gave their room to others for a while.",
              lambda: writer.load.preemptions, kind="counter")  # fmt: skip
        watch("ingot_text_crashes", "Times that the decoder crashed and its texts were read again.",
              lambda: writer.load.crashes, kind="counter")  # fmt: skip
        watch("ingot_prompt_tokens", "Tokens of the prompts that were taken.",
              lambda: writer.tokens[0], kind="counter")  # fmt: skip
        watch("ingot_generated_tokens", "Tokens that were written.",
              lambda: writer.tokens[1], kind="counter")  # fmt: skip

    def first(self, seconds: float) -> None:
        """Count the first token of a text."""
        self._first.observe(seconds)

    def written(self, tokens: int) -> None:
        """Count tokens."""
        self._writer.tokens[1] += tokens

    def over(self, tokens: int, seconds: float) -> None:
        """Count a text that is over.

        Args:
            tokens: After the first.
            seconds: They took.
        """
        if tokens > 0:
            self._token.observe(seconds / tokens)
