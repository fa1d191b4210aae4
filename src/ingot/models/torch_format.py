"""Torch networks: built by the caller's factory, filled with weights, exported to ONNX once."""

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from ingot.core.errors import ModelError
from ingot.core.extras import need
from ingot.core.names import suggest
from ingot.data.data import Array
from ingot.models._export import export
from ingot.models._weights import read_weights
from ingot.models.model import WEIGHTS_FILE, Model, Signature

if TYPE_CHECKING:
    import torch

Factory = Callable[[], "torch.nn.Module"]
_SHOWN = 5  # names of keys in one message; more do not help anybody
_PREFIX = "module."  # what DataParallel puts before every name


def find_factory(label: str) -> Factory:
    """Import `package.module:function` and return the function. The label is the caller's word.

    Raises:
        ModelError: The module or the function is not there, or it cannot be called.
    """
    where, _, what = label.partition(":")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The factory {label!r} must be importable; {error}. Run from the folder that holds "
            "it, install its package, or set PYTHONPATH."
        ) from error
    found = getattr(module, what, None)
    if not callable(found):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ModelError(
            f"The factory {label!r} must be a function of {where}; got {type(found).__name__}. "
            + suggest(what, public)
        )
    return found  # type: ignore[no-any-return] # a callable of the caller's module


def build_module(factory: str | Factory, weights: Path | None) -> "torch.nn.Module":
    """Return the network of a factory with its weights, in evaluation mode, on the CPU.

    Args:
        factory: Label `package.module:function` or the function itself; called without arguments.
        weights: `.safetensors`, `.npz`, or a state dict (`.pt`, `.pth`, `.th`, `.bin`, `.ckpt`);
            None keeps the weights that the factory set.

    Raises:
        ModelError: The factory gives no module, or the weights do not fit it exactly.
    """
    torch = need("torch", extra="compress", what="A torch factory")
    build = find_factory(factory) if isinstance(factory, str) else factory
    module = build()
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"A factory must return a torch.nn.Module; got {type(module).__name__}. Return "
            "the network."
        )
    if weights is not None:
        _fill(module, read_weights(weights), weights.name)
    return module.eval().cpu()


def _fill(module: Any, state: dict[str, Any], name: str) -> None:
    have = module.state_dict()
    if state and all(key.startswith(_PREFIX) for key in state) and not set(state) & set(have):
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    # Counters of batch norms are not used in inference and old checkpoints lack them.
    missing = [k for k in have if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in have]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(have[k].shape)}"
        for k in have
        if k in state and tuple(state[k].shape) != tuple(have[k].shape)
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''}"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if problems:
        raise ModelError(
            f"Weights in {name} must fit the factory's network key by key; {'; '.join(problems)}. "
            "Pass the factory that these weights were trained with."
        )
    module.load_state_dict(state, strict=False)


def rebuild_module(model: Model, factory: Factory) -> "torch.nn.Module":
    """Return the torch network of a stored model: the caller's factory with the stored weights.

    Raises:
        ModelError: The model has no torch weights, or they do not fit the factory.
    """
    if model.weights_path is None:
        raise ModelError(
            f"Rebuilding a torch network needs {WEIGHTS_FILE}; {model.name} was loaded from "
            f"{model.lineage.source} and has none. Load it with "
            "load_model('package.module:function', "
            "weights=...)."
        )
    return build_module(factory, model.weights_path)


@contextlib.contextmanager
def weights_file(module: "torch.nn.Module") -> Iterator[Path]:
    """Give the path of a temporary `weights.safetensors` with the network's state."""
    from safetensors.torch import save_file

    # clone(): safetensors refuses tensors that share memory, which tied weights do
    state = {k: v.detach().cpu().clone().contiguous() for k, v in module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS_FILE
        save_file(state, path)
        yield path


def example_for(signature: Signature, *, batch: int = 2, sequence: int = 8) -> dict[str, Array]:
    """Return inputs that fit a signature: floats from a fixed normal, ones for integers.

    Args:
        signature: What the model takes.
        batch: Size for a dynamic first axis.
        sequence: Size for every other dynamic axis.
    """
    rng = np.random.default_rng(0)
    example: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = tuple(
            size if isinstance(size, int) else (batch if axis == 0 else sequence)
            for axis, size in enumerate(spec.shape)
        )
        dtype = np.dtype(spec.dtype)
        example[spec.name] = (
            rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
        )
    return example


def example_from_factory(label: str) -> dict[str, Array]:
    """Return `example_inputs()` of the factory's module as arrays.

    Raises:
        ModelError: The module has no such function, or it does not give inputs by name.
    """
    module = importlib.import_module(label.partition(":")[0])
    give = getattr(module, "example_inputs", None)
    if not callable(give):
        raise ModelError(
            f"Exporting {label} needs example inputs; got none. Give some by name (--example), or "
            f"define example_inputs() in {module.__name__}."
        )
    found = give()
    if not isinstance(found, Mapping):
        raise ModelError(
            f"example_inputs() of {module.__name__} must return inputs by name; got "
            f"{type(found).__name__}. Return a dict of input name to tensor or array."
        )
    return {name: np.asarray(value) for name, value in found.items()}


def export_module(
    module: "torch.nn.Module", example: Mapping[str, Any], *, dynamic: bool = True
) -> onnx.ModelProto:
    """Return the network as an ONNX graph (opset 18) that gives the same numbers.

    The first axis of every input becomes `batch`, the second axis of integer inputs of rank two
    becomes `sequence` (dropped again where the network fixes it). The graph is run beside the
    network at batch 1, 2 and 5 before it is returned.

    Args:
        module: The network; exported in evaluation mode.
        example: Inputs by name, rows first: by parameter name of `forward`, else in its order.
        dynamic: Keep these axes dynamic.

    Raises:
        ModelError: torch cannot export it with a dynamic batch, or the graph differs from the
            network by more than 1e-4 of the largest output.
    """
    need("onnxscript", extra="compress", what="Exporting a torch network")
    if not example:
        raise ModelError(
            "Exporting needs at least one example input; got none. Give one (--example)."
        )
    return export(module.eval(), example, dynamic=dynamic)
