import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingot.serve.deploy.processes import descendants, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

# A grandchild in a session of its own, left behind by its parent; its id is printed.
LEAVE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "from subprocess import *; "
    "print(Popen(['sleep', '60'], start_new_session=True, stdout=DEVNULL, stderr=DEVNULL).pid)"],
    stdout=subprocess.PIPE, text=True)
left = int(child.communicate()[0])
"""


def is_alive(process):
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_gone(process, limit_s=20):
    deadline = time.monotonic() + limit_s
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(process)


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_descendants_are_found_below_descendants():
    with subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"]
    ) as child:
        try:
            deadline = time.monotonic() + 20
            while len(descendants(child.pid)) < 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            (grandchild,) = descendants(child.pid)

            assert grandchild in descendants(os.getpid())
        finally:
            for process in (*descendants(child.pid), child.pid):
                os.kill(process, signal.SIGKILL)


def test_a_process_that_was_left_behind_is_adopted_and_ended():
    left, killed, after = run(
        "from ingot.serve.deploy.processes import *\n"
        "adopt_orphans()\n" + LEAVE +
        "assert left in descendants(os.getpid())\n"
        "print(left, end_descendants(grace_s=5), len(descendants(os.getpid())))"
    )  # fmt: skip

    assert (killed, after) == (0, 0)
    assert not is_alive(left)


def test_a_process_that_does_not_listen_is_killed():
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(60)"
    killed, after = run(
        "import os, subprocess, sys\n"
        "from ingot.serve.deploy.processes import *\n"
        f"one = subprocess.Popen([sys.executable, '-uc', {stubborn!r}], stdout=subprocess.PIPE)\n"
        "one.stdout.readline()\n"
        "print(end_descendants(grace_s=0.2), len(descendants(os.getpid())))\n"
        "one.stdout.close()"
    )

    assert (killed, after) == (1, 0)


def test_a_child_ends_with_its_parent():
    (child,) = run(
        "import os, subprocess, sys\n"
        "code = 'import os, signal, time\\n'\\\n"
        "    'from ingot.serve.deploy.processes import die_with_parent\\n'\\\n"
        "    f'die_with_parent(signal.SIGKILL, {os.getpid()})\\n'\\\n"
        "    'print(1, flush=True)\\ntime.sleep(60)'\n"
        "one = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "one.stdout.readline()\n"
        "print(one.pid, flush=True)\n"
        "os._exit(0)"
    )

    assert wait_gone(child)


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(
            "import signal\nfrom ingot.serve.deploy.processes import die_with_parent\n"
            "die_with_parent(signal.SIGKILL, 1)"
        )

    assert error.value.returncode == -signal.SIGKILL


def test_the_heir_ends_what_a_killed_process_leaves_and_removes_its_folder(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c",
         "import os\nfrom multiprocessing import Pipe\n"
         "from pathlib import Path\nfrom ingot.serve.deploy.processes import *\n"
         "adopt_orphans()\nunheard, alive = Pipe(duplex=False)\n" + LEAVE +
         f"heir = start_heir(unheard.fileno(), Path({str(folder)!r}))\n"
         "time.sleep(2.5)\nprint(left, flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    ) as keeper:  # fmt: skip
        left = int(keeper.stdout.readline())
        assert is_alive(left)
        keeper.kill()

    assert wait_gone(left)
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.exists()


def test_processes_are_found_by_their_executable():
    sleep = Path("/usr/bin/sleep") if Path("/usr/bin/sleep").exists() else Path("/bin/sleep")
    with subprocess.Popen([str(sleep), "60"]) as child:
        try:
            deadline = time.monotonic() + 20
            while child.pid not in running(sleep) and time.monotonic() < deadline:
                time.sleep(0.02)

            assert running(sleep) == {child.pid}
        finally:
            child.kill()
