"""PyTorch, eager or compiled: for networks whose factory the caller has."""

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.core.errors import EngineError
from ingot.core.extras import is_installed, need
from ingot.data.data import Array
from ingot.models.model import Model
from ingot.runtime._feeding import check_feeds, closed
from ingot.runtime.cpu import check_config, has_bf16, thread_count
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode, Precision

if TYPE_CHECKING:
    from torch.nn import Module


class TorchEngine:
    """Rebuilds the network from the caller's factory and the model's weights."""

    def __init__(self, factory: "Callable[[], Module]", *, compiled: bool) -> None:
        """Make an engine for the networks of one factory.

        Args:
            factory: Builds the network untrained.
            compiled: Whether inductor compiles it, with weights frozen into the code.
        """
        self.factory, self.compiled = factory, compiled
        self.name = "torch-compile" if compiled else "torch-eager"

    def available(self) -> Availability:
        """Say whether torch is there, and a C++ compiler if it has to compile."""
        if not is_installed("torch"):
            return Availability(ok=False, reason='pip install "ingot[compress]"')
        if self.compiled and not (shutil.which("g++") or shutil.which("clang++")):
            return Availability(ok=False, reason="torch.compile needs g++ or clang++")
        from importlib.metadata import version

        return Availability(ok=True, version=version("torch"))

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        """Return fp32, and bf16 where the CPU multiplies it in hardware."""
        del model
        return ("fp32", "bf16") if has_bf16() else ("fp32",)

    def open(self, model: Model, config: EngineConfig) -> "TorchSession":
        """Rebuild the network and load its weights.

        Raises:
            EngineError: A bad configuration, or the model has no torch weights.
        """
        check_config(self.name, config, ("fp32", "bf16"))
        if model.weights_path is None:
            raise EngineError(
                f"{self.name} must have torch weights; model {model.name!r} is ONNX only. "
                "Use onnxruntime or openvino."
            )
        return TorchSession(model, config, self.factory, compiled=self.compiled)


class TorchSession:
    """One network in inference mode. The thread count of torch holds for the whole process."""

    def __init__(
        self, model: Model, config: EngineConfig, factory: "Callable[[], Module]", *, compiled: bool
    ) -> None:
        torch = need("torch", extra="compress", what="The torch engine")
        from ingot.models.torch_format import rebuild_module

        torch.set_num_threads(thread_count(config.threads))
        self.config = config
        self._torch = torch
        self.signature = model.signature
        self._module: Any = rebuild_module(model, factory).eval()  # None once closed
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._dtype = dtype
        self._module = self._module.to(dtype=dtype, memory_format=torch.channels_last)
        self._call: Any = self._compile() if compiled else self._module

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, floats as float32.

        Raises:
            EngineError: The inputs do not fit.
        """
        check_feeds(self.signature, feeds)  # torch would run many shapes that the model excludes
        values = [self._tensor(feeds[spec.name]) for spec in self.signature.inputs]
        try:
            with self._torch.inference_mode():
                found = self._call(*values)
        except EngineError:
            raise
        except (RuntimeError, TypeError, KeyError, ValueError, IndexError) as error:
            raise EngineError(
                f"torch must be able to run the model on these inputs; it failed: {error}"
            ) from error
        if isinstance(found, Mapping):  # named as in the signature, in the same order
            found = tuple(found.values())
        outputs = found if isinstance(found, (tuple, list)) else (found,)
        specs = self.signature.outputs
        return {s.name: self._array(v) for s, v in zip(specs, outputs, strict=True)}

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return the leaf modules; inductor does not name its kernels.

        Raises:
            EngineError: The session is closed.
        """
        if self._call is closed:
            closed()
        leaves = [(n, m) for n, m in self._module.named_modules() if not list(m.children())]
        return tuple(ExecutedNode(n, type(m).__name__, is_integer=False) for n, m in leaves)

    def close(self) -> None:
        """Free the network."""
        self._call, self._module = closed, None

    def _compile(self) -> Any:  # a compiled callable
        return self._torch.compile(self._module, options={"freezing": True})

    def _tensor(self, array: Array) -> Any:  # torch.Tensor
        # torch takes no read-only, reversed or unaligned arrays
        tensor = self._torch.from_numpy(np.require(array, requirements=["C", "A", "W"]))
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        return (
            tensor.contiguous(memory_format=self._torch.channels_last)
            if tensor.ndim == 4
            else tensor
        )

    def _array(self, tensor: Any) -> Array:
        value: Array = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        return value
