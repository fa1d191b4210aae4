"""Make Data: check the splits, refuse leaks between them, take the fingerprint, split by seed."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ingot.core.digest import digest_json
from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.core.seeds import derive_seed
from ingot.data.data import Array, Data, Split, Task

MASK = "attention_mask"
TAUGHT = frozenset({"calibration", "training"})  # nothing is judged on them: they may overlap
SHOWN = 3  # examples that a message about duplicates quotes


def make_data(
    splits: Mapping[str, Split],
    *,
    task: Task | str,
    classes: Sequence[str] = (),
    name: str = "data",
    allow_duplicates: bool = False,
) -> Data:
    """Return checked splits with their fingerprint.

    The fingerprint covers task, class names, and for every split, in order, every example's bytes,
    dtypes, shapes and target. Columns that `attention_mask` hides at the end of a row do not count,
    so the same texts padded to another length are the same data. Labels become int64 and other
    targets float32, so a table and an array file of the same numbers agree.

    Args:
        splits: Split name -> examples. Same inputs and dtypes in each.
        task: What the targets mean. Splits but `calibration` need targets unless `none`.
        classes: Class names in label order; labels must then be below their number.
        name: A short name for people.
        allow_duplicates: Accept examples that two splits share. A quality measured on examples
            that were also trained or calibrated on is too good; the caller answers for that.

    Raises:
        DataError: An input, a target or the division into splits is not usable.
    """
    kind = _task(task)
    if not splits:
        raise DataError("Data must have at least one split; got none. Give {'test': Split(...)}.")
    checked = {key: _check_split(key, split, kind, len(classes)) for key, split in splits.items()}
    _check_alike(checked)
    hashes = {key: example_hashes(split) for key, split in checked.items()}
    if not allow_duplicates:
        _refuse_shared(checked, hashes)
    digest = digest_json(
        {
            "task": kind.value,
            "classes": list(classes),
            "splits": {key: _split_digest(checked[key], hashes[key]) for key in checked},
        }
    )
    return Data(checked, kind, digest, tuple(classes), name)


def split_data(split: Split, fractions: Mapping[str, float], *, seed: int) -> dict[str, Split]:
    """Divide one split into disjoint ones.

    Equal examples stay together, and integer targets keep their proportions in every part. Each
    part keeps the order of the source. What the fractions leave over is left out.

    Args:
        split: Examples to divide.
        fractions: Name of the part -> its share, above 0, together at most 1.
        seed: Which examples go where.

    Raises:
        DataError: The fractions are not shares, or a part would be empty.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or total > 1 + 1e-9:
        raise DataError(
            f"Fractions must be above 0 and add up to at most 1; got {dict(fractions)}. "
            "Give for example {'calibration': 0.2, 'test': 0.8}."
        )
    names = [*fractions, None]  # None takes what is left out
    shares = np.array([*fractions.values(), max(0.0, 1 - total)])
    counts = np.zeros(len(names))
    members: dict[str | None, list[int]] = {name: [] for name in names}
    for group in _shuffled_groups(split, seed):
        # The part furthest below its share so far: exact to about one example, in every label too.
        deficits = shares * (counts.sum() + len(group)) - counts
        deficits[shares <= 1e-9] = -np.inf
        chosen = int(np.argmax(deficits))
        counts[chosen] += len(group)
        members[names[chosen]].extend(group)
    for name in fractions:
        if not members[name]:
            raise DataError(
                f"Split {name!r} must hold at least one example; {len(split)} example(s) divided "
                f"by {dict(fractions)} give it 0. Add distinct examples or use larger fractions."
            )
    return {name: split.take(sorted(members[name])) for name in fractions}


def example_hashes(split: Split) -> list[bytes]:
    """Return 32 bytes per example that stand for its inputs, whatever the padding."""
    names = sorted(split.inputs)
    mask = split.inputs.get(MASK)
    ends = _ends(mask) if mask is not None and mask.ndim == 2 else None
    columns = [(name, _little(split.inputs[name])) for name in names]
    found = []
    for example in range(len(split)):
        state = hashlib.sha256()
        for row in range(example * split.rows_per_example, (example + 1) * split.rows_per_example):
            for name, array in columns:
                value = array[row]
                if ends is not None and mask is not None and array.shape[:2] == mask.shape:
                    value = value[: ends[row]]
                state.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
                state.update(value.tobytes())
        found.append(state.digest())
    return found


