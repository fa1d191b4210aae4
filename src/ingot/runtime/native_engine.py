"""The engine of `ingot-native`: transformers of integer or bf16 weights, without padding."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ingot.core.errors import EngineError, ModelError
from ingot.core.extras import is_installed, need
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime._feeding import check_feeds, closed, make_guard, unsupported
from ingot.runtime.cpu import check_config, thread_count
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode, Precision, Session

if TYPE_CHECKING:
    from ingot.models.transformer.recognize import Recognized
    from ingot_native import Encoder, Packed

PACKED_FILE, INPUTS_FILE = "packed.safetensors", "inputs.json"


class NativeEngine:
    """Runs encoders whose weights are integers of eight or four bits, or are rounded to bf16.

    The graph is recognized by its structure. Products of integer weights are integers, with a scale
    per token; products of float weights are in bf16. Both are on the widest instructions that the
    processor grants; norms, softmax and sums stay fp32. Padding is cut before anything is computed,
    so a row costs what its own tokens cost and its answer does not depend on the rows beside it.
    """

    name = "native"

    def available(self) -> Availability:
        """Say whether ingot-native is installed and its library can be loaded."""
        if not is_installed("ingot_native"):
            return Availability(ok=False, reason="pip install ingot-native")
        from importlib.metadata import PackageNotFoundError, version

        try:
            from ingot_native import NativeError, granted_sets
        except (ImportError, OSError) as error:
            return Availability(ok=False, reason=f"ingot_native cannot be imported: {error}")
        try:
            granted_sets()
            return Availability(ok=True, version=version("ingot-native"))
        except (NativeError, PackageNotFoundError) as error:
            return Availability(ok=False, reason=str(error))

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        """Return what weights in float are computed in; nothing for a model that it cannot run.

        Where all weights are integers, what is left is computed in fp32. Where any is float, those
        are rounded to bf16, and integers beside them stay integers.
        """
        try:
            found = _recognized(model)
        except EngineError:
            return ()
        return ("bf16",) if _floats(found) else ("fp32",)

    def open(self, model: Model, config: EngineConfig) -> Session:
        """Take the graph apart, pack its weights and start the threads.

        Raises:
            EngineError: A bad configuration, or no encoder of such weights; says what misfits.
        """
        check_native(config)
        packed, inputs = _packed(model, config.precision)
        return NativeSession(model, config, packed, inputs)

    def compile_ahead(self, model: Model, config: EngineConfig, folder: Path) -> None:
        """Write the packed weights, which the next process maps instead of packing again.

        Raises:
            EngineError: As `open`.
        """
        from ingot_native import write_packed

        check_native(config)
        packed, inputs = _packed(model, config.precision)
        write_packed(packed, folder / PACKED_FILE)
        (folder / INPUTS_FILE).write_text(json.dumps(inputs), encoding="utf-8")

    def open_compiled(self, model: Model, config: EngineConfig, folder: Path) -> Session:
        """Map the packed weights.

        Raises:
            EngineError: They are damaged, or of another version.
        """
        from ingot_native import NativeError, read_packed

        check_native(config)
        inputs = json.loads((folder / INPUTS_FILE).read_text(encoding="utf-8"))
        try:
            return NativeSession(model, config, read_packed(folder / PACKED_FILE), inputs)
        except NativeError as error:
            raise EngineError(f"{PACKED_FILE} must be as it was written: {error}") from error


class NativeSession:
    """An encoder ready to answer; with several streams, one on each share of the threads."""

    def __init__(
        self, model: Model, config: EngineConfig, packed: "Packed", inputs: Mapping[str, Any]
    ) -> None:
        native = need("ingot_native", extra="native", what="The native engine")
        self.config, self.signature = config, model.signature
        self._guard = make_guard(model.signature)
        self._inputs, self._error = inputs, native.NativeError
        self._per_token = packed.spec.pool == "tokens"
        self._executed = tuple(_layers(packed))
        threads = max(1, thread_count(config.threads) // config.streams)
        self._idle: SimpleQueue[Encoder] = SimpleQueue()
        try:
            self._encoders = [native.Encoder(packed, threads) for _ in range(config.streams)]
        except native.NativeError as error:
            raise unsupported(NativeEngine.name, model.onnx_path, str(error)) from error
        for encoder in self._encoders:
            self._idle.put(encoder)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the answer by name; rows of padding are zero.

        Raises:
            EngineError: The inputs do not fit, or a mask has gaps or padding in front.
        """
        if not self._encoders:
            closed()
        try:
            self._guard(feeds)
            name = self._inputs["output"]
            return {name: self._answer(feeds)}
        except EngineError:
            raise
        except (self._error, TypeError, ValueError, KeyError, AttributeError) as error:
            check_feeds(self.signature, feeds)
            raise EngineError(
                f"native must be able to run the model on these inputs; it failed: {error}"
            ) from error

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return the layers of every block, in order, and which are of integers.

        Raises:
            EngineError: The session is closed.
        """
        if not self._encoders:
            closed()
        return self._executed

    def close(self) -> None:
        """Stop the threads and free the weights; waits for calls that are running."""
        encoders, self._encoders = self._encoders, []
        for encoder in encoders:
            encoder.close()

    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        ids, names = feeds[self._inputs["ids"]], self._inputs
        mask = feeds[names["mask"]] if names["mask"] else np.ones(ids.shape, np.int64)
        types = feeds[names["types"]] if names["types"] else None
        encoder = self._idle.get()
        try:
            found: Array = encoder.encode(ids, mask, types)
        finally:
            self._idle.put(encoder)
        if not self._per_token:
            return found
        padded = np.zeros((*ids.shape, found.shape[1]), found.dtype)
        padded[mask != 0] = found
        return padded


def check_native(config: EngineConfig) -> None:
    """Refuse a configuration that the native engine does not have.

    Raises:
        EngineError: As `check_config`.
    """
    check_config(NativeEngine.name, config, ("fp32", "bf16"), widens_bf16=True)


def packed_decoder(model: Model, precision: Precision = "fp32") -> "Packed":
    """Take a language model apart and pack it for a decoder of `ingot_native`.

    Weights keep their integers: eight bits with a scale per output, or four with a scale per group
    of 32 or 128 inputs, whichever the model has.

    Args:
        model: A causal network without a cache in its graph, which gives scores `(batch, length,
            vocab)`.
        precision: `bf16` where any weight is float, `fp32` where none is.

    Raises:
        MissingExtraError: ingot-native is not installed.
        EngineError: The graph is no transformer, its weights do not fit the precision, or it is no
            causal language model; says which.
    """
    need("ingot_native", extra="native", what="Decoding on the native engine")
    found = _fitting(model, precision)
    if not (found.spec.causal and found.spec.vocab_head):
        seen = "gives no scores of its vocabulary" if found.spec.causal else "sees later tokens too"
        raise EngineError(
            f"A decoder must be causal and score its vocabulary for every token; this network "
            f"{seen}. Export it with its language-model head, without a cache."
        )
    return _pack(model, found, bits=16 if precision == "bf16" else None)


def writes_texts(model: Model, precision: Precision = "fp32") -> bool:
    """Say whether the native engine is here and could write texts with a model as it is.

    Args:
        model: Any.
        precision: As for `packed_decoder`.
    """
    if all(len(spec.shape) != 3 for spec in model.signature.outputs):
        return False  # gives no scores for every token; nothing is read to find that out
    try:
        spec = _fitting(model, precision).spec
    except EngineError:
        return False
    return spec.causal and spec.vocab_head and NativeEngine().available().ok


def _packed(model: Model, precision: Precision) -> "tuple[Packed, dict[str, Any]]":
    found = _fitting(model, precision)
    # An encoder is bound by its arithmetic, not by the size of its weights: eight bits are faster.
    return _pack(model, found, bits=16 if precision == "bf16" else 8), asdict(found.inputs)


def _pack(model: Model, found: "Recognized", bits: Literal[8, 16] | None) -> "Packed":
    from ingot_native import NativeError, TransformerSpec, pack

    try:
        spec = TransformerSpec.from_json(found.spec.to_json())
        packed: Packed = pack(spec, found.tensors, bits=bits)
    except NativeError as error:
        raise unsupported(NativeEngine.name, model.onnx_path, str(error)) from error
    return packed


def _recognized(model: Model) -> "Recognized":
    from ingot.models.onnx_format import read_onnx
    from ingot.models.transformer.recognize import recognize

    try:
        return recognize(read_onnx(model.onnx_path))
    except ModelError as error:  # not recognized, or not a graph that can be read here
        raise EngineError(str(error)) from error


def _fitting(model: Model, precision: Precision) -> "Recognized":
    """Take a model apart whose weights are of the kind that a precision is for."""
    found = _recognized(model)
    floats = _floats(found)
    if floats and precision == "fp32":
        raise EngineError(
            f"native must get weights of integers to run in fp32; got {len(floats)} in float, "
            f"{floats[0]!r} first. Ask for precision bf16, or apply the method quantize-weights."
        )
    if not floats and precision == "bf16":
        raise EngineError(
            "native must get weights in float to run in bf16; all are integers, which stay as they "
            "are. Use precision fp32."
        )
    return found


def _floats(found: "Recognized") -> list[str]:
    tensors = found.tensors
    return [n for n, a in tensors.items() if _is_matrix(n, a) and a.dtype.kind == "f"]


def _is_matrix(name: str, tensor: Array) -> bool:
    return name.startswith("layers.") and name.endswith(".weight") and tensor.ndim == 2


def _layers(packed: "Packed") -> Iterator[ExecutedNode]:
    """Yield the layers of every block, in order."""
    for block in range(packed.spec.layers):
        for name in ("qkv", "o", "up", "down"):
            layer = f"layers.{block}.{name}"
            is_gated = name == "up" and packed.spec.gated
            parts = (layer, f"layers.{block}.gate") if is_gated else (layer,)
            is_integer = not any(f"{part}.bf16" in packed.tensors for part in parts)
            shown = f"layers.{block}.gate_up" if is_gated else layer
            yield ExecutedNode(shown, "Linear", is_integer)
            if name == "qkv":
                yield ExecutedNode(f"layers.{block}.attention", "Attention", False)
