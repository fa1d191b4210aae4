"""Load data from a file, a folder, a `data.toml`, or Python."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.errors import DataError
from ingot.core.names import suggest
from ingot.core.seeds import derive_seed
from ingot.data._raw import WHOLE, RawSplit, as_targets, split_name
from ingot.data.arrays import group_arrays, read_npz, stack_examples
from ingot.data.data import Data, Split, Task
from ingot.data.images import read_folder, read_zip
from ingot.data.pixels import ImageSpec
from ingot.data.reading import Reading
from ingot.data.splits import make_data, split_data
from ingot.data.tables import read_table

FRACTIONS = {"calibration": 0.2, "test": 0.8}
READERS = {
    ".npz": read_npz,
    ".zip": read_zip,
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"), read_table),
}
READING_KEYS = ("task", "columns", "tokenizer", "max_length", "token_types", "image", "index")
TOP_KEYS = (*READING_KEYS, "name", "classes", "seed", "allow_duplicates", "file", "fractions")
SPLIT_KEYS = ("file", "index", "columns", "take")


def load_data(
    source: str | Path | Mapping[str, object] | Iterable[object],
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    tokenizer: Path | None = None,
    max_length: int | None = None,
    token_types: bool | None = None,
    splits: Mapping[str, float] | None = None,
    seed: int | None = None,
    image: ImageSpec | None = None,
    name: str | None = None,
    allow_duplicates: bool | None = None,
) -> Data:
    """Return checked, disjoint, fingerprinted data.

    Args:
        source: A `data.toml`, `.npz`, `.csv`, `.tsv`, `.jsonl`, `.parquet`, a zip or folder of
            images, a mapping from split name to examples or from array name to array, or an
            iterable of `(inputs, target)`.
        task: What the targets mean; guessed from their type when left out.
        columns: Role -> column: `text`, `text_b`, `target`, `file`, or an input name.
        tokenizer: A `tokenizer.json`, for texts.
        max_length: Longest row in tokens, 128 unless said.
        token_types: Also give `token_type_ids`.
        splits: Shares for a source without splits; 20 % calibration, 80 % test unless said.
        seed: Which examples go to which split, 0 unless said.
        image: How pixels become a tensor.
        name: A short name for people.
        allow_duplicates: See `make_data`.

    What is passed here wins over what a `data.toml` says.

    Raises:
        DataError: The source or what it holds is not usable.
        MissingExtraError: Images or Parquet are read without the extra `data`.
    """
    given: dict[str, Any] = {  # Any: values of the settings differ in type
        "task": task,
        "columns": columns,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "token_types": token_types,
        "fractions": splits,
        "seed": seed,
        "image": image,
        "name": name,
        "allow_duplicates": allow_duplicates,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() == ".toml":
            return _load_toml(path, settings)
        settings.setdefault("name", path.stem)
        return _finish(_read(path, _reading(settings)), settings)
    if isinstance(source, Mapping):
        return _finish(_from_mapping(source, _reading(settings)), settings)
    return _finish({WHOLE: stack_examples(source)}, settings)


def load_reading(
    path: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
) -> Reading:
    """Return how a `data.toml` says that rows are read; the files and splits in it are not read.

    Args:
        path: The `data.toml`; without one everything is guessed.
        columns: Role -> column; wins over the file.
        max_length: Longest row in tokens; wins over the file.

    Raises:
        DataError: It is no TOML file, or holds an unknown key.
    """
    settings = {} if path is None else _from_toml(_document(path), path.parent)
    given = {"columns": columns, "max_length": max_length}
    return _reading(settings | {key: value for key, value in given.items() if value is not None})


def _reading(settings: Mapping[str, Any]) -> Reading:
    return Reading(**{key: settings[key] for key in READING_KEYS if key in settings})


def _read(path: Path, reading: Reading) -> dict[str, RawSplit]:
    if path.is_dir():
        return read_folder(path, reading)
    if not path.is_file():
        raise DataError(f"Data must be a file or folder that exists; got {path}. Check the path.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"Data must be in a known format; got {path.name!r}. "
            f"{suggest(path.suffix, [*READERS, '.toml'])} A folder holds images."
        )
    return reader(path, reading)


def _from_mapping(source: Mapping[str, object], reading: Reading) -> dict[str, RawSplit]:
    arrays = {key: value for key, value in source.items() if isinstance(value, np.ndarray)}
    if arrays and len(arrays) == len(source):
        return group_arrays(arrays, reading)
    found = {}
    for key, value in source.items():
        if isinstance(value, Split):
            found[key] = RawSplit(value.inputs, value.targets, value.rows_per_example, value.labels)
        elif isinstance(value, Iterable) and not isinstance(value, str | bytes | np.ndarray):
            found[split_name(key)] = stack_examples(value)
        else:
            raise DataError(
                f"Split {key!r} must be a Split or an iterable of (inputs, target); got "
                f"{type(value).__name__}. Give one of these, or only arrays by name."
            )
    return found


def _document(path: Path) -> dict[str, Any]:  # Any: values of the settings differ in type
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path.name!r} must be a TOML file; got: {error}. Correct it.") from error
    _check_keys(document, (*TOP_KEYS, "splits"), path.name)
    return document


def _load_toml(path: Path, given: Mapping[str, Any]) -> Data:
    document = _document(path)
    tables = document.pop("splits", {})
    if bool(tables) == ("file" in document):
        raise DataError(
            f"{path.name!r} must have either a file or tables [splits.NAME]; got "
            f"{'both' if tables else 'neither'}. Write file = 'all.csv' or [splits.test]."
        )
    settings = {"name": path.parent.resolve().name, **_from_toml(document, path.parent), **given}
    if not tables:
        file = path.parent / settings["file"]
        return _finish(_read(file, _reading(settings)), settings)
    if "fractions" in settings:
        raise DataError(
            f"{path.name!r} names its splits, so fractions must not be given. Remove one of them."
        )
    raw = {key: _read_part(key, table, path, settings) for key, table in tables.items()}
    return _finish({split_name(key): value for key, value in raw.items()}, settings)


def _from_toml(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    settings = dict(document)
    for key in ("tokenizer", "index"):
        if key in settings:
            settings[key] = folder / settings[key]
    if "image" in settings:
        table = dict(settings["image"])
        _check_keys(table, [field.name for field in dataclasses.fields(ImageSpec)], "[image]")
        # Any: ImageSpec checks the values itself.
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
        }
        settings["image"] = ImageSpec(**values)
    return settings


def _read_part(name: str, table: object, path: Path, settings: Mapping[str, Any]) -> RawSplit:
    where = f"[splits.{name}]"
    if not isinstance(table, dict) or "file" not in table:
        raise DataError(f"{where} of {path.name!r} must name a file. Write file = '{name}.csv'.")
    _check_keys(table, SPLIT_KEYS, where)
    own = _from_toml({key: table[key] for key in ("index", "columns") if key in table}, path.parent)
    found = _read(path.parent / table["file"], _reading({**settings, **own}))
    if len(found) == 1:
        raw = next(iter(found.values()))
    elif split_name(name) in found:
        raw = found[split_name(name)]
    else:
        raise DataError(
            f"{where} must find its split in {table['file']!r}. {suggest(name, found)} "
            "Use columns to pick keys."
        )
    return _take(raw, table["take"], settings, where) if "take" in table else raw


def _take(raw: RawSplit, count: object, settings: Mapping[str, Any], where: str) -> RawSplit:
    """Return `count` examples chosen by the seed, in the order of the source."""
    targets = raw.targets if raw.targets is None else np.asarray(raw.targets)
    split = Split(raw.inputs, targets, raw.rows_per_example, raw.labels)
    if not isinstance(count, int) or not 1 <= count <= len(split):
        raise DataError(
            f"take of {where} must be between 1 and the {len(split)} examples of the file; got "
            f"{count!r}. Lower it or leave it out."
        )
    rng = np.random.default_rng(derive_seed(settings.get("seed", 0), "take", where))
    some = split.take(sorted(rng.permutation(len(split))[:count].tolist()))
    return RawSplit(some.inputs, some.targets, some.rows_per_example, some.labels)


def _check_keys(table: Mapping[str, object], valid: Iterable[str], where: str) -> None:
    known = list(valid)
    for key in table:
        if key not in known:
            raise DataError(f"{where} must hold known keys; got {key!r}. {suggest(key, known)}")


def _finish(raw: Mapping[str, RawSplit], settings: Mapping[str, Any]) -> Data:
    """Settle task and classes over all splits, divide where needed, and check."""
    targets = {
        key: None
        if part.targets is None
        else as_targets(list(part.targets))
        if not isinstance(part.targets, np.ndarray)
        else part.targets
        for key, part in raw.items()
    }
    classes = tuple(settings.get("classes", ()))
    texts = [array for array in targets.values() if array is not None and array.dtype.kind in "US"]
    if texts and not classes:
        classes = tuple(sorted({str(label) for array in texts for label in array}))
    task = settings.get("task") or _guess_task(raw, targets)
    splits = {}
    for key, part in raw.items():
        ids = _class_ids(targets[key], classes) if task == Task.CLASSIFICATION else targets[key]
        kept = None if task == Task.NONE else ids
        splits[key] = Split(part.inputs, kept, part.rows_per_example, part.labels)
    if WHOLE in splits:
        whole = splits[WHOLE]
        # Checked before it is divided, so that a message speaks of the caller's rows.
        make_data({"test": whole}, task=task, classes=classes)
        fractions = settings.get("fractions", FRACTIONS)
        splits = split_data(whole, fractions, seed=settings.get("seed", 0))
    elif "fractions" in settings:
        raise DataError(
            f"Data that names its splits must not be divided again; got splits {sorted(splits)} "
            f"and fractions {settings['fractions']}. Leave the fractions out."
        )
    return make_data(
        splits,
        task=task,
        classes=classes,
        name=settings.get("name", "data"),
        allow_duplicates=settings.get("allow_duplicates", False),
    )


def _guess_task(raw: Mapping[str, RawSplit], targets: Mapping[str, Any]) -> str:
    known = [array for array in targets.values() if array is not None]
    if not known:
        return Task.NONE
    if any(part.rows_per_example == 2 for part in raw.values()):
        return Task.SIMILARITY
    return Task.REGRESSION if known[0].dtype.kind == "f" else Task.CLASSIFICATION


def _class_ids(targets: Any, classes: tuple[str, ...]) -> Any:  # Any: array or None, both ways
    if targets is None or targets.dtype.kind not in "US":
        return targets
    ids = {name: index for index, name in enumerate(classes)}
    unknown = sorted({str(label) for label in targets} - set(ids))
    if unknown:
        raise DataError(
            f"Labels must be among the classes; got {unknown[0]!r}. " + suggest(unknown[0], classes)
        )
    return np.array([ids[str(label)] for label in targets], dtype=np.int64)
