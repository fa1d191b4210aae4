"""OpenVINO: the fastest engine on most x86 CPUs, in fp32, bf16 and int8."""

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.core.errors import EngineError
from ingot.core.extras import is_installed, need
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime._feeding import check_feeds, closed, make_guard, unsupported
from ingot.runtime._signal_stack import kept_signal_stack
from ingot.runtime.cpu import check_config, has_bf16, thread_count
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode, Precision, Session
from ingot.runtime.openvino_shapes import FixedShapes, Shapes, Sizes, known_shapes, piece_name

HINT = {"fp32": "f32", "bf16": "bf16"}
INTEGER_TYPES = frozenset({"i8", "u8"})
# A kernel of these types multiplies in the type it reports. Others report the type of their first
# input or output (an Eltwise between integer layers says u8 and adds floats), so they do not count.
PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
NOT_WORK = frozenset({"Const", "Input", "Output", "Reorder"})


class OpenVinoEngine:
    """Runs ONNX on the CPU plug-in, latency first, one stream."""

    name = "openvino"

    def available(self) -> Availability:
        """Say whether openvino is installed."""
        if not is_installed("openvino"):
            return Availability(ok=False, reason='pip install "ingot[openvino]"')
        from importlib.metadata import version

        return Availability(ok=True, version=version("openvino"))

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        """Return fp32, and bf16 where the CPU multiplies it in hardware."""
        del model
        return ("fp32", "bf16") if has_bf16() else ("fp32",)

    def open(self, model: Model, config: EngineConfig) -> Session:
        """Read and compile the graph; once more per bucket or batch size.

        Raises:
            EngineError: A bad configuration, or an operator that OpenVINO cannot run.
        """
        return self._open(model, config, None)

    def compile_ahead(self, model: Model, config: EngineConfig, folder: Path) -> None:
        """Write a blob per compiled graph, named by its shape: `1x128`, or `any`.

        Raises:
            EngineError: As `open`.
        """
        check_config(self.name, config, tuple(HINT))
        for size, shape in (known_shapes(model.signature, config) or {(): {}}).items():
            session = OpenVinoSession(model, config, shape)
            (folder / piece_name(size)).write_bytes(session.export())
            session.close()

    def open_compiled(self, model: Model, config: EngineConfig, folder: Path) -> Session:
        """Open from blobs; a graph that has none is compiled from the model.

        Raises:
            EngineError: As `open`, or a blob from elsewhere.
        """
        return self._open(model, config, folder)

    def _open(self, model: Model, config: EngineConfig, folder: Path | None) -> Session:
        check_config(self.name, config, tuple(HINT))

        def opened(size: Sizes, shapes: Shapes) -> Session:
            blob = folder / piece_name(size) if folder else None
            return OpenVinoSession(
                model, config, shapes, blob.read_bytes() if blob and blob.is_file() else None
            )

        if not known_shapes(model.signature, config):
            return opened((), {})
        return FixedShapes(opened, model.signature, config)


class OpenVinoSession:
    """One compiled graph; each calling thread gets an inference request of its own."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        shapes: Mapping[str, tuple[int | str, ...]],
        blob: bytes | None = None,
    ) -> None:
        openvino = need("openvino", extra="openvino", what="The openvino engine")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": config.streams,
            "INFERENCE_NUM_THREADS": thread_count(config.threads),
            "INFERENCE_PRECISION_HINT": HINT[config.precision],
        }
        self.config = config
        self.signature = model.signature
        self._guard = make_guard(model.signature)
        self._names = [spec.name for spec in model.signature.outputs]
        try:
            core = openvino.Core()
            with kept_signal_stack():
                self._compiled = (
                    core.compile_model(_graph(core, model.onnx_path, shapes), "CPU", settings)
                    if blob is None
                    else core.import_model(io.BytesIO(blob), "CPU", settings)
                )
        except RuntimeError as error:
            raise unsupported(OpenVinoEngine.name, model.onnx_path, str(error)) from error
        self._local: threading.local | _Closed = threading.local()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            EngineError: The inputs do not fit.
        """
        try:
            infer: Any = self._local.infer
        except AttributeError:
            infer = self._local.infer = self._request()
        try:
            self._guard(feeds)
            found = infer(feeds, share_inputs=True).to_tuple()  # a look-up by name takes 3 us
            return dict(zip(self._names, found, strict=True))
        except EngineError:
            raise
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            check_feeds(self.signature, feeds)
            raise EngineError(
                f"openvino must be able to run the model on these inputs; it failed: {error}"
            ) from error

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return the nodes of the compiled graph; constants and layout changes are left out.

        Raises:
            EngineError: The session is closed.
        """
        if self._compiled is None:
            closed()
        nodes = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            kind, precision = _text(facts, "layerType"), _text(facts, "runtimePrecision")
            if kind not in NOT_WORK:
                is_integer = kind in PRODUCTS and precision in INTEGER_TYPES
                nodes.append(ExecutedNode(node.get_friendly_name(), kind, is_integer))
        return tuple(nodes)

    def export(self) -> bytes:
        """Return the compiled graph in OpenVINO's own format.

        Raises:
            EngineError: The session is closed.
        """
        if self._compiled is None:
            closed()
        found: bytes = self._compiled.export_model().getvalue()
        return found

    def close(self) -> None:
        """Free the compiled graph."""
        self._compiled = None
        self._local = _Closed()

    def _request(self) -> Any:  # a bound method of openvino.InferRequest
        compiled = self._compiled
        return compiled.create_infer_request().infer if compiled is not None else closed


def _graph(core: Any, path: Path, shapes: Mapping[str, tuple[int | str, ...]]) -> Any:
    """Return the path, or the graph with the sizes fixed that are numbers (openvino.Model)."""
    if not shapes:
        return path
    graph = core.read_model(path)
    graph.reshape(
        {name: [-1 if isinstance(size, str) else size for size in s] for name, s in shapes.items()}
    )
    return graph


class _Closed:
    infer = staticmethod(closed)


def _text(facts: Any, name: str) -> str:  # openvino.RTMap
    if name not in facts:
        return ""
    value = facts[name]
    return str(getattr(value, "value", value))
