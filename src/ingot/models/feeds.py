"""Feeds: the caller's arrays, named, typed and shaped as the model's signature wants them."""

from collections.abc import Mapping

import numpy as np

from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.data.data import Array
from ingot.models.model import Signature, TensorSpec

ANY_INPUT = "*"  # "the model's only input", see Split.inputs
IDS, MASK = "input_ids", "attention_mask"  # what texts become
_RANK = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def feeds_for(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays to feed, by the model's input names.

    Args:
        signature: What the model takes.
        inputs: Arrays by input name, rows first; the name `*` stands for the only input. Integers
            are widened to the model's integers or floats, and floats change between widths. A
            model with a fixed number of rows gets any multiple of it, to be run in as many calls.
            The mask that comes with token ids is left out of a model that takes none: such a model
            reads padding as it reads tokens.

    Raises:
        DataError: A name is unknown or missing, a dtype cannot be cast without losing its meaning,
            a rank or a fixed size differs, or inputs that share the batch axis differ in rows.
    """
    named = _by_name(signature, inputs)
    rows = fixed_rows(signature)
    feeds = {spec.name: _fit(spec, np.asarray(named[spec.name]), rows) for spec in signature.inputs}
    _check_axes(signature, feeds)
    return feeds


def fixed_rows(signature: Signature) -> int | None:
    """Return how many rows every call must have, or None where that is free.

    Examples:
        >>> fixed_rows(Signature((TensorSpec("image", "float32", (1, 3, 8, 8)),), ()))
        1
    """
    sizes = {spec.shape[0] if spec.shape else "none" for spec in signature.inputs}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def _by_name(signature: Signature, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    names = [spec.name for spec in signature.inputs]
    if set(inputs) == {ANY_INPUT}:
        if len(names) != 1:
            raise DataError(
                f"Inputs of a model with {len(names)} inputs must be named; got one array without "
                "a "
                f"name. Name them: {', '.join(names)}."
            )
        return {names[0]: inputs[ANY_INPUT]}
    if MASK in inputs and MASK not in names and IDS in names:
        inputs = {name: array for name, array in inputs.items() if name != MASK}
    for name in inputs:
        if name not in names:
            raise DataError(
                f"Inputs must be named as in the model; got {name!r}. {suggest(name, names)}"
            )
    missing = [name for name in names if name not in inputs]
    if missing:
        raise DataError(
            f"Every input of the model must be given; {', '.join(map(repr, missing))} is missing "
            f"from {sorted(inputs)}. Add it."
        )
    return inputs


def _fit(spec: TensorSpec, array: Array, rows: int | None) -> Array:
    array = _cast(spec, array)
    if array.ndim != len(spec.shape):
        raise DataError(
            f"Input {spec.name!r} must have {len(spec.shape)} axes {_show(spec)}; got shape "
            f"{array.shape}. Reshape it; a single example needs a first axis of 1."
        )
    for axis, (want, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if axis == 0 and rows and got and got % rows == 0:
            continue
        if isinstance(want, int) and want != got:
            raise DataError(
                f"Input {spec.name!r} must have shape {_show(spec)}; got {array.shape}: axis "
                f"{axis} "
                f"is {got}, not {want}. Resize or pad the data, or export the model with that axis "
                "dynamic."
            )
    return array


def _cast(spec: TensorSpec, array: Array) -> Array:
    want = np.dtype(spec.dtype) if spec.dtype != "bfloat16" else np.dtype("float32")
    if array.dtype == want:
        return array
    have, need = _RANK.get(array.dtype.kind), _RANK.get(want.kind)
    if have is None or need is None or have > need or (need == 0):
        raise DataError(
            f"Input {spec.name!r} must be {spec.dtype}; got {array.dtype}. Convert it yourself if "
            "that is what you mean: values could change their meaning."
        )
    cast = array.astype(want)
    if want.kind in "iu" and not np.array_equal(cast, array):
        raise DataError(
            f"Input {spec.name!r} must fit {spec.dtype}; got {array.dtype} values from "
            f"{array.min()} "
            f"to {array.max()}. Use smaller values."
        )
    return cast


def _check_axes(signature: Signature, feeds: Mapping[str, Array]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for spec in signature.inputs:
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, str) or size.startswith("axis"):
                continue
            got = feeds[spec.name].shape[axis]
            first, other = seen.setdefault(size, (spec.name, got))
            if got != other:
                what = "rows" if axis == 0 else f"size along {size!r}"
                raise DataError(
                    f"Inputs must agree in {what}; {first!r} has {other} and {spec.name!r} has "
                    f"{got}. "
                    "Give arrays of the same examples."
                )


def _show(spec: TensorSpec) -> str:
    return "(" + ", ".join(map(str, spec.shape)) + ")"
