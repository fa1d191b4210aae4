"""Inputs of a wanted shape, from real rows where there are some."""

from collections.abc import Mapping

import numpy as np

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Model, TensorSpec

_LARGEST_ID = 32  # the size of an embedding table is not in the signature: stay inside small ones


def feeds_at(
    model: Model,
    batch: int = 1,
    sequence: int | None = None,
    *,
    sample: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Return inputs for one call with `batch` rows of `sequence` tokens.

    The first axis is the batch; other dynamic axes get `sequence`. Masks are all ones, so that
    every token costs what a token costs. Rows of a sample are repeated or cut to the shape: tokens
    that its mask hides are skipped. Without a sample floats are standard normal and integers
    lie in 1 to 32.

    Args:
        model: Its signature gives names, types and fixed sizes.
        batch: Rows.
        sequence: Tokens per row; needed only if an axis beside the first is dynamic.
        sample: Real inputs by name, first axis rows; `*` means the model's only input.
        seed: Fixes the random inputs.

    Raises:
        EngineError: A fixed axis contradicts the shape, or the sample misses an input.
    """
    rng = np.random.default_rng(seed)
    mask = None if sample is None else sample.get("attention_mask")
    feeds = {}
    for spec in model.signature.inputs:
        shape = _shape(spec, batch, sequence)
        if "mask" in spec.name:
            feeds[spec.name] = np.ones(shape, spec.dtype)
        elif sample is None:
            feeds[spec.name] = _random(spec, shape, rng)
        else:
            rows = _rows(sample, spec, len(model.signature.inputs))
            feeds[spec.name] = _fit(rows, mask, shape).astype(spec.dtype, copy=False)
    return feeds


def _shape(spec: TensorSpec, batch: int, sequence: int | None) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(spec.shape):
        wanted = batch if axis == 0 else sequence
        if isinstance(size, str) and wanted is None:
            raise EngineError(
                f"Input {spec.name!r} has a dynamic axis {size!r}, so a sequence length must be "
                "given; got none. Give one, 128 say (--shape 1x128)."
            )
        if axis == 0 and isinstance(size, int) and size != batch:
            raise EngineError(
                f"Input {spec.name!r} has a fixed batch of {size}; got batch={batch}. "
                f"Measure at batch {size} or export the model with a dynamic first axis."
            )
        sizes.append(size if isinstance(size, int) else int(wanted or 0))
    return tuple(sizes)


def _random(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    kind = np.dtype(spec.dtype).kind
    if "position" in spec.name and len(shape) > 1:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(spec.dtype)
    if "token_type" in spec.name or "segment" in spec.name:
        return np.zeros(shape, spec.dtype)
    if kind in "iu":
        return rng.integers(1, _LARGEST_ID + 1, shape).astype(spec.dtype)
    if kind == "b":
        return np.ones(shape, np.bool_)
    return rng.standard_normal(shape).astype(spec.dtype)


def _rows(sample: Mapping[str, Array], spec: TensorSpec, inputs: int) -> Array:
    rows = sample.get(spec.name)
    if rows is None and inputs == 1:
        rows = sample.get("*")
    if rows is None or not len(rows):
        raise EngineError(
            f"The sample must hold rows for input {spec.name!r}; got {sorted(sample)}. "
            "Pass a split of the model's own data, or no sample."
        )
    return np.asarray(rows)


def _fit(rows: Array, mask: Array | None, shape: tuple[int, ...]) -> Array:
    taken = rows[np.arange(shape[0]) % len(rows)]
    if taken.shape == shape:
        return taken
    if taken.ndim != len(shape) or taken.ndim < 2 or taken.shape[2:] != shape[2:]:
        raise EngineError(
            f"A sample row must fit the model's input {shape[1:]}; got {taken.shape[1:]}. "
            "Pass rows of the shape the model takes."
        )
    shown = np.ones(rows.shape[:2], np.bool_) if mask is None else np.asarray(mask) > 0
    out = np.empty(shape, rows.dtype)
    for i in range(shape[0]):
        tokens = np.flatnonzero(shown[i % len(rows)])
        tokens = tokens if len(tokens) else np.arange(1)
        out[i] = taken[i, tokens[np.arange(shape[1]) % len(tokens)]]
    return out
