import hashlib
import json
import os
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from job_sessions import Doubler
from job_words import request_of

from ingot.core.errors import ServeError
from ingot.serve.jobs import places
from ingot.serve.jobs.answer import GivenUp, Worker
from ingot.serve.jobs.job import Lease
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.problems import RequestError, encode_problem

BUCKET = "s3://bucket/in"


class Bucket(MemoryFileSystem):
    """An object store in memory that answers to the name of a real one."""

    protocol = "s3"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("s3://", "memory://"))


@pytest.fixture
def bucket():
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket()
    Bucket.store.clear()
    _registry.pop("s3")


def lease_of(uri="", *, output, body=None, timeout_s=60.0):
    return Lease("job", "owner-12345678", 1, str(output), body, str(uri), timeout_s, 0.0)


@pytest.fixture
def worker(endpoint, settings):
    return Worker(endpoint, Doubler(), settings)


@pytest.mark.parametrize(
    "uri",
    [
        "http://x/y", "https://x/y", "ftp://x/y", "ssh://x/y", "github://a:b@c/d", "data:,x",
        "simplecache::s3://bucket/in/x", "zip://a::file:///b", "s3://bucket/in/../out",
        "s3://bucket/in//x", "s3://key:secret@bucket/in/x", "s3://bucket/in/*", "s3://bucket/in/?",
        "s3:///in/x", "x\0y", "relative", "", "file://relative", "s3://bucket/in/\n",
        "/" + "x" * 5000,
    ],
)  # fmt: skip
def test_places_of_the_wrong_kind_are_refused_in_words(uri, inputs):
    with pytest.raises(RequestError) as caught:
        places.check_input(uri, (str(inputs), BUCKET))

    assert caught.value.status in {400, 403}
    assert ";" in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/input/x", "s3://bucket/in", "s3://other/in/x", "gs://bucket/in/x"]
)
def test_a_prefix_is_a_folder_not_the_start_of_a_name(uri):
    with pytest.raises(RequestError, match="must lie inside"):
        places.check_input(uri, (BUCKET,))


def test_places_inside_are_returned_in_one_form(inputs):
    roots = (places.check_root(str(inputs)), places.check_root(BUCKET + "/"))

    assert places.check_input(f"file://{inputs}/one.json", roots) == f"{inputs}/one.json"
    assert places.check_input(f"{inputs}/../inputs/one.json", roots) == f"{inputs}/one.json"
    assert places.check_input("S3://bucket/in/a/b.json", roots) == "s3://bucket/in/a/b.json"


