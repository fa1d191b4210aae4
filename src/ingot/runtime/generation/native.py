"""Decoding on the native engine: keys and values are kept, a token costs one step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.core.errors import EngineError
from ingot.core.extras import need
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime._feeding import unsupported
from ingot.runtime.compiled import kept_file
from ingot.runtime.cpu import thread_count
from ingot.runtime.engine import EngineConfig
from ingot.runtime.generation.decoding import CacheFull
from ingot.runtime.native_engine import (
    PACKED_FILE,
    NativeEngine,
    check_native,
    packed_decoder,
)

if TYPE_CHECKING:
    from ingot_native import Decoder

_STEP_TOKENS = 64  # rows that the engine multiplies at once


class NativeDecoding:
    """A `Decoding` over `ingot_native.Decoder`."""

    def __init__(self, decoder: "Decoder", config: EngineConfig) -> None:
        """Take over a decoder.

        Args:
            decoder: Ready to run; closed with this.
            config: How it was opened.
        """
        native: Any = need("ingot_native", extra="native", what="The native engine")
        self._decoder, self._error, self._full = decoder, native.NativeError, native.CacheFull
        self.config, self.why = config, ""
        self.vocab, self.positions = int(decoder.vocab), int(decoder.positions)
        self.step_tokens = _STEP_TOKENS

    @property
    def free_tokens(self) -> int:
        """Tokens that the cache still has room for."""
        return int(self._decoder.free_tokens)

    def open_sequence(self) -> int:
        """Start an empty sequence and return its number."""
        return int(self._decoder.open_sequence())

    def close_sequence(self, sequence: int) -> None:
        """Forget a sequence and give back its pages."""
        self._decoder.close_sequence(sequence)

    def step(self, work: Sequence[tuple[int, Sequence[int]]]) -> Array:
        """Let sequences grow and return the scores after the last token of each.

        Raises:
            CacheFull: The pages do not suffice; nothing was changed.
            EngineError: The engine refused; nothing was changed.
        """
        try:
            return np.asarray(self._decoder.step(work))
        except self._full as error:
            raise CacheFull(str(error)) from error
        except self._error as error:
            raise EngineError(
                f"native must be able to take the step; it failed: {error}"
            ) from error

    def close(self) -> None:
        """Stop the threads and free weights and cache."""
        self._decoder.close()


def open_native(
    model: Model, config: EngineConfig, *, cache_tokens: int, cache_bits: int
) -> NativeDecoding:
    """Open a model in the native engine; from the packed weights that `ingot compile` kept, if any.

    Raises:
        EngineError: The engine is not installed or has no decoders, the configuration is bad, or
            the model is no decoder with weights that fit the precision; says what misfits.
    """
    check_native(config)
    status = NativeEngine().available()
    if not status.ok:
        raise EngineError(f"ingot-native must be ready; it is not: {status.reason}")
    native: Any = need("ingot_native", extra="native", what="The native engine")
    packed = kept_file(model, config, status, PACKED_FILE) or packed_decoder(
        model, config.precision
    )
    try:
        decoder = native.Decoder(
            packed,
            thread_count(config.threads),
            cache_tokens=cache_tokens,
            cache_bits=cache_bits,
        )
    except native.NativeError as error:
        raise unsupported(NativeEngine.name, model.onnx_path, str(error)) from error
    return NativeDecoding(decoder, config)
