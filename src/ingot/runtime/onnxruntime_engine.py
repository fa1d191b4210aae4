"""ONNX Runtime: the default engine, everywhere."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.core.errors import EngineError
from ingot.core.extras import is_installed
from ingot.data.data import Array
from ingot.models.model import DATA_FILE, Model, Signature
from ingot.runtime._feeding import check_feeds, closed, make_guard, unsupported
from ingot.runtime.cpu import check_config, thread_count
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode, Precision

# Kernels whose products are int8, by the names in ONNX Runtime's optimized graphs.
INTEGER_KERNELS = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention",
    "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv",
    "QLinearGlobalAveragePool", "QLinearMatMul", "QLinearMul", "QOrderedMatMul",
})  # fmt: skip

_WEIGHTS_BESIDE = "session.optimized_model_external_initializers_file_name"
SILENT = 4  # only fatal messages: a refused input is an EngineError, not a line on stderr


class OnnxRuntimeEngine:
    """Runs ONNX on the CPU in fp32, and the integer parts of a quantized model as integers."""

    name = "onnxruntime"

    def available(self) -> Availability:
        """Say whether onnxruntime is installed."""
        if not is_installed("onnxruntime"):
            return Availability(ok=False, reason="pip install onnxruntime")
        from importlib.metadata import version

        return Availability(ok=True, version=version("onnxruntime"))

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        """Return fp32: its CPU kernels have no other float type that is faster."""
        del model
        return ("fp32",)

    def open(self, model: Model, config: EngineConfig) -> "OnnxRuntimeSession":
        """Load and optimize the graph.

        Raises:
            EngineError: A bad configuration, or an operator that ONNX Runtime cannot run.
        """
        check_config(self.name, config, ("fp32",))
        return OnnxRuntimeSession(model, config)


class OnnxRuntimeSession:
    """One loaded graph. ONNX Runtime's own `run` is thread-safe."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = thread_count(config.threads) // config.streams
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        self.config = config
        self.signature: Signature = model.signature
        self._guard = make_guard(model.signature)
        self._path: Path = model.onnx_path
        self._names = [spec.name for spec in model.signature.outputs]
        session = _open(self._path, options)
        self._run: Any = session.run  # a bound method of an untyped library

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            EngineError: The inputs do not fit.
        """
        names = self._names
        try:
            self._guard(feeds)
            return dict(zip(names, self._run(names, feeds), strict=True))
        except EngineError:
            raise
        except Exception as error:  # the library raises bare pybind exceptions
            check_feeds(self.signature, feeds)
            raise EngineError(
                f"onnxruntime must be able to run the model on these inputs; it failed: {error}"
            ) from error

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return the nodes of the optimized graph, as ONNX Runtime writes it out.

        Raises:
            EngineError: The session is closed.
        """
        if self._run is closed:
            closed()
        import onnx
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # the graph does not depend on it
            options.log_severity_level = SILENT
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            if self._path.with_name(DATA_FILE).is_file():  # too large for one protobuf message
                options.add_session_config_entry(_WEIGHTS_BESIDE, DATA_FILE)
            _open(self._path, options)
            graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return tuple(
            ExecutedNode(node.name, node.op_type, node.op_type in INTEGER_KERNELS)
            for node in graph.node
        )

    def close(self) -> None:
        """Free the session."""
        self._run = closed


def _open(path: Path, options: Any) -> Any:  # SessionOptions, InferenceSession
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises bare pybind exceptions
        raise unsupported("onnxruntime", path, str(error)) from error