def test_a_link_that_is_moved_after_the_check_is_refused_when_opened(inputs, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (inputs / "link").symlink_to(inputs / "one.json")
    place = str(inputs / "link")
    places.check_input(place, (str(inputs),))
    (inputs / "link").unlink()
    (inputs / "link").symlink_to(secret)

    with pytest.raises(RequestError):
        places.open_input(place, (str(inputs),))


def test_a_pipe_does_not_hold_the_instance(inputs):
    os.mkfifo(inputs / "pipe.json")

    with pytest.raises(RequestError, match="must be a file"):
        places.open_input(str(inputs / "pipe.json"), (str(inputs),))


def test_a_result_appears_whole_or_not_at_all(tmp_path):
    lease = lease_of(output=tmp_path / "out" / "r.json")
    with places.stage(lease, scratch=tmp_path) as staged:
        staged.write(b"answer")
        assert not Path(lease.output).exists()
    assert not Path(lease.output).exists()
    staged.publish()

    assert b"".join(places.read_result(lease.output)) == b"answer"
    assert staged.digest == "sha256:" + hashlib.sha256(b"answer").hexdigest()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["r.json"]


def test_a_failed_attempt_leaves_no_part(tmp_path):
    lease = lease_of(output=tmp_path / "r.json")

    def half():
        with places.stage(lease, scratch=tmp_path) as staged:
            staged.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()

    assert list(tmp_path.iterdir()) == []


def test_parts_of_the_dead_go_when_they_are_old_enough(tmp_path):
    part = tmp_path / "m" / ".r.json.1-x.part"
    part.parent.mkdir()
    part.write_bytes(b"half")
    now = part.stat().st_mtime

    assert places.remove_parts(tmp_path, older_s=10, clock=lambda: now + 5) == 0
    assert places.remove_parts(tmp_path, older_s=10, clock=lambda: now + 11) == 1
    assert not part.exists()
    assert places.remove_parts(tmp_path / "none", older_s=0) == 0


def test_a_file_far_larger_than_memory_may_be_is_streamed_line_by_line(worker, inputs, tmp_path):
    line = (
        encode_problem(400, "x" * 2000) + b"\n"
    )  # no request: every line is answered with an error
    many = 4000
    (inputs / "big.jsonl").write_bytes(line * many)
    lease = lease_of(inputs / "big.jsonl", output=tmp_path / "out.jsonl")

    tracemalloc.start()
    answer = worker.answer(lease, threading.Event())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    answer.publish()

    assert answer.note == f"{many} lines, {many} failed"
    assert peak < len(line) * many / 8
    assert len(Path(lease.output).read_bytes().splitlines()) == many


def test_one_request_beyond_the_limit_names_the_way_out(worker, inputs, tmp_path, endpoint):
    small = Worker(endpoint, Doubler(), replace(worker.settings, max_json_bytes=10))

    with pytest.raises(RequestError, match="jsonl"):
        small.answer(lease_of(inputs / "one.json", output=tmp_path / "r.json"), threading.Event())


def test_a_line_beyond_the_limit_is_refused_without_being_read_whole(
    worker, inputs, tmp_path, endpoint
):
    small = Worker(endpoint, Doubler(), replace(worker.settings, max_line_bytes=10))
    (inputs / "long.jsonl").write_bytes(b"x" * 100)

    with pytest.raises(RequestError, match="at most 10 bytes"):
        small.answer(lease_of(inputs / "long.jsonl", output=tmp_path / "r.json"), threading.Event())


def test_an_attempt_that_nobody_wants_stops_between_lines(worker, inputs, tmp_path):
    stop = threading.Event()
    stop.set()
    (inputs / "a.jsonl").write_text("{}\n")
    with pytest.raises(GivenUp, match="cancelled"):
        worker.answer(lease_of(inputs / "a.jsonl", output=tmp_path / "r"), stop)


def test_an_attempt_past_its_time_stops_between_lines(endpoint, settings, inputs, tmp_path):
    times = iter((0.0, 1.0, 100.0))
    worker = Worker(endpoint, Doubler(), settings, clock=lambda: next(times))
    (inputs / "a.jsonl").write_text("{}\n{}\n")

    with pytest.raises(GivenUp, match="timeout_s"):
        worker.answer(
            lease_of(inputs / "a.jsonl", output=tmp_path / "r", timeout_s=60.0), threading.Event()
        )


def test_an_empty_file_of_lines_is_refused(worker, inputs, tmp_path):
    (inputs / "a.jsonl").write_text("\n\n")

    with pytest.raises(RequestError, match="must hold a request"):
        worker.answer(lease_of(inputs / "a.jsonl", output=tmp_path / "r"), threading.Event())


def test_an_object_is_read_answered_and_uploaded_whole(bucket, endpoint, settings, tmp_path):
    bucket.pipe("s3://bucket/in/a.json", json.dumps(request_of(1.0, 2.0)).encode())
    worker = Worker(
        endpoint, Doubler(), replace(settings, roots=(BUCKET,), output="s3://bucket/out")
    )
    lease = lease_of("s3://bucket/in/a.json", output="s3://bucket/out/job.json")

    answer = worker.answer(lease, threading.Event())

    assert answer.publish is None
    result = b"".join(places.read_result(lease.output))
    assert json.loads(result)["outputs"][0]["data"] == [2.0, 4.0]
    assert list(settings.staging.iterdir()) == []
    places.remove_result(lease.output)
    places.remove_result(lease.output)
    with pytest.raises(FileNotFoundError):
        places.read_result(lease.output)


def test_a_failed_attempt_uploads_nothing(bucket, endpoint, settings):
    bucket.pipe("s3://bucket/in/a.json", b"no request")
    worker = Worker(endpoint, Doubler(), replace(settings, roots=(BUCKET,)))

    with pytest.raises(RequestError):
        worker.answer(
            lease_of("s3://bucket/in/a.json", output="s3://bucket/out/r"), threading.Event()
        )

    assert not bucket.exists("s3://bucket/out/r")


@pytest.mark.parametrize("values", [{"concurrency": 0}, {"lease_s": 0.1}, {"roots": ("http://x",)}])
def test_settings_that_cannot_work_are_refused(tmp_path, values):
    with pytest.raises(ServeError, match="; got "):
        AsyncSettings(tmp_path, **values)
