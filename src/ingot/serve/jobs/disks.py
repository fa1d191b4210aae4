"""Which file system a folder is on: SQLite's locks and shared memory need a local one."""

import ctypes
import os
import sys
from pathlib import Path

from ingot.serve.jobs.job import StoreError

# Magic numbers of statfs(2), Linux: linux/magic.h and the file systems' own sources.
_NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x564C: "NCP",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x65735546: "FUSE",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x50495045: "PVFS2",
}
_STATFS_BYTES = 512  # more than any platform's struct; f_type is its first machine word


def need_local_disk(folder: Path) -> None:
    """Check that a folder is on a disk of this machine.

    Two machines, or a machine and its server, do not share SQLite's write-ahead index: such a
    database is corrupted sooner or later (https://sqlite.org/wal.html, "All processes using a
    database must be on the same host computer"). FUSE counts as a network, for it hides what is
    behind it. On systems other than Linux nothing is checked.

    Args:
        folder: Where the database will be; it may not be there yet.

    Raises:
        StoreError: It is on a network or cluster file system.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    kind = network_name(file_system(there))
    if kind is not None:
        raise StoreError(
            f"A job store must be on a local disk; {folder} is on {kind}, where SQLite's locks do "
            "not hold and accepted jobs could be lost. Choose a folder of this machine's own disk."
        )


def free_bytes(folder: Path) -> int:
    """Return the room that is left for this process on the disk of a folder.

    Args:
        folder: It may not be there yet.
    """
    there = next(p for p in (folder, *folder.parents) if p.is_dir())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize


def file_system(folder: Path) -> int:
    """Return the magic number of the file system that holds a folder; 0 where it is unknown."""
    if not sys.platform.startswith("linux"):
        return 0
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(folder), buffer) != 0:
        number = ctypes.get_errno()
        raise StoreError(
            f"A job store's folder must be readable; {folder} gives {os.strerror(number)}. "
            "Check that it exists and who may read it."
        )
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def network_name(magic: int) -> str | None:
    """Return the name of a network or cluster file system, or None for a local one.

    Examples:
        >>> network_name(0x6969), network_name(0xEF53)
        ('NFS', None)
    """
    return _NETWORK.get(magic)
