"""A PostgreSQL server for the time of a benchmark, on a socket of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server with its own defaults, which wait for the disk, and give its address.

    Root starts it as the user `postgres`, because the server refuses to run as root.
    """
    initdb = shutil.which("initdb")
    if initdb is None:
        raise FileNotFoundError("PostgreSQL must be installed: initdb is not on the PATH")
    programs = Path(initdb).resolve().parent
    user = pwd.getpwnam("postgres").pw_uid if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if user is not None:
            os.chown(folder, user, -1)

        def run(program: str, *words: str) -> None:
            command = [programs / program, "-D", folder / "data", *words]
            subprocess.run(command, check=True, capture_output=True, user=user, cwd=folder)

        run("initdb", "-A", "trust", "-U", "bench")
        options = f"-k {folder} -c listen_addresses=''"
        run("pg_ctl", "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"host={folder} user=bench dbname=postgres"
        finally:
            run("pg_ctl", "-m", "fast", "-w", "stop")
