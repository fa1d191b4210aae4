"""From rows to what the model takes; a row that does not fit is named with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.core.units import show_number
from ingot.data.data import Array
from ingot.data.images import read_pixels
from ingot.data.pixels import ImageSpec, to_tensor
from ingot.data.reading import Reading
from ingot.data.tables import TARGETS
from ingot.data.texts import encode_texts, open_tokenizer
from ingot.models.feeds import feeds_for
from ingot.models.model import Signature, TensorSpec
from ingot.serve.batch.rows import FILE

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
TEXT_ROLES = ("text", "text_b")
Record = Mapping[str, Any]  # Any: a row holds whatever its file holds


class Misfit(str):
    """Why a row cannot run that is due to its columns, not to what they hold: type or shape."""

    __slots__ = ()


class MisfitError(DataError):
    """Columns of another type or shape than the model takes."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns the model is fed with.

    Attributes:
        kind: What the columns hold.
        columns: `text` and `text_b`, `file`, or the name of an input, with its columns.
    """

    kind: Literal["texts", "images", "numbers"]
    columns: Mapping[str, tuple[str, ...]]

    @property
    def needed(self) -> tuple[str, ...]:
        """Every column, once, in order."""
        return tuple(dict.fromkeys(name for names in self.columns.values() for name in names))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one shape, ready to run.

    Attributes:
        rows: Their places among the rows that were given.
        feeds: Arrays by input name, one row each.
    """

    rows: list[int]
    feeds: dict[str, Array]


def find_roles(
    signature: Signature, reading: Reading, columns: Sequence[str], keys: Sequence[str], kind: str
) -> Roles:
    """Say which columns the model is fed with: as the settings say, or by the columns' names.

    Args:
        signature: What the model takes.
        reading: Settings; its `columns` decide where they are given.
        columns: What the input has.
        keys: Columns that only go along.
        kind: Of the input; `images` has one column.

    Raises:
        DataError: No column fits, or one that is named is not there.
    """
    names = [spec.name for spec in signature.inputs]
    if kind == "images":
        _check_images(signature, reading.image or ImageSpec())
        return Roles("images", {FILE: (FILE,)})
    given = {role: c for role, c in reading.columns.items() if role not in {"target", FILE}}
    chosen = given or _guess(names, columns, keys)
    parts = {
        role: (value,) if role in TEXT_ROLES else tuple(p.strip() for p in value.split(","))
        for role, value in chosen.items()
    }
    for role, wanted in parts.items():
        for name in wanted:
            if name not in columns:
                raise DataError(
                    f"Column {name!r} for {role!r} must be in the input. {suggest(name, columns)}"
                )
    if "text" in parts or "text_b" in parts:
        _check_texts(names, parts, reading)
        return Roles("texts", parts)
    if set(parts) == {"*"} and len(names) == 1:
        parts = {names[0]: parts["*"]}
    if set(parts) != set(names):
        raise DataError(
            f"Every input of the model must have its columns: {', '.join(names)}; got columns for "
            f"{', '.join(parts) or 'none'}. Name them: --column {names[0]}=COLUMN,..."
        )
    return Roles("numbers", parts)


