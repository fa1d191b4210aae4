"""The contract that every compression method keeps, as one function."""

import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx

from ingot.compress.method import Method
from ingot.compress.recipe import Factory, Recipe, make_method, restrict
from ingot.compress.run import Run
from ingot.core.digest import canonical_json
from ingot.data.data import Data
from ingot.models.feeds import feeds_for
from ingot.models.model import DATA_FILE, ONNX_FILE, Model, TensorSpec
from ingot.models.network import OnnxNetwork
from ingot.models.onnx_format import open_onnx, read_onnx
from ingot.models.store import folder_digest, open_model, store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session

_SHAPE_BYTES = 128  # shapes and axes stay in the graph, as in large models


def check_method(
    method: Method, model: Model, data: Data, *, factory: Factory | None = None
) -> Model:
    """Check that a method keeps the contract, on a small model and data of its author's choice.

    What is checked: it is a frozen dataclass with a docstring; it survives the trip through TOML;
    equal settings have equal digests; it reads only what it declares; it leaves the given model
    alone; the same seed gives the same bytes; the result opens, has the same inputs and outputs,
    and answers with finite numbers; if it streams, weights on disk become the same constants.

    Args:
        method: The method to check.
        model: A model it can change.
        data: Data with the splits it needs.
        factory: Builds the torch network of `model`, for methods that edit torch modules.

    Returns:
        The changed model.

    Raises:
        AssertionError: The first rule that is broken, in words.
    """
    _check_value(method)
    before = folder_digest(model.path)
    recipe = Recipe((method,))
    first = recipe.apply(model, data, factory=factory, seed=0)
    second = recipe.apply(model, data, factory=factory, seed=0)
    assert folder_digest(model.path) == before, "apply must not change the model it was given"
    assert first.digest == second.digest, "the same seed must give the same bytes"
    assert open_model(first.path).digest == first.digest, "the result must open again"
    assert first.lineage.parent == model.digest, "the result must name its parent"
    _check_answers(method, model, first, data)
    if method.streams:
        _check_streams(method, model, first, data)
    return first


def _check_value(method: Method) -> None:
    cls = type(method)
    assert isinstance(method, Method), f"{cls.__name__} must derive from Method"
    kind = getattr(cls, "__dataclass_params__", None)
    assert kind is not None, f"{cls.__name__} must be a dataclass"
    assert kind.frozen, f"{cls.__name__} must be frozen"
    assert cls.__doc__, f"{cls.__name__} must have a docstring"
    canonical_json(dict(method.settings))
    values = {f.name: getattr(method, f.name) for f in fields(cls)}  # type: ignore[arg-type] # a dataclass, as asserted
    assert cls(**values).digest == method.digest, "equal settings must have equal digests"
    if "<locals>" not in method.name:
        again = make_method(method.name, method.settings)
        assert again.digest == method.digest, "a method must survive the trip through TOML"


def _check_answers(method: Method, before: Model, after: Model, data: Data) -> None:
    names = [[spec.name for spec in group] for m in (before, after) for group in _specs(m)]
    assert names[0] == names[2], "the result must have the same inputs"
    assert names[1] == names[3], "the result must have the same outputs"
    engine = min(method.engines) if method.engines else "onnxruntime"
    split = next(iter(data.splits.values())).take([0])
    with_closing = open_session(after, EngineConfig(engine=engine, threads=1))
    try:
        outputs = with_closing.run(feeds_for(after.signature, split.inputs))
    finally:
        with_closing.close()
    for name, value in outputs.items():
        assert np.isfinite(value).all(), f"output {name!r} must be finite"


def _check_streams(method: Method, before: Model, after: Model, data: Data) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, scratch = Path(name) / ONNX_FILE, Path(name) / "scratch"
        onnx.save_model(
            read_onnx(before.onnx_path), path, save_as_external_data=True, location=DATA_FILE,
            size_threshold=_SHAPE_BYTES,
        )  # fmt: skip
        with open_onnx(path, scratch=scratch, inline_below=_SHAPE_BYTES) as net:
            done = method.apply(net, restrict(data, method), Run())
            assert isinstance(done, OnnxNetwork), "a method that streams must edit ONNX graphs"
            assert done.files is net.files, "a method that streams must hand on net.files"
            streamed = store_model(
                done.proto, lineage=after.lineage, root=scratch, files=done.files
            )
        same = _constants(streamed) == _constants(after)
    assert same, "a method that streams must make the same constants of weights on disk"


def _constants(model: Model) -> dict[str, bytes]:
    tensors = read_onnx(model.onnx_path).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in tensors}


def _specs(model: Model) -> tuple[tuple[TensorSpec, ...], ...]:
    return model.signature.inputs, model.signature.outputs
