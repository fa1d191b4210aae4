"""The engine of `ingot-native`: transformer encoders in eight or four bits, without padding."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.core.errors import EngineError, ModelError
from ingot.core.extras import is_installed, need
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime._feeding import check_feeds, closed, make_guard, unsupported
from ingot.runtime.cpu import check_config, thread_count
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode, Precision, Session

if TYPE_CHECKING:
    from ingot_native import Encoder, Packed

PACKED_FILE, INPUTS_FILE = "packed.safetensors", "inputs.json"


class NativeEngine:
    """Runs encoders whose weights are integers of eight or four bits, with a scale per token.

    The graph is recognized by its structure. Products of weights and activations are integers, on
    the widest instructions that the processor grants; norms, softmax and sums stay fp32. Padding is
    cut before anything is computed, so a row costs what its own tokens cost and its answer does not
    depend on the rows beside it.
    """

    name = "native"

    def available(self) -> Availability:
        """Say whether ingot-native is installed and its library can be loaded."""
        if not is_installed("ingot_native"):
            return Availability(ok=False, reason="pip install ingot-native")
        from importlib.metadata import PackageNotFoundError, version

        from ingot_native import NativeError, granted_sets

        try:
            granted_sets()
            return Availability(ok=True, version=version("ingot-native"))
        except (NativeError, PackageNotFoundError) as error:
            return Availability(ok=False, reason=str(error))

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        """Return fp32 for a model that it can run, nothing for any other.

        The products with weights are integers; what is left is computed in fp32.
        """
        try:
            if not _has_integers(model):
                return ()
            _recognized(model)
        except (EngineError, ModelError):
            return ()
        return ("fp32",)

    def open(self, model: Model, config: EngineConfig) -> Session:
        """Take the graph apart, pack its weights and start the threads.

        Raises:
            EngineError: A bad configuration, or no encoder of integers; says what misfits.
        """
        check_config(self.name, config, ("fp32",))
        packed, inputs = _packed(model)
        return NativeSession(model, config, packed, inputs)

    def compile_ahead(self, model: Model, config: EngineConfig, folder: Path) -> None:
        """Write the packed weights, which the next process maps instead of packing again.

        Raises:
            EngineError: As `open`.
        """
        from ingot_native import write_packed

        check_config(self.name, config, ("fp32",))
        packed, inputs = _packed(model)
        write_packed(packed, folder / PACKED_FILE)
        (folder / INPUTS_FILE).write_text(json.dumps(inputs), encoding="utf-8")

    def open_compiled(self, model: Model, config: EngineConfig, folder: Path) -> Session:
        """Map the packed weights.

        Raises:
            EngineError: They are damaged, or of another version.
        """
        from ingot_native import NativeError, read_packed

        check_config(self.name, config, ("fp32",))
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
        self._spec = packed.spec
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
        """Return the layers of every block, in order; those with weights are integer.

        Raises:
            EngineError: The session is closed.
        """
        if not self._encoders:
            closed()
        layers = ("qkv", "o", "gate_up" if self._spec.gated else "up", "down")
        nodes = []
        for block in range(self._spec.layers):
            for name in layers:
                nodes.append(ExecutedNode(f"layers.{block}.{name}", "Linear", is_integer=True))
                if name == "qkv":
                    nodes.append(ExecutedNode(f"layers.{block}.attention", "Attention", False))
        return tuple(nodes)

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


def packed_decoder(model: Model) -> "Packed":
    """Take a language model apart and pack it for a decoder of `ingot_native`.

    Weights keep their integers: eight bits with a scale per output, or four with a scale per group
    of 32 or 128 inputs, whichever the model has.

    Args:
        model: A causal network without a cache in its graph, which gives scores `(batch, length,
            vocab)`.

    Raises:
        MissingExtraError: ingot-native is not installed.
        EngineError: The graph is no transformer, its weights are float, or it is no causal language
            model; says which.
    """
    need("ingot_native", extra="native", what="Decoding on the native engine")
    found = _recognized(model)
    if not (found.spec.causal and found.spec.vocab_head):
        seen = "gives no scores of its vocabulary" if found.spec.causal else "sees later tokens too"
        raise EngineError(
            f"A decoder must be causal and score its vocabulary for every token; this network "
            f"{seen}. Export it with its language-model head, without a cache."
        )
    return _pack(model, found)


def _packed(model: Model) -> "tuple[Packed, dict[str, Any]]":
    found = _recognized(model)
    return _pack(model, found), asdict(found.inputs)


def _pack(model: Model, found: Any) -> "Packed":  # found: models.transformer.recognize.Recognized
    from ingot_native import NativeError, TransformerSpec, pack

    try:
        packed: Packed = pack(TransformerSpec.from_json(found.spec.to_json()), found.tensors)
    except NativeError as error:
        raise unsupported(NativeEngine.name, model.onnx_path, str(error)) from error
    return packed


def _has_integers(model: Model) -> bool:
    """Say at a glance whether any weight is of integers; taking a graph apart takes a second."""
    from onnx import TensorProto

    from ingot.models.onnx_format import read_skeleton

    kinds = {TensorProto.INT8, TensorProto.INT4, TensorProto.UINT8}
    weights = read_skeleton(model.onnx_path).graph.initializer
    return any(w.data_type in kinds and len(w.dims) in {2, 3} for w in weights)


def _recognized(model: Model) -> Any:  # models.transformer.recognize.Recognized
    from ingot.models.onnx_format import read_onnx
    from ingot.models.transformer.recognize import recognize

    try:
        found = recognize(read_onnx(model.onnx_path))
    except ModelError as error:  # not recognized, or not a graph that can be read here
        raise EngineError(str(error)) from error
    floats = [n for n, a in found.tensors.items() if _is_matrix(n, a) and a.dtype.kind == "f"]
    if floats:
        raise EngineError(
            f"native must get weights of integers; got {len(floats)} in float, {floats[0]!r} "
            "first. Apply the method quantize-weights to the model."
        )
    return found


def _is_matrix(name: str, tensor: Array) -> bool:
    return name.startswith("layers.") and name.endswith(".weight") and tensor.ndim == 2
