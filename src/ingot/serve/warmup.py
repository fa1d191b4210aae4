"""The first inference: it makes an endpoint ready and decides where small requests run."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from ingot.core.errors import EngineError, ServeError
from ingot.data.data import Array
from ingot.models.model import Signature
from ingot.runtime.engine import EngineConfig, Session

_SIZES = (16, 1, 32, 224)  # what a dynamic axis other than the batch is tried with, in this order
_INLINE_MS = 1.0
_INLINE_CEILING_BYTES = 64 * 1024  # decoding this much JSON takes about a millisecond by itself


def warm_up(
    session: Session,
    signature: Signature,
    config: EngineConfig,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Array], float]:
    """Run one real inference, twice, on inputs made from the signature.

    The first run pays for what engines do late; the second is timed. The batch axis gets size 1,
    other dynamic axes the first bucket, or the first of a few sizes that the model accepts.

    Args:
        session: Open.
        signature: What the model takes.
        config: How it is run.
        clock: Seconds.

    Returns:
        The inputs, and the milliseconds of the second run.

    Raises:
        ServeError: The model answers none of the tried inputs.
    """
    failure: EngineError | None = None
    for size in config.buckets[:1] or _SIZES:
        feeds = sample_feeds(signature, size)
        try:
            session.run(feeds)
            started = clock()
            session.run(feeds)
        except EngineError as error:
            failure = error
            continue
        return feeds, (clock() - started) * 1e3
    raise ServeError(
        f"A model must answer one request before its endpoint is ready; got: {failure}. "
        "Check it with: ingot doctor, ingot inspect MODEL."
    ) from failure


def still_answers(session: Session, feeds: Mapping[str, Array]) -> bool:
    """Say whether a session that just failed on a request answers the warm-up's inputs.

    If it does, the request was at fault: a token beyond the vocabulary, say, which no signature
    forbids. If it does not, the engine is.

    Args:
        session: Open.
        feeds: What it has answered before.
    """
    try:
        session.run(feeds)
    except Exception:  # noqa: BLE001 # engines raise anything; the caller logs what led here
        return False
    return True


def sample_feeds(signature: Signature, size: int) -> dict[str, Array]:
    """Return inputs of the right shapes: zeros for floats, ones for integers and booleans.

    Ones because a mask of zeros divides by zero, and 1 is a token of every vocabulary.

    Args:
        signature: What the model takes.
        size: Size of dynamic axes other than the first of each input.
    """
    feeds: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = tuple(
            axis if isinstance(axis, int) else 1 if position == 0 else size
            for position, axis in enumerate(spec.shape)
        )
        dtype = np.dtype(spec.dtype)
        feeds[spec.name] = np.zeros(shape, dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return feeds


def inline_limit(latency_ms: float, body_bytes: int) -> int:
    """Return the size of request body up to which a request is answered on the event loop.

    Handing a request to a thread costs more than many a tiny model's own work, while the event
    loop must never stand still for long. A body of n bytes is taken to need n / `body_bytes` of
    the warm-up's time, and at least all of it; what stays under 1 ms is answered inline.

    Args:
        latency_ms: Milliseconds the warm-up took.
        body_bytes: Bytes of the warm-up as a request body.

    Examples:
        >>> inline_limit(0.1, 100), inline_limit(2.0, 100)
        (1000, 0)
    """
    if latency_ms >= _INLINE_MS:
        return 0
    return min(_INLINE_CEILING_BYTES, int(body_bytes * _INLINE_MS / max(latency_ms, 1e-3)))
