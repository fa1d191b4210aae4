"""Decoding on engines without a cache: the whole sequence is read again for every token."""

from collections.abc import Sequence
from itertools import count

import numpy as np

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Model, Signature, TensorSpec
from ingot.models.transformer.positions import longest_sequence
from ingot.runtime.agreement import relative_error
from ingot.runtime.engine import Session

_UNBOUNDED = 1 << 30  # tokens: there is no cache that could be full
# Relative. Networks that round activations by the range of a call stay below, encoders do not.
_LATER_TOKEN_MATTERS = 0.1
_ORDINARY = 3  # a token id: those before it often mean padding, and padding may take no place


class Recomputing:
    """A `Decoding` over any session: correct, and slower the longer the sequence.

    Sequences are run one by one, each without padding, so none depends on the others.
    """

    def __init__(self, session: Session, model: Model, *, why: str = "") -> None:
        """Check that the session is a decoder's.

        Args:
            session: Ready to run; closed with this.
            model: What it runs.
            why: What is said of the speed.

        Raises:
            EngineError: Its inputs are not token ids, its outputs not scores, or the scores of a
                token depend on later ones.
            ModelError: The model's file is missing or broken.
        """
        self.config, self.why = session.config, why
        self._session, self._specs = session, model.signature.inputs
        self._ids, self._output = _ids_of(model.signature), _scores_of(model.signature)
        self._length = _fixed_length(self._specs)
        self.positions = self._length or _UNBOUNDED
        self.step_tokens = _UNBOUNDED  # cutting a prompt would only read its first part twice
        self._rows: dict[int, list[int]] = {}
        self._numbers = count()
        self.vocab = self._probe()
        if self._length is None:
            self.positions = longest_sequence(model.onnx_path, self._ordinary) or _UNBOUNDED

    @property
    def free_tokens(self) -> int:
        """Tokens that there is room for: there is no cache."""
        return _UNBOUNDED

    def open_sequence(self) -> int:
        """Start an empty sequence and return its number."""
        number = next(self._numbers)
        self._rows[number] = []
        return number

    def close_sequence(self, sequence: int) -> None:
        """Forget a sequence."""
        del self._rows[sequence]

    def step(self, work: Sequence[tuple[int, Sequence[int]]]) -> Array:
        """Read every sequence with its new tokens, from the first one on.

        Raises:
            EngineError: The engine refused, for instance a sequence that is too long for it.
        """
        grown = {number: [*self._rows[number], *map(int, tokens)] for number, tokens in work}
        scores = [self._scores(row)[-1] for row in grown.values()]
        self._rows |= grown
        return np.stack(scores).astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _scores(self, row: Sequence[int]) -> Array:
        """Return scores `(tokens, vocab)`."""
        used = len(row)
        if used > self.positions:
            raise EngineError(
                f"A sequence must fit the model, {self.positions} tokens; got {used}. Use a "
                "shorter prompt or fewer tokens."
            )
        feeds = self._feeds(row, self._length or used)
        found: Array = self._session.run(feeds)[self._output][0, :used]
        return found

    def _ordinary(self, length: int) -> dict[str, Array]:
        return self._feeds([min(_ORDINARY, self.vocab - 1)] * length, length)

    def _feeds(self, row: Sequence[int], length: int) -> dict[str, Array]:
        return {spec.name: _feed(spec, row, length) for spec in self._specs}

    def _probe(self) -> int:
        """Return the size of the vocabulary, once it is known that only earlier tokens count."""
        first, second = self._scores([0, 0]), self._scores([0, 1])
        if relative_error({"scores": first[0]}, {"scores": second[0]}) > _LATER_TOKEN_MATTERS:
            raise EngineError(
                "Scores of a token must depend on the tokens before it only; they change with "
                "the token after it. This is no decoder: use ingot predict."
            )
        return int(first.shape[1])


def _ids_of(signature: Signature) -> str:
    names = [spec.name for spec in signature.inputs if _kind(spec) == "ids"]
    odd = [spec.name for spec in signature.inputs if _kind(spec) == ""]
    if len(names) != 1 or odd:
        raise EngineError(
            "A decoder must take token ids, and at most a mask, positions and token types beside; "
            f"got {[spec.name for spec in signature.inputs]}. Export it without a cache of keys "
            "and values."
        )
    return names[0]


def _kind(spec: TensorSpec) -> str:
    """Return what an input is: `ids`, `mask`, `positions`, `types`; empty for anything else."""
    if len(spec.shape) != 2 or "past" in spec.name:
        return ""
    if "mask" in spec.name:
        return "mask"
    if not spec.dtype.startswith("int"):
        return ""
    return next((kind for word, kind in (("position", "positions"), ("type", "types"))
                 if word in spec.name), "ids")  # fmt: skip


def _scores_of(signature: Signature) -> str:
    specs = {spec.name: spec for spec in signature.outputs}
    name = "logits" if "logits" in specs else next(iter(specs))
    if (len(specs) > 1 and name != "logits") or len(specs[name].shape) != 3:
        shown = [f"{spec.name} {list(spec.shape)}" for spec in signature.outputs]
        raise EngineError(
            "A decoder must give scores (batch, sequence, vocab), in its only output or in one "
            f"called 'logits'; got {', '.join(shown)}. Export it with its language-model head."
        )
    return name


def _fixed_length(specs: Sequence[TensorSpec]) -> int | None:
    return next((size for spec in specs if isinstance(size := spec.shape[1], int)), None)


def _feed(spec: TensorSpec, row: Sequence[int], length: int) -> Array:
    """Return one input `(rows, length)`; behind the sequence it is padded with zeros."""
    used, kind = len(row), _kind(spec)
    values = np.zeros(length, spec.dtype)
    if kind == "ids":
        values[:used] = row
    elif kind == "mask":
        values[:used] = 1
    elif kind == "positions":
        values[:] = np.arange(length)
    rows = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    return np.repeat(values[None], rows, axis=0)
