"""Requests whose shapes are known ahead: OpenVINO compiled once for each of them."""

import threading
from collections.abc import Callable, Mapping

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Signature, TensorSpec
from ingot.runtime.buckets import MASK
from ingot.runtime.engine import EngineConfig, ExecutedNode, Session

Shapes = dict[str, tuple[int | str, ...]]
Sizes = tuple[int, ...]


class FixedShapes:
    """Sends a request to the graph made for its shape, all others to one graph for any shape.

    A graph whose shapes are known chooses its kernels when it is compiled and needs no look-up per
    layer and call. Those are compiled on opening, so no request waits for a compilation; the graph
    for other shapes is compiled when the first of them comes. Each keeps weights of its own in
    memory.
    """

    def __init__(
        self,
        open_for: Callable[[Sizes, Shapes], Session],
        signature: Signature,
        config: EngineConfig,
    ) -> None:
        """Open one session per shape: a row of every bucket, or every number of rows.

        Args:
            open_for: Opens a session for inputs of these shapes; all that are not named stay free.
                The sizes before them are those of `known_shapes`, `()` for any shape.
            signature: What the model takes; see `known_shapes`.
            config: Its buckets, or its batch sizes, are compiled.
        """
        self.config, self.signature = config, signature
        self._open_for = open_for
        self._watched = MASK if has_text_axis(signature) else signature.inputs[0].name
        self._axes = 2 if has_text_axis(signature) else 1
        self._fixed = {k: open_for(k, s) for k, s in known_shapes(signature, config).items()}
        self._rest: Session | None = None
        self._lock = threading.Lock()
        self._is_open = True

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            EngineError: The inputs do not fit, or the session is closed.
        """
        watched = feeds.get(self._watched)
        shape = getattr(watched, "shape", ())
        session = self._fixed.get(shape[: self._axes])
        return (session or self._rest or self._for_the_rest()).run(feeds)

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return what the graph of the first shape executes."""
        return next(iter(self._fixed.values())).executed()

    def close(self) -> None:
        """Close every session."""
        with self._lock:
            self._is_open = False
            for session in (*self._fixed.values(), *([self._rest] if self._rest else [])):
                session.close()

    def _for_the_rest(self) -> Session:
        with self._lock:
            if not self._is_open:
                raise EngineError("A session must be open to run; this one was closed.")
            if self._rest is None:
                self._rest = self._open_for((), {})
            return self._rest


def known_shapes(signature: Signature, config: EngineConfig) -> dict[Sizes, Shapes]:
    """Return the shapes to compile ahead, by the sizes that tell a request apart.

    Of masked text one row per bucket, `(1, length)`; of anything else every batch size, `(rows,)`.
    Empty where the configuration names none, or the model leaves no such size free.
    """
    if has_text_axis(signature):
        return {(1, bucket): single_row(signature, bucket) for bucket in config.buckets}
    if not has_row_axis(signature):
        return {}
    return {
        (rows,): {spec.name: (rows, *spec.shape[1:]) for spec in signature.inputs}
        for rows in config.batch_sizes
    }


def piece_name(sizes: Sizes) -> str:
    """Return what the compiled graph for these sizes is called: `1x128`, or `any` for none."""
    return "x".join(map(str, sizes)) or "any"


def has_text_axis(signature: Signature) -> bool:
    """Say whether the model takes a mask of any number of rows and columns."""
    return any(_is_text(spec) for spec in signature.inputs if spec.name == MASK)


def has_row_axis(signature: Signature) -> bool:
    """Say whether all inputs share a first axis that is free, and no other is."""
    rows = {spec.shape[0] if spec.shape else 0 for spec in signature.inputs}
    rest = [size for spec in signature.inputs for size in spec.shape[1:]]
    is_free = len(rows) == 1 and all(isinstance(size, str) for size in rows)
    return is_free and all(isinstance(size, int) for size in rest)


def single_row(signature: Signature, columns: int) -> Shapes:
    """Return the shapes of inputs that hold one row of so many columns."""
    mask = next(spec for spec in signature.inputs if spec.name == MASK)
    sizes: dict[int | str, int | str] = {mask.shape[0]: 1, mask.shape[1]: columns}
    return {s.name: tuple(sizes.get(axis, axis) for axis in s.shape) for s in signature.inputs}


def _is_text(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and all(isinstance(axis, str) for axis in spec.shape)
