"""Why an engine refused: asked only after it did, so that good calls pay nothing."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.errors import EngineError
from ingot.core.names import suggest
from ingot.data.data import Array
from ingot.models.model import Signature, TensorSpec

_UNNAMED = re.compile(r"axis\d+")  # how a signature calls a dynamic axis that the file left unnamed


def check_feeds(signature: Signature, feeds: Mapping[str, Array]) -> None:
    """Compare inputs with the signature.

    Raises:
        EngineError: A name, dtype, rank or fixed size does not fit; it is named.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    for name in feeds:
        if name not in specs:
            raise EngineError(
                f"Inputs must be {sorted(specs)}; got {name!r}. {suggest(name, specs)}"
            )
    for name, spec in specs.items():
        if name not in feeds:
            raise EngineError(
                f"Inputs must be {sorted(specs)}; got {sorted(feeds)}. Add {name!r}: {_show(spec)}."
            )
        _check(spec, np.asarray(feeds[name]))
    _check_axes(signature, feeds)


def make_guard(signature: Signature) -> Callable[[Mapping[str, Array]], None]:
    """Return a check that takes under a microsecond, of what an engine would run without a word.

    OpenVINO keeps the last value of a missing input and casts other dtypes; ONNX Runtime reads
    other byte orders as they are; both broadcast a mask of another length than its tokens.
    """
    specs = signature.inputs
    count, first = len(specs), specs[0]
    is_named = not any(isinstance(size, str) and _UNNAMED.fullmatch(size) for size in first.shape)
    rows = [(s.name, np.dtype(s.dtype), is_named and s.shape == first.shape) for s in specs]

    def guard(feeds: Mapping[str, Array]) -> None:
        if len(feeds) != count:
            check_feeds(signature, feeds)
        shape = feeds[first.name].shape
        for name, dtype, is_twin in rows:
            array = feeds[name]
            if array.dtype != dtype or (is_twin and array.shape != shape):
                check_feeds(signature, feeds)

    return guard


def unsupported(engine: str, path: Path, words: str) -> EngineError:
    """Return the error for a graph that an engine cannot load, with the nodes it names.

    Args:
        engine: Name of the engine.
        path: The ONNX file.
        words: What the engine's library said.
    """
    nodes = _named_nodes(path, words)
    got = f"got {', '.join(nodes)}" if nodes else f"it says: {' '.join(words.split())}"
    return EngineError(
        f"{engine} must support every operator of the model; {got.removesuffix('.')}. "
        "Try another engine, or export the model with standard operators."
    )


def _named_nodes(path: Path, words: str) -> list[str]:
    """Return the nodes whose operator the words call unknown, e.g. `acme:Foo in node 'foo_1'`."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs

    tokens = {token.strip(".:") for token in re.findall(r"[\w.:]+", words)}
    listed = set(re.findall(r"\w+", words.partition("for operations:")[2]))
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, ValueError, DecodeError):
        return []  # the engine's own words say what is wrong with the file
    found = []
    for node in graph.node:
        spelled = {f"{node.domain}:{node.op_type}", f"{node.domain}.{node.op_type}"}
        if (node.domain and tokens & spelled) or (not node.domain and node.op_type in listed):
            label = f"{node.domain}:{node.op_type}".removeprefix(":")
            found.append(f"{label} in node {node.name!r}")
    return found


def closed(*_: object, **__: object) -> Any:  # stands where a bound run of an engine stood
    """Stand in for the run of a closed session.

    Raises:
        EngineError: Always.
    """
    raise EngineError("A session must be open to run; this one was closed. Open a new one.")


def _check(spec: TensorSpec, array: Array) -> None:
    fits = len(array.shape) == len(spec.shape) and all(
        isinstance(want, str) or want == got
        for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype != spec.dtype or not fits:
        raise EngineError(
            f"Input {spec.name!r} must be {_show(spec)}; got {array.dtype} {list(array.shape)}. "
            "Convert it with numpy.asarray(x, dtype) and reshape it."
        )


def _check_axes(signature: Signature, feeds: Mapping[str, Array]) -> None:
    """Check that an axis of one name has one size over all inputs."""
    sizes: dict[str, tuple[str, int]] = {}
    for spec in signature.inputs:
        for axis, got in zip(spec.shape, np.shape(feeds[spec.name]), strict=True):
            if isinstance(axis, int) or _UNNAMED.fullmatch(axis):
                continue
            other, wanted = sizes.setdefault(axis, (spec.name, got))
            if wanted != got:
                raise EngineError(
                    f"Axis {axis!r} must have one size over all inputs; got {wanted} in {other!r} "
                    f"and {got} in {spec.name!r}. Pad or cut them to the same size."
                )


def _show(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
