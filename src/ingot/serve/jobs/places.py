"""Where jobs may read and write: local folders and object stores, nothing outside of them."""

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ingot.core.errors import MissingExtraError
from ingot.core.extras import need
from ingot.serve.jobs.job import Lease
from ingot.serve.problems import RequestError

REMOTE = ("s3", "gs", "gcs", "az", "abfs", "abfss")
_REMOTE_KEY = re.compile(r"[^\x00-\x1f\x7f?#*\[\]]{1,2048}")
_PIECE_BYTES = 1024 * 1024


def check_root(root: str) -> str:
    """Return a root in the form that inputs are compared with.

    Args:
        root: A folder, `file:///folder`, or `s3://bucket/prefix` and the like.

    Raises:
        RequestError: It is of no kind that jobs can use.
    """
    scheme, path = _split(root)
    if scheme == "file":
        return str(Path(path).expanduser().resolve())
    return _plain(root).rstrip("/")


def check_input(uri: str, roots: Sequence[str]) -> str:
    """Return the place that a URI names, once it is known to lie inside an allowed root.

    A local path is followed through its links before it is compared, and must be a file. Schemes
    that reach other hosts by name (http, ftp, ssh) and chained URLs (`::`) are not spoken.

    Args:
        uri: As the caller sent it.
        roots: As `check_root` returned them.

    Raises:
        RequestError: The URI is malformed (400), outside the roots (403), or no file (404).
    """
    scheme, path = _split(uri)
    if scheme == "file":
        place = str(_resolve(path))
        inside = any(Path(place).is_relative_to(root) for root in roots if "://" not in root)
    else:
        place = _plain(uri)
        inside = any(place.startswith(root + "/") for root in roots if "://" in root)
    if not inside:
        raise RequestError(
            f"An input must lie inside a folder that this endpoint may read; {uri!r} does not. "
            "Put it there, or start the endpoint with --allow for its folder.",
            status=403,
        )
    if scheme == "file" and not Path(place).is_file():
        raise RequestError(f"An input must be a file; {uri!r} is none. Check the path.", status=404)
    return place


