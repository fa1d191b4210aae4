"""Token ids against the table they are looked up in: the first sign of a wrong tokenizer."""

from collections.abc import Mapping

import onnx

from ingot.core.errors import DataError
from ingot.data.data import Array, Split
from ingot.models.feeds import feeds_for, fixed_rows
from ingot.models.model import Model
from ingot.models.onnx_format import read_skeleton

IDS = "input_ids"


def vocabulary_size(proto: onnx.ModelProto) -> int:
    """Return the rows of the table that `input_ids` are looked up in, 0 without one."""
    sizes = {w.name: int(w.dims[0]) for w in proto.graph.initializer if len(w.dims) == 2}
    ids = {IDS}
    for node in proto.graph.node:
        if node.op_type in {"Cast", "Identity"} and node.input[0] in ids:
            ids.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in ids:
            return sizes.get(node.input[0], 0)
    return 0


def check_rows(model: Model, split: Split) -> None:
    """Refuse rows that a model cannot take: names, types, sizes, and every token id.

    Raises:
        DataError: They do not fit its signature, or its table of tokens.
    """
    some = range(min(len(split), fixed_rows(model.signature) or 1))
    feeds_for(model.signature, split.take(some).inputs)
    check_tokens(model, split.inputs)


def check_tokens(model: Model, inputs: Mapping[str, Array]) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        DataError: An id is negative, or not below the size of the model's table.
    """
    ids = inputs.get(IDS)
    if ids is None or not ids.size:
        return
    size = vocabulary_size(read_skeleton(model.onnx_path))
    low, high = int(ids.min()), int(ids.max())
    if size and (low < 0 or high >= size):
        raise DataError(
            f"Token ids must be from 0 to {size - 1:,}, the words that {model.name!r} knows; got "
            f"{low:,} to {high:,}. They were made by another tokenizer: use the one that the model "
            "was trained with."
        )
