"""One row of text at a time: OpenVINO compiled once per bucket, where every shape is known."""

import threading
from collections.abc import Callable, Mapping

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Signature, TensorSpec
from ingot.runtime.buckets import MASK
from ingot.runtime.engine import EngineConfig, ExecutedNode, Session

Shapes = dict[str, tuple[int | str, ...]]


class BucketedSession:
    """Sends a single row as wide as a bucket to the graph made for it, the rest to one for all.

    A graph whose shapes are known chooses its kernels when it is compiled and needs no look-up per
    layer and call. Every bucket is compiled on opening, so no request waits for a compilation;
    the graph for other shapes is compiled when the first of them comes. Each keeps weights of its
    own in memory.
    """

    def __init__(
        self, open_for: Callable[[Shapes], Session], signature: Signature, config: EngineConfig
    ) -> None:
        """Open one session per bucket.

        Args:
            open_for: Opens a session for inputs of these shapes; all that are not named stay free.
            signature: What the model takes; it has a mask (see `has_text_axis`).
            config: Its buckets are compiled.
        """
        self.config, self.signature = config, signature
        self._open_for = open_for
        self._single = {b: open_for(single_row(signature, b)) for b in config.buckets}
        self._rest: Session | None = None
        self._lock = threading.Lock()
        self._is_open = True

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            EngineError: The inputs do not fit, or the session is closed.
        """
        mask = feeds.get(MASK)
        if mask is not None and mask.ndim == 2 and len(mask) == 1:
            session = self._single.get(mask.shape[1])
            if session is not None:
                return session.run(feeds)
        return (self._rest or self._for_the_rest()).run(feeds)

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return what the graph of the first bucket executes."""
        return self._single[self.config.buckets[0]].executed()

    def close(self) -> None:
        """Close every session."""
        with self._lock:
            self._is_open = False
            for session in (*self._single.values(), *([self._rest] if self._rest else [])):
                session.close()

    def _for_the_rest(self) -> Session:
        with self._lock:
            if not self._is_open:
                raise EngineError("A session must be open to run; this one was closed.")
            if self._rest is None:
                self._rest = self._open_for({})
            return self._rest


def has_text_axis(signature: Signature) -> bool:
    """Say whether the model takes a mask of any number of rows and columns."""
    return any(_is_text(spec) for spec in signature.inputs if spec.name == MASK)


def single_row(signature: Signature, columns: int) -> Shapes:
    """Return the shapes of inputs that hold one row of so many columns."""
    mask = next(spec for spec in signature.inputs if spec.name == MASK)
    sizes: dict[int | str, int | str] = {mask.shape[0]: 1, mask.shape[1]: columns}
    return {s.name: tuple(sizes.get(axis, axis) for axis in s.shape) for s in signature.inputs}


def _is_text(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and all(isinstance(axis, str) for axis in spec.shape)
