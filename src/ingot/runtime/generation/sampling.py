"""Which token comes next: from the scores of a decoder to a token, exactly and by seed."""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingot.core.errors import DataError, EngineError
from ingot.data.data import Array

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, and when to stop.

    Scores go through the settings in the order in which they stand here: penalty, temperature,
    `top_k`, `top_p`, `min_p`; each filter sees what the one before it left.

    Attributes:
        max_tokens: Tokens to generate at most.
        repetition_penalty: Scores of tokens that were there already, in the prompt too, are
            divided by it where positive and multiplied where negative; 1 changes nothing.
        temperature: Scores are divided by it; 0 takes the most likely token, always.
        top_k: Only this many most likely tokens; 0 for all.
        top_p: Only the most likely tokens that together have at least this probability; 1 for all.
        min_p: Only tokens with at least this share of the most likely one's probability; 0 for all.
        seed: Of the draws. The same prompt, settings and seed give the same tokens.
        stop_tokens: Ids that end the text; they are not part of it. None for those by which the
            tokenizer ends a text.
        stop: Strings that end the text; they are not part of it.
        logprobs: Whether every token comes with its log-probability, and with how many of the most
            likely ones beside it; None for no log-probabilities. They are the model's own, before
            penalty, temperature and filters.

    References:
        Keskar et al., CTRL, 2019, section 4.1 (the penalty). arXiv:1909.05858
        Holtzman et al., The Curious Case of Neural Text Degeneration, 2020 (top_p).
            arXiv:1904.09751
        Nguyen et al., Turning Up the Heat: Min-p Sampling, 2024. arXiv:2407.01082
    """

    max_tokens: int = 128
    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_tokens: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check the settings before any work starts."""
        _at_least("max_tokens", self.max_tokens, 1)
        _at_least("top_k", self.top_k, 0)
        _at_least("seed", self.seed, 0)
        _at_least("logprobs", 0 if self.logprobs is None else self.logprobs, 0)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        if not all(self.stop):
            raise DataError(
                "Stop strings must have at least one character; got an empty one. Leave it out."
            )


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that was drawn.

    Attributes:
        token: Its id.
        logprob: Natural logarithm of its probability in the model's own distribution; None if it
            was not asked for.
        top: The most likely tokens with their log-probabilities, the likeliest first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the tokens of one sequence; remembers what was there, and its place in the draws."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        """Start a sequence.

        Args:
            sampling: How to draw.
            prompt: Tokens that are there already; the penalty counts them.
        """
        self._sampling = sampling
        self._seen = set(map(int, prompt)) if sampling.repetition_penalty != 1 else set()
        self._draws = np.random.default_rng(sampling.seed)

    def draw(self, scores: Array) -> Drawn:
        """Return the next token.

        Args:
            scores: Of every token `(vocab,)`; minus infinity for a token that cannot be.

        Raises:
            EngineError: A score is NaN or plus infinity, or none is finite.
        """
        given = np.asarray(scores, np.float64)
        check_scores(given)
        sampling = self._sampling
        if sampling.temperature == 0:
            token = int(np.argmax(penalized(given, self._seen, sampling.repetition_penalty)))
        else:
            places, chance = candidates(given, sampling, self._seen)
            token = int(places[pick(chance, float(self._draws.random()))])
        if sampling.repetition_penalty != 1:
            self._seen.add(token)
        if sampling.logprobs is None:
            return Drawn(token)
        logs = log_softmax(given)
        top = _largest(logs, sampling.logprobs)
        return Drawn(token, float(logs[token]), tuple((int(i), float(logs[i])) for i in top))


def probabilities(scores: Array, sampling: Sampling, seen: Set[int] = frozenset()) -> Floats:
    """Return the distribution that is drawn from, `(vocab,)`.

    Ties at the edge of a filter go to the lower id.

    Args:
        scores: Of every token `(vocab,)`, finite or minus infinity.
        sampling: Its temperature must be above 0.
        seen: Tokens that the penalty applies to.

    Examples:
        >>> probabilities(np.log([0.5, 0.3, 0.2]), Sampling(temperature=1.0, top_k=2)).round(3)
        array([0.625, 0.375, 0.   ])
    """
    places, chance = candidates(np.asarray(scores, np.float64), sampling, seen)
    dense = np.zeros(len(scores))
    dense[places] = chance
    return dense


def candidates(scores: Floats, sampling: Sampling, seen: Set[int]) -> tuple[Places, Floats]:
    """Return the tokens that may be drawn, ascending, and their probabilities.

    A vocabulary has tens of thousands of tokens; after a filter, only those it leaves cost time.

    Args:
        scores: As in `probabilities`.
        sampling: As in `probabilities`.
        seen: As in `probabilities`.
    """
    found = penalized(scores, seen, sampling.repetition_penalty)
    places = np.arange(len(found))
    if 0 < sampling.top_k < len(found):
        places = np.sort(_largest(found, sampling.top_k))
        found = found[places]
    chance: Floats = np.exp((found - found.max()) / sampling.temperature)
    chance /= chance.sum()
    if sampling.top_p < 1:
        places, chance = _only(places, chance, np.sort(_nucleus(chance, sampling.top_p)))
    if sampling.min_p > 0:
        kept = np.flatnonzero(chance >= sampling.min_p * chance.max())
        places, chance = _only(places, chance, kept)
    return places, chance


def penalized(scores: Floats, seen: Set[int], penalty: float) -> Floats:
    """Return scores with those of tokens that were seen brought down."""
    if penalty == 1 or not seen:
        return scores
    places = np.fromiter(seen, np.int64, len(seen))
    found, old = scores.copy(), scores[places]
    found[places] = np.where(old > 0, old / penalty, old * penalty)
    return found


def pick(chance: Floats, uniform: float) -> int:
    """Return the place at which the cumulative distribution passes `uniform`, 0 to 1."""
    sums = np.cumsum(chance)
    place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    if place < len(chance):
        return place
    return int(np.flatnonzero(chance)[-1])  # `uniform` was rounded up to the very end


def log_softmax(scores: Floats) -> Floats:
    """Return natural logarithms of the probabilities, `(vocab,)`."""
    shifted = scores - scores.max()
    found: Floats = shifted - math.log(float(np.exp(shifted).sum()))
    return found


def check_scores(scores: Array) -> None:
    """Refuse scores that are no distribution.

    Raises:
        EngineError: One is NaN or plus infinity, or none is finite.
    """
    largest = float(scores.max()) if scores.size else math.nan  # NaN wins over every number
    if not math.isfinite(largest):
        raise EngineError(
            f"Scores of the next token must be numbers; the largest is {largest}. The weights or "
            "the arithmetic of the engine overflow: try another engine or precision."
        )


def _largest(values: Floats, count: int) -> Places:
    """Return the places of the largest values, the largest first, of equal ones the lower place."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, np.intp)
    edge = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= edge)
    return places[np.argsort(-values[places], kind="stable")][:count]


def _nucleus(chance: Floats, top_p: float) -> Places:
    """Return the fewest most likely tokens that have at least `top_p` together."""
    # All tokens below this have less than 1 - top_p together: the nucleus needs none of them.
    places = np.flatnonzero(chance >= (1 - top_p) / len(chance))
    order = places[np.argsort(-chance[places], kind="stable")]
    count = int(np.searchsorted(np.cumsum(chance[order]), top_p, side="left")) + 1
    return order[:count]


def _only(places: Places, chance: Floats, kept: Places) -> tuple[Places, Floats]:
    return places[kept], chance[kept] / chance[kept].sum()


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:  # a request may say anything
        raise DataError(f"{name} must be a whole number, {least} or more; got {value!r}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is not within anything
        raise DataError(f"{name} must be between {low:g} and {high:g}; got {value!r}.")
