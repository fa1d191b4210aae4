"""Processes of a nursery: they do what they are told, end with their caller, and are told apart."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import nursery_work as work
import pytest

from ingot.core.errors import ServeError
from ingot.serve.workers.child import Child
from ingot.serve.workers.nursery import Nursery, libraries_of

HERE = Path(__file__).parent
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def nursery():
    made = Nursery(["nursery_work"])
    yield made
    made.close()


def ended(child):
    with suppress(EOFError, OSError):
        while True:
            child.link.recv()
    child.link.close()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pid):
    deadline = time.monotonic() + 20
    while is_there(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_runs_a_function_in_a_process_of_its_own(nursery):
    child = Child(nursery, work.say, "hello", times=2)

    said = [child.link.recv(), child.link.recv()]
    ended(child)

    assert said == [(child.pid, "hello")] * 2
    assert child.pid != os.getpid()
    assert child.exitcode == 0


def test_a_killed_child_ends_its_link_and_is_known_to_be_killed(nursery):
    child = Child(nursery, work.echo)
    child.kill()
    ended(child)

    assert child.exitcode == -signal.SIGKILL


def test_a_child_that_raises_ends_with_1_and_leaves_the_others_alone(nursery):
    other, child = Child(nursery, work.echo), Child(nursery, work.fail)
    ended(child)
    other.link.send("still")

    assert other.link.recv() == "still"
    assert child.exitcode == 1
    other.link.close()


@needs_proc
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "native"])
def test_the_template_of_every_engine_has_no_threads_and_its_children_find_it_imported(engine):
    modules = libraries_of({engine})
    pytest.importorskip(modules[0])
    nursery = Nursery(["nursery_work", *modules])
    try:
        child = Child(nursery, work.loaded, modules[0])
        threads = len(list(Path(f"/proc/{parent_of(child.pid)}/task").iterdir()))

        child.link.send("go")
        assert child.link.recv() is True
        assert threads == 1
        ended(child)
    finally:
        nursery.close()


@needs_proc
def test_a_child_outlives_its_template_and_a_new_one_forks_the_next(nursery):
    first = Child(nursery, work.echo)
    os.kill(parent_of(first.pid), signal.SIGKILL)
    first.link.send("alive")
    heard = first.link.recv()
    code = nursery.code(first.pid, patience_s=10.0)  # ends when the template is seen to be gone
    second = Child(nursery, work.echo)
    first.link.close()
    second.link.send("too")

    assert (heard, second.link.recv()) == ("alive", "too")
    assert code is None
    second.link.close()


@needs_proc
def test_closing_a_nursery_ends_a_child_that_does_not_listen():
    nursery = Nursery(["nursery_work"], grace_s=0.1)
    child = Child(nursery, work.sleep)
    template = parent_of(child.pid)
    child.link.close()
    nursery.close()

    assert not is_there(child.pid)
    assert not is_there(template)


def test_a_child_ends_with_a_caller_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    code = f"""
    import os, sys
    sys.path[:0] = {[str(HERE), *sys.path]!r}
    import nursery_work as work
    from ingot.serve.workers.child import Child
    from ingot.serve.workers.nursery import Nursery
    nursery = Nursery(["nursery_work"], grace_s=0.1)
    print(Child(nursery, work.echo).pid, Child(nursery, work.sleep).pid, flush=True)
    os.kill(os.getpid(), 9)
    """
    script.write_text(dedent(code))

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)

    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    for pid in pids:
        wait_gone(pid)


def test_a_template_that_cannot_fork_for_a_while_lives_on():
    nursery = Nursery(["nursery_poor", "nursery_work"])
    try:
        none, child = Child(nursery, work.say, "lost"), Child(nursery, work.say, "next")
        ended(none)

        assert none.pid == 0
        assert child.link.recv()[1] == "next"
        ended(child)
    finally:
        nursery.close()


def test_what_cannot_be_sent_is_refused_here_and_leaves_no_process(nursery):
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        Child(nursery, work.say, lambda: None)

    child = Child(nursery, work.say, "next")
    assert child.link.recv()[1] == "next"
    ended(child)


def test_a_process_that_never_comes_to_life_is_an_error(nursery, monkeypatch):
    from ingot.serve.workers import child

    monkeypatch.setattr(child, "_BORN_S", 0.2)
    monkeypatch.setattr(child, "BEGIN", "nursery_work:never")

    with pytest.raises(ServeError, match="must come to life within 0.2 s"):
        Child(nursery, work.say, "hello")


def test_only_engines_with_a_library_of_their_own_are_imported_ahead():
    assert libraries_of(["openvino", "onnxruntime", "fragile"]) == ["onnxruntime", "openvino"]