def _task(task: Task | str) -> Task:
    try:
        return Task(task)
    except ValueError:
        valid = [item.value for item in Task]
        raise DataError(f"Task must be known; got {task!r}. {suggest(str(task), valid)}") from None


def _check_split(name: str, split: Split, task: Task, classes: int) -> Split:
    if not split.inputs:
        raise DataError(f"Split {name!r} must have an input; got none. Give {{name: array}}.")
    rows = {key: len(array) if array.ndim else 0 for key, array in split.inputs.items()}
    if len(set(rows.values())) > 1:
        raise DataError(
            f"Inputs of split {name!r} must have equally many rows; got {rows}. Align the arrays."
        )
    if split.rows == 0:
        raise DataError(
            f"Split {name!r} must hold at least one example; got 0. Add examples or leave it out."
        )
    _check_pairs(name, split, task)
    for key, array in split.inputs.items():
        _check_numbers(f"Input {key!r} of split {name!r}", array)
    if split.labels and len(split.labels) != len(split):
        raise DataError(
            f"Split {name!r} must have one label per example; got {len(split.labels)} for "
            f"{len(split)}. Give one short text per example or none."
        )
    targets = _check_targets(name, split, task, classes)
    return Split(dict(split.inputs), targets, split.rows_per_example, split.labels)


def _check_pairs(name: str, split: Split, task: Task) -> None:
    wanted = 2 if task is Task.SIMILARITY else split.rows_per_example
    if split.rows_per_example != wanted or wanted < 1:
        raise DataError(
            f"Split {name!r} must have 2 rows per example for similarity; got "
            f"{split.rows_per_example}. Put a pair in rows 2i, 2i+1, rows_per_example=2."
        )
    if split.rows % wanted:
        raise DataError(
            f"Split {name!r} must have a multiple of {wanted} rows; got {split.rows}. "
            "An example is not complete: add its missing row or remove the others."
        )


def _check_targets(name: str, split: Split, task: Task, classes: int) -> Array | None:
    targets = split.targets
    if targets is None:
        if task is Task.NONE or name in TAUGHT:
            return None
        raise DataError(
            f"Split {name!r} must have targets for {task.value}; got none. "
            "Add them, or use the task none (--task) to measure agreement with the baseline only."
        )
    if task is Task.NONE:
        raise DataError(
            f"Split {name!r} must have no targets for task 'none'; got some. "
            "Say what they mean (--task): classification, regression or similarity."
        )
    if targets.ndim == 0 or len(targets) != len(split):
        raise DataError(
            f"Split {name!r} must have one target per example; got targets {targets.shape} for "
            f"{len(split)} examples. Align them."
        )
    if task is Task.CLASSIFICATION:
        return _check_labels(name, targets, classes)
    if targets.dtype.kind not in "fiu" or (task is Task.SIMILARITY and targets.ndim != 1):
        raise DataError(
            f"Targets of split {name!r} must be numbers, for similarity one per pair; "
            f"got {targets.dtype} {targets.shape}. Convert them to float32."
        )
    with np.errstate(over="ignore"):
        numbers = targets.astype(np.float32)
    _check_numbers(f"Targets of split {name!r}", numbers)
    return numbers


def _check_labels(name: str, targets: Array, classes: int) -> Array:
    if targets.dtype.kind not in "iub" or targets.ndim != 1:
        raise DataError(
            f"Labels of split {name!r} must be one integer per example; got {targets.dtype} "
            f"{targets.shape}. Convert them with labels.astype('int64'), or make the "
            "task regression (--task)."
        )
    bad = np.flatnonzero((targets < 0) | ((targets >= classes) if classes else False))
    if len(bad):
        rule = f"between 0 and {classes - 1}" if classes else "0 or more"
        raise DataError(
            f"Labels of split {name!r} must be {rule}; got {int(targets[bad[0]])} at example "
            f"{int(bad[0])} ({len(bad)} such). Correct the labels or give all the classes."
        )
    return targets.astype(np.int64)


