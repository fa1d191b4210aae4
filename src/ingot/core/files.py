"""Files that are either whole or not there."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ingot.core.errors import IngotError


def home() -> Path:
    """Return the folder of store, registry, ledger and caches: `$INGOT_HOME` or `~/.ingot`."""
    return Path(os.environ.get("INGOT_HOME") or Path.home() / ".ingot").expanduser()


def digest_file(path: Path) -> str:
    """Return the SHA-256 digest of a file, read in one-MiB pieces."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> Path:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        IngotError: The disk is full; nothing was changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        _explain(error, path)
        raise
    return path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content becomes `path` when the block succeeds.

    Raises:
        IngotError: The disk is full; nothing was changed.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with full_disk_explained(path), os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return what a file holds that only its owner can read; the first call makes it.

    Processes that make it at the same time all get what the first of them wrote.

    Args:
        path: The file.
        make: Returns the content of a new one.

    Raises:
        IngotError: The disk is full.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with full_disk_explained(path), os.fdopen(descriptor, "wb") as stream:
                stream.write(make())
                stream.flush()
                os.fsync(stream.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, path)  # unlike a rename it never replaces what another one made
        finally:
            Path(name).unlink(missing_ok=True)
    return path.read_bytes()


def need_room(folder: Path, size_bytes: int, what: str) -> None:
    """Check that a disk has room before long work starts.

    Args:
        folder: Where files will be written; it may not be there yet.
        size_bytes: How much they will take.
        what: What will be written, for the message.

    Raises:
        IngotError: The disk has less room.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(there).free
    if free < size_bytes:
        raise IngotError(
            f"Writing {what} must fit on the disk; it takes about {size_bytes:,} bytes and "
            f"{folder} has {free:,} free. Free some space or point INGOT_HOME at a larger disk. "
            "Nothing was changed."
        )


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `final` when the block succeeds and vanishes if not.

    An existing `final` wins: content-addressed folders with the same name hold the same bytes.

    Raises:
        IngotError: The disk is full; nothing was changed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name[:24]}."))
    try:
        yield folder
        folder.chmod(0o755)
        with contextlib.suppress(FileExistsError):
            if not final.exists():
                _rename(folder, final)
    except BaseException as error:
        _explain(error, final)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn "no space left" while `path` is written into an error that says what to do.

    Raises:
        IngotError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        _explain(error, path)
        raise


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _explain(error: BaseException, path: Path) -> None:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = shutil.disk_usage(path.parent).free
        raise IngotError(
            f"Writing {path.name!r} must fit on the disk; {path.parent} has {free:,} bytes free. "
            "Free some space or point INGOT_HOME at a larger disk. Nothing was changed."
        ) from error
