"""Run the float graph over calibration data and watch its tensors, batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from ingot.compress.quantize.observers import ChannelMinMax, Observer, Range
from ingot.core.errors import DataError, RecipeError
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array, Split
from ingot.models.feeds import feeds_for, fixed_rows
from ingot.models.store import read_signature

if TYPE_CHECKING:
    import onnxruntime

Feeds = dict[str, Array]
MASK = "attention_mask"
BATCH_ROWS = 8


def calibrate(
    proto: onnx.ModelProto,
    split: Split,
    tensors: Sequence[str],
    *,
    make: Callable[[], Observer],
    progress: Progress = SILENT,
) -> dict[str, Range]:
    """Return the range of each tensor over a split.

    Args:
        proto: The float graph.
        split: Rows to run. Rows of masked text run in groups of equal length, without padding.
        tensors: Names of float tensors in the graph.
        make: Makes a fresh observer.
        progress: Where batches are reported.

    Raises:
        RecipeError: A tensor holds NaN or infinity; it is named.
        DataError: The rows do not fit the graph's inputs.
    """
    watchers = {name: make() for name in tensors}
    for values in activations(proto, split, tensors, progress):
        _update(watchers, values)
    return {name: watcher.range() for name, watcher in watchers.items()}


def _update(watchers: Mapping[str, Observer], values: Mapping[str, Array]) -> None:
    for name, value in values.items():
        try:
            watchers[name].update(value)
        except RecipeError as error:
            raise RecipeError(
                f"Tensor {name!r} must stay finite on the calibration data. {error}"
            ) from error


def channel_peaks(
    proto: onnx.ModelProto, split: Split, tensors: Sequence[str], *, progress: Progress = SILENT
) -> dict[str, Array]:
    """Return the largest magnitude in each channel (the last axis) of each tensor over a split."""
    watchers = {name: ChannelMinMax() for name in tensors}
    for values in activations(proto, split, tensors, progress):
        _update(watchers, values)
    found = {name: watcher.channels() for name, watcher in watchers.items()}
    return {name: np.maximum(-low, high) for name, (low, high) in found.items()}


def unpadded_batches(split: Split, rows: int = BATCH_ROWS) -> Iterator[Feeds]:
    """Give the rows in batches; masked text in batches of one length, cut to that length.

    Padding would pollute the ranges: a padded position holds values that no answer depends on.
    Rows whose mask has holes or padding on the left are given as they are.
    """
    mask = split.inputs.get(MASK)
    if mask is None or mask.ndim != 2 or not split.rows:
        yield from split.batches(rows)
        return
    lengths = mask.astype(bool).sum(axis=1)
    filled = np.arange(mask.shape[1]) < lengths[:, None]
    tidy = (filled == mask.astype(bool)).all(axis=1) & (lengths > 0)
    lengths = np.where(tidy, lengths, mask.shape[1])
    for length in np.unique(lengths):
        index = np.flatnonzero(lengths == length)
        for start in range(0, len(index), rows):
            part = index[start : start + rows]
            yield {
                name: array[part][:, :length] if array.shape[:2] == mask.shape else array[part]
                for name, array in split.inputs.items()
            }


def activations(
    proto: onnx.ModelProto, split: Split, tensors: Sequence[str], progress: Progress
) -> Iterator[Mapping[str, Array]]:
    """Give the values of these tensors, batch by batch.

    Raises:
        RecipeError: ONNX Runtime cannot run the graph.
        DataError: There are no rows, or they do not fit the graph's inputs.
    """
    inputs = {i.name for i in proto.graph.input} - {w.name for w in proto.graph.initializer}
    inner = [name for name in tensors if name not in inputs]
    session, signature = _session(proto, inner), read_signature(proto)
    batches = list(unpadded_batches(split, fixed_rows(signature) or BATCH_ROWS))
    if not batches:
        raise DataError(
            "The calibration split must hold at least one row; got 0. Add examples to it."
        )
    for done, feeds in enumerate(batches):
        named = feeds_for(signature, feeds)
        values = dict(zip(inner, session.run(inner, named), strict=True)) if inner else {}
        yield values | {name: named[name] for name in tensors if name in inputs}
        progress.step("calibrating", done + 1, len(batches))


def _session(proto: onnx.ModelProto, extra: Sequence[str]) -> "onnxruntime.InferenceSession":
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    present = {o.name for o in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
        for n in extra
        if n not in present
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the library raises bare pybind exceptions
        raise RecipeError(
            f"Calibration needs a model that ONNX Runtime can run; got: {error}. "
            "Check the model with: ingot inspect MODEL"
        ) from error