def _check_numbers(what: str, array: Array) -> None:
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} must be numbers; got dtype {array.dtype}. Convert text with a tokenizer."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        rows = np.flatnonzero(~finite)
        raise DataError(
            f"{what} must be finite; got NaN or Inf in {len(rows)} row(s), the first is row "
            f"{int(rows[0])}. Remove or repair these rows."
        )


def _check_alike(splits: Mapping[str, Split]) -> None:
    first, *others = splits
    reference = splits[first]
    if len({split.rows_per_example for split in splits.values()}) > 1:
        raise DataError(
            "Every split must have the same rows_per_example; got different ones. Pair them alike."
        )
    for other in others:
        here, there = set(reference.inputs), set(splits[other].inputs)
        if here != there:
            raise DataError(
                f"Every split must have the same inputs; {first!r} has {sorted(here)} and "
                f"{other!r} has {sorted(there)}. Name them alike."
            )
        for key in sorted(here):
            a, b = _form(reference, key), _form(splits[other], key)
            if a != b:
                raise DataError(
                    f"Input {key!r} must have one dtype and shape in every split; {first!r} has "
                    f"{a[0]} {a[1]} and {other!r} has {b[0]} {b[1]}. Convert one of them."
                )


def _form(split: Split, name: str) -> tuple[str, tuple[int | str, ...]]:
    array = split.inputs[name]
    mask = split.inputs.get(MASK)
    padded = mask is not None and array.shape[:2] == mask.shape
    tail = ("sequence", *array.shape[2:]) if padded else array.shape[1:]
    return array.dtype.newbyteorder("=").name, ("row", *tail)


def _refuse_shared(splits: Mapping[str, Split], hashes: Mapping[str, list[bytes]]) -> None:
    seen: dict[bytes, tuple[str, int]] = {}
    shared: list[str] = []
    for name in splits:
        for index, key in enumerate(hashes[name]):
            home = seen.setdefault(key, (name, index))
            if home[0] != name and not {home[0], name} <= TAUGHT:
                here, there = _show(splits, name, index), _show(splits, *home)
                shared.append(f"{here} = {there}")
    if shared:
        raise DataError(
            f"Splits must not share examples; got {len(shared)} duplicate(s): "
            f"{'; '.join(shared[:SHOWN])}{'; ...' if len(shared) > SHOWN else ''}. Remove them, "
            "split the whole with split_data, or allow them (allow_duplicates) and answer for it."
        )


def _show(splits: Mapping[str, Split], name: str, index: int) -> str:
    labels = splits[name].labels
    return f"{name}[{index}]" + (f" {labels[index][:60]!r}" if labels else "")


def _split_digest(split: Split, hashes: Sequence[bytes]) -> dict[str, str | int]:
    state = hashlib.sha256()
    targets = None if split.targets is None else _little(split.targets)
    for index, key in enumerate(hashes):
        state.update(key)
        if targets is not None:
            value = targets[index]
            state.update(f"{value.dtype.str}|{value.shape}|".encode() + value.tobytes())
    return {"examples": state.hexdigest(), "rows_per_example": split.rows_per_example}


def _shuffled_groups(split: Split, seed: int) -> list[list[int]]:
    """Return groups of equal examples, label after label, in seeded order within a label."""
    together: dict[bytes, list[int]] = defaultdict(list)
    for index, key in enumerate(example_hashes(split)):
        together[key].append(index)
    groups = list(together.values())
    order = np.random.default_rng(derive_seed(seed, "split")).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    targets = split.targets
    if targets is not None and targets.ndim == 1 and targets.dtype.kind in "iub":
        shuffled.sort(key=lambda group: int(targets[group[0]]))  # a stable sort keeps the shuffle
    return shuffled


def _ends(mask: Array) -> list[int]:
    width = mask.shape[1]
    if width == 0:
        return [0] * len(mask)
    last = width - np.argmax(mask[:, ::-1] != 0, axis=1)
    return [int(end) for end in np.where((mask != 0).any(axis=1), last, 0)]


def _little(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
