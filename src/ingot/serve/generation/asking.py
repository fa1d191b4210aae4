"""What callers may ask of a text, in every protocol: read, checked, and turned into a Sampling."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ingot.core.digest import digest_bytes, hex_of
from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.runtime.generation.request import Prompt
from ingot.runtime.generation.sampling import Sampling
from ingot.serve.problems import RequestError

_MOST_STOPS, _LONGEST_STOP = 64, 256  # every new piece is compared with each of them
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for a text.

    Attributes:
        prompt: Text or token ids to continue.
        sampling: How.
        is_stream: Whether pieces are sent as they come.
        model: The model as the caller named it, where the body names it.
        details: Whether tokens and their log-probabilities are answered.
        echo: Whether the answer begins with the prompt.
        usage: Whether a stream ends with the numbers of tokens.
    """

    prompt: Prompt
    sampling: Sampling
    is_stream: bool
    model: str = ""
    details: bool = False
    echo: bool = False
    usage: bool = False


class Knobs(msgspec.Struct, kw_only=True):
    """Settings that every protocol has, with the defaults of none."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] | str = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    seed: int | None = None


KnobsT = TypeVar("KnobsT", bound=Knobs)


# Any below: the values of a JSON object, before they are checked.
def read_object(body: bytes) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        RequestError: It is not (400).
    """
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"The body must be a JSON object; got: {error}. Send one.") from error


def fit(given: Mapping[str, Any], kind: type[KnobsT], status: int) -> KnobsT:
    """Return the settings of a request; null is the same as nothing.

    Args:
        given: By name.
        kind: What they must fit.
        status: Of the refusal.

    Raises:
        RequestError: A name is unknown, or a value is of another type.
    """
    known = kind.__struct_fields__
    for name in given:
        if name not in known:
            raise RequestError(
                f"No parameter is called {name!r}. {suggest(name, known)}", status=status
            )
    kept = {name: value for name, value in given.items() if value is not None}
    try:
        return msgspec.convert(kept, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(
            f"Parameters must have the types of the protocol; got: {error}. Correct the value.",
            status=status,
        ) from error


def sampling_of(
    knobs: Knobs,
    *,
    max_tokens: int,
    logprobs: int | None,
    ends: Collection[int],
    request_id: str,
    status: int,
) -> Sampling:
    """Return how tokens are drawn and when the text ends.

    Args:
        knobs: What the caller set.
        max_tokens: Tokens at most.
        logprobs: As in `Sampling`.
        ends: Ids of the tokens that end a text of this model.
        request_id: Seeds the draws where the caller gives no seed, so that a request can be
            repeated by its id.
        status: Of the refusal.

    Raises:
        RequestError: A value is out of range.
    """
    stops = (knobs.stop,) if isinstance(knobs.stop, str) else tuple(knobs.stop)
    if len(stops) > _MOST_STOPS or any(len(stop) > _LONGEST_STOP for stop in stops):
        raise RequestError(
            f"A text may have {_MOST_STOPS} stop strings of {_LONGEST_STOP} characters; got more. "
            "Leave some out.",
            status=status,
        )
    if logprobs is not None and logprobs > MOST_LOGPROBS:
        raise RequestError(
            f"logprobs must be at most {MOST_LOGPROBS}; got {logprobs}. Ask for fewer.",
            status=status,
        )
    seed = seed_of(request_id) if knobs.seed is None else knobs.seed
    try:
        return Sampling(
            max_tokens=max_tokens,
            repetition_penalty=knobs.repetition_penalty,
            temperature=knobs.temperature,
            top_k=knobs.top_k,
            top_p=knobs.top_p,
            min_p=knobs.min_p,
            seed=seed,
            stop_tokens=(*(() if knobs.ignore_eos else ends), *knobs.stop_token_ids),
            stop=stops,
            logprobs=logprobs,
        )
    except DataError as error:
        raise RequestError(str(error), status=status) from error


def seed_of(request_id: str) -> int:
    """Return the seed of a request that names none.

    Examples:
        >>> seed_of("a7") == seed_of("a7") != seed_of("a8")
        True
    """
    return int(hex_of(digest_bytes(request_id.encode()))[:15], 16)