def open_input(place: str, roots: Sequence[str]) -> BinaryIO:
    """Open an input for reading, after checking it once more on what was really opened.

    Raises:
        RequestError: It left its root, is gone or is no plain file.
        OSError: It cannot be reached now.
    """
    if "://" in place:
        fsspec = need("fsspec", extra="serve", what="Reading from an object store")
        remote: BinaryIO = fsspec.open(check_input(place, roots), "rb").open()
        return remote
    # Non-blocking, so that a pipe put in the file's place cannot hold the instance.
    descriptor = os.open(check_input(place, roots), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError(f"An input must be a plain file; {place!r} is none. Copy it.")
        link = Path(f"/proc/self/fd/{descriptor}")
        if link.exists():
            check_input(str(link.readlink()), roots)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@dataclass(slots=True)
class Staged:
    """A result while it is written, and once it is whole.

    Attributes:
        size_bytes: Bytes so far.
        publish: Makes it visible under its announced name; None where writing did so already.
    """

    _stream: BinaryIO
    size_bytes: int = 0
    publish: Callable[[], None] | None = None
    _hash: Any = field(default_factory=hashlib.sha256)  # hashlib's objects have no public type

    def write(self, data: bytes) -> None:
        """Append."""
        self._stream.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    @property
    def digest(self) -> str:
        """SHA-256 of what was written."""
        return f"sha256:{self._hash.hexdigest()}"


@contextlib.contextmanager
def stage(lease: Lease, *, scratch: Path, durable: bool = False) -> Iterator[Staged]:
    """Give a place to write a result, which nobody sees before it is published.

    Each attempt writes a local file of its own. Publishing is a rename, so a reader sees a whole
    result or none, and a late attempt never replaces the winner's. For an object store the file is
    uploaded when it is whole; a late attempt of a model that answers alike uploads the same again.

    Args:
        lease: Whose result.
        scratch: Local folder for what will be uploaded.
        durable: Whether the bytes must survive power loss before they are published.
    """
    part, final = _part(lease, scratch), lease.output
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as stream:
            staged = Staged(stream)
            yield staged
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        if "://" in final:
            fsspec = need("fsspec", extra="serve", what="Writing to an object store")
            system, path = fsspec.core.url_to_fs(final)
            system.put_file(str(part), path)
            part.unlink()
        else:
            staged.publish = lambda: _rename(part, Path(final))
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def discard(lease: Lease, *, scratch: Path) -> None:
    """Remove what an attempt staged and did not publish."""
    _part(lease, scratch).unlink(missing_ok=True)


def need_drivers(places: Sequence[str]) -> None:
    """Check that what speaks to the object stores of some places is installed.

    Raises:
        MissingExtraError: It is not.
    """
    for place in places:
        if "://" in place:
            fsspec = need("fsspec", extra="serve", what="Reading from an object store")
            scheme = place.partition("://")[0]
            try:
                fsspec.get_filesystem_class(scheme)
            except ImportError as error:
                raise MissingExtraError(
                    f"Places of {scheme}:// must have a driver; got: {error}. Install it beside "
                    "Ingot, or name other places."
                ) from error


def read_result(output: str) -> Iterator[bytes]:
    """Open a result now and give it in pieces of at most one MiB.

    Raises:
        FileNotFoundError: It is not there.
    """
    if "://" in output:
        fsspec = need("fsspec", extra="serve", what="Reading from an object store")
        stream: BinaryIO = fsspec.open(output, "rb").open()
    else:
        stream = Path(output).open("rb")  # noqa: SIM115 # `pieces` closes it

    def pieces() -> Iterator[bytes]:
        with stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece

    return pieces()


def remove_result(output: str) -> None:
    """Delete a result; nothing happens if it is not there."""
    if "://" in output:
        fsspec = need("fsspec", extra="serve", what="Deleting from an object store")
        system, path = fsspec.core.url_to_fs(output)
        with contextlib.suppress(FileNotFoundError):
            system.rm(path)
    else:
        Path(output).unlink(missing_ok=True)


def remove_parts(
    folder: Path,
    *,
    older_s: float,
    is_live: Callable[[str], bool] = lambda _job: False,
    clock: Callable[[], float] = time.time,
) -> int:
    """Delete what attempts that died left behind; return how many files.

    Args:
        folder: Where results are.
        older_s: Seconds since the last write; longer than any attempt may take.
        is_live: Says of a job's id whether an attempt of it runs; the day's clock, which files are
            dated by, may have been set since they were written.
        clock: UTC seconds since 1970.
    """
    removed = 0
    for part in folder.glob("**/.*.part") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            is_old = clock() - part.stat().st_mtime > older_s
            if is_old and not is_live(part.name[1:].partition(".")[0]):
                part.unlink()
                removed += 1
    return removed


def _part(lease: Lease, scratch: Path) -> Path:
    # beside its end where that is local: a rename does not cross file systems
    final = scratch / lease.job if "://" in lease.output else Path(lease.output)
    return final.with_name(f".{final.name}.{lease.attempt}-{lease.owner[-8:]}.part")


def _rename(part: Path, final: Path) -> None:
    part.replace(final)


def _split(uri: str) -> tuple[str, str]:
    """Return scheme and path; a path alone is a file."""
    if not uri.isprintable() or "::" in uri or len(uri) > 4096:
        raise RequestError(
            "A place must be a path or URI of at most 4,096 printable characters without '::'; "
            f"got {uri[:80]!r}. Name one file."
        )
    if "://" not in uri:
        scheme, path = "file", uri
    else:
        scheme = uri.partition("://")[0].lower()
        path = uri.partition("://")[2]
    if scheme == "file":
        if path.startswith("localhost/"):
            path = path.removeprefix("localhost")
        if not path.startswith(("/", "~")):
            raise RequestError(
                f"A local place must be an absolute path; got {uri!r}. Begin it with a slash."
            )
        return scheme, path
    if scheme not in REMOTE:
        raise RequestError(
            f"A place must be a local path or one of {', '.join(REMOTE)}; got {scheme[:40]!r}. "
            "Copy the input to one of them."
        )
    return scheme, path


def _resolve(path: str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise RequestError(
            f"A path must lead to a file; {path!r} gives {error}. Check it."
        ) from error


def _plain(uri: str) -> str:
    parts = urlsplit(uri)
    steps = (parts.netloc + parts.path).rstrip("/").split("/")
    is_plain = _REMOTE_KEY.fullmatch(uri) and parts.netloc and "@" not in parts.netloc
    if not is_plain or any(step in {"", ".", ".."} for step in steps):
        raise RequestError(
            f"An object's URI must be SCHEME://BUCKET/KEY without '..', '//', queries or patterns; "
            f"got {uri[:200]!r}. Name one object."
        )
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path}"