def _guess(names: Sequence[str], columns: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    texts = {role: role for role in TEXT_ROLES if role in columns}
    if texts and IDS in names:
        return texts
    own = {name: name for name in names if name in columns}
    if len(own) == len(names):
        return own
    if IDS in names:
        raise DataError(
            f"A model of texts must be told which column holds them; got {', '.join(columns)}. "
            "Name it: --column text=COLUMN."
        )
    free = [name for name in columns if name not in keys and name not in TARGETS]
    return {"*": ",".join(free)} if len(names) == 1 and free else {}


def _check_texts(names: Sequence[str], parts: Mapping[str, object], reading: Reading) -> None:
    if "text" not in parts or not {IDS, MASK} <= set(names) <= {IDS, MASK, TYPES}:
        raise DataError(
            f"Texts must be fed to a model with {IDS} and {MASK}; this one takes "
            f"{', '.join(names)}, and the columns given are for {', '.join(parts)}. "
            "Name the columns of its own inputs."
        )
    if "text_b" in parts and reading.task == "similarity":
        raise DataError(
            "A batch must answer one text per row, or a pair that is read as one; got the two "
            "texts of a similarity. Answer each by itself: --column text=COLUMN."
        )
    open_tokenizer(reading)


def _check_images(signature: Signature, image: ImageSpec) -> None:
    spec = signature.inputs[0]
    channels = spec.shape[1 if image.layout == "NCHW" else -1] if len(spec.shape) == 4 else 0
    takes = ", ".join(f"{spec.name} {spec.shape}" for spec in signature.inputs)
    if len(signature.inputs) != 1 or (isinstance(channels, int) and channels != image.channels):
        wanted = show_number(image.channels, "channel")
        raise DataError(
            f"Images must be fed to a model with one input of {wanted}, "
            f"{image.layout}; this one takes {takes}. "
            "Say how pixels become its tensor: [image] in data.toml."
        )


class Feeder:
    """Turns rows into feeds.

    Args:
        signature: What the model takes.
        reading: How texts and images are read.
        roles: Which columns are what.
        root: Folder that the names of images are in.
        truncate: Cut texts at the limit as `load_data` does, instead of refusing them.
    """

    def __init__(
        self, signature: Signature, reading: Reading, roles: Roles, root: Path, *, truncate: bool
    ) -> None:
        # Rows come in any number; those that a call lacks are added when it is made
        self._signature = _with_free_rows(signature)
        self._roles, self._root = roles, root
        self._image = reading.image or ImageSpec()
        self._tokenizer: Any = None
        self._width: int | None = None  # of a model that takes one length only
        if roles.kind == "texts":
            axis = next(s.shape[1] for s in signature.inputs if s.name == IDS)
            self._width = axis if isinstance(axis, int) else None
            self._limit = min(reading.max_length, self._width or reading.max_length)
            # One more than allowed, so that a row that is too long can be told from one that fits
            most = self._limit if truncate else self._limit + 1
            types = any(spec.name == TYPES for spec in signature.inputs)
            self._reading = replace(reading, max_length=most, token_types=types)
            self._tokenizer = open_tokenizer(self._reading)

    def prepare(self, records: Sequence[Record]) -> tuple[list[Group], dict[int, str]]:
        """Return groups of rows that can run together, and why the other rows cannot run."""
        if self._roles.kind == "texts":
            return self._prepare_texts(records)
        if self._roles.kind == "numbers" and records:
            try:
                return [Group(list(range(len(records))), self._numbers(records))], {}
            except (DataError, ValueError, TypeError, OverflowError):
                pass  # some row does not fit: which one is found below
        groups: dict[object, list[tuple[int, dict[str, Array]]]] = {}
        refused: dict[int, str] = {}
        for index, record in enumerate(records):
            try:
                feeds = self._one(record)
            except MisfitError as error:
                refused[index] = Misfit(error)
                continue
            except (DataError, OSError, ValueError, TypeError, OverflowError) as error:
                refused[index] = str(error)
                continue
            shapes = tuple(sorted((name, array.shape) for name, array in feeds.items()))
            groups.setdefault(shapes, []).append((index, feeds))
        return [_join(rows) for rows in groups.values()], refused

    def _one(self, record: Record) -> dict[str, Array]:
        if self._roles.kind == "numbers":
            return self._numbers([record])
        name = record[FILE]
        pixels = read_pixels(name, (self._root / name).read_bytes(), self._image)
        return self._fed({self._signature.inputs[0].name: to_tensor(pixels[None], self._image)})

    def _fed(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            return feeds_for(self._signature, arrays)
        except DataError as error:
            if all(_has_shape(arrays[spec.name], spec) for spec in self._signature.inputs):
                raise
            raise MisfitError(str(error)) from error

    def _numbers(self, records: Sequence[Record]) -> dict[str, Array]:
        arrays = {}
        for spec in self._signature.inputs:
            columns = self._roles.columns[spec.name]
            values = [_values(record, columns) for record in records]
            arrays[spec.name] = _array(values, columns, np.dtype(spec.dtype).kind, len(spec.shape))
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            feeds = self._fed(arrays)
        for name, array in feeds.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"Input {name!r} must be finite; got NaN or Inf")
        return feeds

    def _prepare_texts(self, records: Sequence[Record]) -> tuple[list[Group], dict[int, str]]:
        columns = [self._roles.columns[r][0] for r in TEXT_ROLES if r in self._roles.columns]
        refused = {i: why for i, record in enumerate(records) if (why := _no_text(record, columns))}
        rows = [i for i in range(len(records)) if i not in refused]
        if not rows:
            return [], refused
        texts: list[Any] = [tuple(records[i][c] for c in columns) for i in rows]  # pairs or texts
        texts = texts if len(columns) == 2 else [text for (text,) in texts]
        arrays = encode_texts(texts, self._reading, tokenizer=self._tokenizer)
        lengths = arrays[MASK].sum(axis=1)
        fits = lengths <= self._limit
        why = f"the text must have at most {self._limit} tokens; it has more"
        refused |= {rows[i]: why for i in np.flatnonzero(~fits)}
        if not fits.any():
            return [], refused
        width = self._width or int(lengths[fits].max())
        feeds = {name: _to_width(array[fits], width) for name, array in arrays.items()}
        kept = [rows[i] for i in np.flatnonzero(fits)]
        return [Group(kept, feeds_for(self._signature, feeds))], refused


def _has_shape(array: Array, spec: TensorSpec) -> bool:
    sizes = zip(array.shape[1:], spec.shape[1:], strict=False)
    return array.ndim == len(spec.shape) and all(isinstance(w, str) or g == w for g, w in sizes)


def _with_free_rows(signature: Signature) -> Signature:
    inputs = (
        replace(spec, shape=("rows", *spec.shape[1:])) if spec.shape else spec
        for spec in signature.inputs
    )
    return Signature(tuple(inputs), signature.outputs)


def _no_text(record: Record, columns: Sequence[str]) -> str:
    for name in columns:
        value = record.get(name)
        if not isinstance(value, str):
            why = f"column {name!r} must be text; got {type(value).__name__}"
            return why if value is None else Misfit(why)
        if not value:
            return f"column {name!r} must have at least one character; got none"
    return ""


def _values(record: Record, columns: Sequence[str]) -> Any:  # a number, or lists of numbers
    for name in columns:
        if record.get(name) is None or record[name] == "":
            raise DataError(f"column {name!r} must have a value; got none")
    return record[columns[0]] if len(columns) == 1 else [record[name] for name in columns]


def _array(values: Sequence[Any], columns: Sequence[str], kind: str, rank: int) -> Array:
    what = f"column {columns[0]!r}" if len(columns) == 1 else f"columns {', '.join(columns)}"
    try:
        array = np.asarray(values)
        if array.dtype.kind == "U":  # a table of text: numbers are parsed
            array = array.astype(np.int64 if kind in "iu" else np.float64)
    except ValueError as error:
        raise MisfitError(f"{what} must be numbers of one shape: {error}") from error
    if array.dtype.kind not in "biuf":
        raise MisfitError(f"{what} must be numbers; got {array.dtype}")
    return array[:, None] if array.ndim == 1 and rank == 2 else array


def _to_width(array: Array, width: int) -> Array:
    room = width - array.shape[1]
    return (
        np.pad(array, ((0, 0), (0, room))) if room > 0 else np.ascontiguousarray(array[:, :width])
    )


def _join(rows: Sequence[tuple[int, dict[str, Array]]]) -> Group:
    names = rows[0][1]
    return Group(
        [index for index, _ in rows],
        {name: np.concatenate([feeds[name] for _, feeds in rows]) for name in names},
    )
