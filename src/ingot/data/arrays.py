"""Read `.npz` files and stacks of Python examples."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.data._raw import WHOLE, RawSplit, split_name
from ingot.data.data import Array
from ingot.data.pixels import ImageSpec, to_tensor
from ingot.data.reading import Reading

TARGETS = ("y", "target", "targets", "label", "labels")


def read_npz(path: Path, reading: Reading) -> dict[str, RawSplit]:
    """Return the splits of an `.npz` file; pickled objects are never read.

    Keys are `split/name` (`test/x`, `test/y`) or flat (`x`, `y`). `x` is the model's only input,
    `y` the target, any other key an input of that name. A column mapping (`{"image": "images",
    "target": "labels"}`) picks keys itself and leaves the rest unread.

    Raises:
        DataError: The file is broken, holds objects, or lacks a key.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = _wanted(list(archive.files), reading.columns)
            arrays = {key: archive[key] for key in wanted}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path.name!r} must be an .npz of plain arrays; it cannot be read: {error}. "
            "Write it again with numpy.savez(path, x=..., y=...)."
        ) from error
    return group_arrays(arrays, reading)


def group_arrays(arrays: Mapping[str, Array], reading: Reading) -> dict[str, RawSplit]:
    """Return the splits of named arrays, grouped by what stands before the slash of each key.

    Raises:
        DataError: Some keys name a split and some do not, or a key is missing.
    """
    groups: dict[str, dict[str, Array]] = {}
    for key, array in arrays.items():
        prefix, _, name = key.rpartition("/")
        groups.setdefault(split_name(prefix) if prefix else WHOLE, {})[name] = array
    if WHOLE in groups and len(groups) > 1:
        raise DataError(
            f"Keys must all name a split or none; got {sorted(arrays)}. "
            "Write every key as split/name, for example test/x."
        )
    if not groups:
        raise DataError("An array file must hold at least one array; got none. Save x and y.")
    return {name: _group(group, reading) for name, group in groups.items()}


def stack_examples(examples: Iterable[object]) -> RawSplit:
    """Return the split of Python examples `(inputs, target)`.

    Inputs are one array, or a mapping from input name to array, without a batch axis and of one
    shape throughout. A target of None means that there are none.

    Raises:
        DataError: An example is not a pair, or the examples differ in inputs or shapes.
    """
    columns: dict[str, list[Array]] = {}
    targets: list[object] = []
    for index, example in enumerate(examples):
        if not isinstance(example, tuple) or len(example) != 2:
            raise DataError(
                f"Examples must be tuples (inputs, target); got {type(example).__name__} at "
                f"example {index}. Yield (array, None) when there is no target."
            )
        inputs = example[0] if isinstance(example[0], Mapping) else {"*": example[0]}
        if index and set(inputs) != set(columns):
            raise DataError(
                f"Examples must have the same inputs; got {sorted(inputs)} at example {index} and "
                f"{sorted(columns)} before. Give every input in every example."
            )
        for name, value in inputs.items():
            columns.setdefault(name, []).append(np.asarray(value))
        targets.append(example[1])
    arrays = {name: _stack(name, values) for name, values in columns.items()}
    return RawSplit(arrays, None if all(t is None for t in targets) else targets)


def _stack(name: str, values: list[Array]) -> Array:
    forms = {(value.shape, value.dtype.name) for value in values}
    if len(forms) > 1:
        raise DataError(
            f"Input {name!r} must have one shape and dtype in every example; got "
            f"{sorted(map(str, forms))[:3]}. Pad or convert the examples."
        )
    return np.stack(values)


def _wanted(files: list[str], columns: Mapping[str, str]) -> list[str]:
    if not columns:
        return files
    # A wanted key may stand alone or behind a split: "images" also finds "test/images".
    found = [key for key in files if key in columns.values() or _last(key) in columns.values()]
    known = set(files) | {_last(key) for key in files}
    for role, column in columns.items():
        if column not in known:
            raise DataError(
                f"Column {column!r} for {role!r} must be in the file. {suggest(column, known)}"
            )
    return found


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _group(group: Mapping[str, Array], reading: Reading) -> RawSplit:
    columns = {role: _last(key) for role, key in reading.columns.items()} or _default_roles(group)
    roles = {role: key for role, key in columns.items() if key in group}
    inputs = {
        role: _image(group[key], reading.image) for role, key in roles.items() if role != "target"
    }
    targets = group[roles["target"]] if "target" in roles else None
    rows = next((len(array) for array in inputs.values() if array.ndim), 0)
    is_pair = reading.task == "similarity" or (targets is not None and rows == 2 * len(targets))
    return RawSplit(inputs, targets, 2 if is_pair else 1)


def _default_roles(group: Mapping[str, Array]) -> dict[str, str]:
    target = next((name for name in TARGETS if name in group), None)
    roles = {("*" if name == "x" else name): name for name in group if name != target}
    return roles if target is None else {**roles, "target": target}


def _image(array: Array, spec: ImageSpec | None) -> Array:
    is_image = array.dtype == np.uint8 and array.ndim in {3, 4}
    return to_tensor(array, spec) if spec is not None and is_image else array
