"""Read images: folders by class, or a zip with an index of labels."""

import csv
import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ingot.core.errors import DataError
from ingot.core.extras import need
from ingot.core.names import suggest
from ingot.data._raw import WHOLE, RawSplit, as_targets, split_name
from ingot.data.data import Array
from ingot.data.pixels import ImageSpec, to_tensor
from ingot.data.reading import Reading

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
SPLITS = frozenset(
    {"train", "training", "val", "validation", "dev", "calib", "calibration", "test"}
)


def read_folder(path: Path, reading: Reading) -> dict[str, RawSplit]:
    """Return the splits of a folder: `class/image` or `split/class/image`.

    Raises:
        DataError: There are no images, or one cannot be read.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    names = [file.relative_to(path).as_posix() for file in files]
    return _by_split(path, names, lambda name: (path / name).read_bytes(), reading)


def read_zip(path: Path, reading: Reading) -> dict[str, RawSplit]:
    """Return the splits of a zip of images, labelled by an index or by class folders.

    The index is a table `file,label` (a column mapping with `file` and `target` renames these):
    `reading.index`, or the `.csv` of the same name beside the zip.

    Raises:
        DataError: The zip or the index is broken, or they do not match.
    """
    beside = path.with_suffix(".csv")
    index = reading.index or (beside if beside.is_file() else None)
    try:
        with zipfile.ZipFile(path) as archive:
            if index is not None:
                return {WHOLE: _by_index(archive, index, path, reading)}
            names = sorted(n for n in archive.namelist() if _is_image(n))
            return _by_split(path, names, archive.read, reading)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path.name!r} must be a zip of images; it cannot be read: {error}. Make it again."
        ) from error


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith("__MACOSX/")


def _by_index(archive: zipfile.ZipFile, index: Path, path: Path, reading: Reading) -> RawSplit:
    with index.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise DataError(f"Index {index.name!r} must have at least one row; got 0. Add file,label.")
    file = reading.columns.get("file", "file")
    target = reading.columns.get("target", "label")
    for column in (file, target):
        if column not in rows[0]:
            raise DataError(
                f"Index {index.name!r} must have a column {column!r}. {suggest(column, rows[0])}"
            )
    names, inside = [row[file] for row in rows], set(archive.namelist())
    missing = [name for name in names if name not in inside]
    if missing:
        raise DataError(
            f"Every file of index {index.name!r} must be in {path.name!r}; {len(missing)} are not, "
            f"the first is {missing[0]!r}. Correct the index or add the images."
        )
    pixels = _decode(names, archive.read, reading.image or ImageSpec())
    return RawSplit({"*": pixels}, as_targets([row[target] for row in rows]), labels=tuple(names))


def _by_split(
    path: Path, names: list[str], read: Callable[[str], bytes], reading: Reading
) -> dict[str, RawSplit]:
    if not names:
        raise DataError(
            f"{path.name!r} must hold images in class folders; found none. "
            f"Image files end in {', '.join(sorted(SUFFIXES))}."
        )
    tops = {PurePosixPath(name).parts[0].lower() for name in names}
    has_splits = tops <= SPLITS
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) < (3 if has_splits else 2):
            raise DataError(
                f"Every image must lie in the folder of its class; {name!r} does not. "
                "Arrange them as class/image or split/class/image."
            )
        groups.setdefault(split_name(parts[0]) if has_splits else WHOLE, []).append(name)
    spec, at = reading.image or ImageSpec(), 1 if has_splits else 0
    return {
        key: RawSplit(
            {"*": _decode(group, read, spec)},
            [PurePosixPath(name).parts[at] for name in group],
            labels=tuple(group),
        )
        for key, group in groups.items()
    }


def _decode(names: Iterable[str], read: Callable[[str], bytes], spec: ImageSpec) -> Array:
    pixels = [read_pixels(name, read(name), spec) for name in names]
    sizes = {array.shape for array in pixels}
    if len(sizes) > 1:
        raise DataError(
            f"Images must have one size; got {len(sizes)} sizes such as {sorted(sizes)[:3]}. "
            "Give a size to resize to: ImageSpec(size=(height, width))."
        )
    return to_tensor(np.stack(pixels), spec)


def read_pixels(name: str, content: bytes, spec: ImageSpec) -> Array:
    """Return the pixels of one image file, `(height, width)` or `(height, width, 3)` uint8.

    Args:
        name: What a message calls it.
        content: The bytes of the file.
        spec: Size and channels.

    Raises:
        DataError: It cannot be read.
        MissingExtraError: The extra `data` is not installed.
    """
    pillow: Any = need("PIL.Image", extra="data", what="Reading images")
    try:
        with pillow.open(io.BytesIO(content)) as image:
            picture = image.convert("L" if spec.channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DataError(
            f"Image {name!r} must be readable; got: {error}. Replace it or remove it."
        ) from error
    if spec.size is not None and picture.size != (spec.size[1], spec.size[0]):
        picture = picture.resize((spec.size[1], spec.size[0]), pillow.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8)
