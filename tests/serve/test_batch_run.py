import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import batch_cases as cases
import numpy as np
import pytest

from ingot.core.errors import DataError, EngineError, IngotError, ServeError
from ingot.data.reading import Reading
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.batch.parts import parts_of
from ingot.serve.batch.plan import plan_batch
from ingot.serve.batch.rows import Row
from ingot.serve.batch.run import finished_parts, run_batch

TEXTS = cases.sentences(90)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return cases.text_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def expected(encoder):
    return cases.embeddings_one_by_one(encoder, TEXTS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return cases.write_csv(tmp_path / "in.csv", TEXTS)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_row_is_answered_in_order_as_the_engine_answers_it_alone(
    encoder, expected, source, tmp_path, processes
):
    out = tmp_path / "out.jsonl"
    found = run_batch(cases.small(encoder, source, out, keys=("id",), processes=processes))

    rows = cases.read_jsonl(out)
    assert (found.rows, found.answered, found.errors, found.parts) == (90, 90, 0, 6)
    assert [row["id"] for row in rows] == [row["id"] for row in read_csv(source)]
    assert np.allclose([row["embedding"] for row in rows], expected, atol=1e-5)


def test_csv_has_a_column_per_value_that_reads_back_to_the_same_number(
    encoder, expected, source, tmp_path
):
    run_batch(cases.small(encoder, source, tmp_path / "out.csv", part_rows=40))
    run_batch(cases.small(encoder, source, tmp_path / "out.jsonl", part_rows=40))

    rows = read_csv(tmp_path / "out.csv")
    found = np.array([[row[f"embedding_{i}"] for i in range(32)] for row in rows], np.float32)
    by_json = [row["embedding"] for row in cases.read_jsonl(tmp_path / "out.jsonl")]
    assert [row["row"] for row in rows] == [str(i) for i in range(90)]
    assert np.array_equal(found, np.array(by_json, np.float32))
    assert np.allclose(found, expected, atol=1e-5)


def test_parquet_in_and_out_keeps_the_type_of_the_key(encoder, expected, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    days = [datetime(2026, 1, 1 + i % 28, tzinfo=UTC) for i in range(90)]
    table = arrow.table({"text": TEXTS, "day": days, "unread": [None] * 90})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=7)
    batch = cases.small(encoder, tmp_path / "in.parquet", tmp_path / "out.parquet", keys=("day",))
    run_batch(batch)

    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["day", "embedding"]
    assert found["day"].type == table["day"].type
    assert found["day"].to_pylist() == days
    assert np.allclose(found["embedding"].to_pylist(), expected, atol=1e-5)


def test_a_folder_is_read_file_after_file_and_a_folder_of_parts_written(
    encoder, expected, tmp_path
):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, part in (
        ("a.csv", slice(0, 30)),
        ("b.csv", slice(30, 31)),
        ("deep/c.csv", slice(31, 90)),
    ):
        cases.write_csv(tmp_path / "in" / name, TEXTS[part])
    (tmp_path / "in" / "_notes.csv").write_text("passed,over\n")
    found = run_batch(cases.small(encoder, tmp_path / "in", tmp_path / "out"))

    assert found.parts == len(list((tmp_path / "out").glob("part-*.parquet"))) == 6
    table = parquet.read_table(tmp_path / "out")
    assert table["row"].to_pylist() == list(range(90))
    assert np.allclose(table["embedding"].to_pylist(), expected, atol=1e-5)


def test_an_empty_table_gives_an_empty_table(encoder, tmp_path):
    cases.write_csv(tmp_path / "in.csv", [])
    found = run_batch(cases.small(encoder, tmp_path / "in.csv", tmp_path / "out.csv"))

    assert (found.rows, found.parts) == (0, 0)
    assert (tmp_path / "out.csv").read_text().startswith("row,embedding_0,")


def test_a_killed_batch_goes_on_where_it_stopped_and_gives_the_same_bytes(encoder, tmp_path):
    source = cases.write_csv(tmp_path / "in.csv", cases.sentences(1200))
    out, clean = tmp_path / "out.jsonl", tmp_path / "clean.jsonl"
    code = "import batch_cases, sys; batch_cases.main(*sys.argv[1:])"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", code, str(encoder.path), str(source), str(out)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as killed:
        parts = tmp_path / "out.jsonl.parts"
        deadline = time.monotonic() + 30
        while len(list(parts.glob("part-*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
    assert not out.exists()

    batch = cases.small(encoder, source, out, keys=("id",))
    found = run_batch(batch)
    run_batch(replace(batch, target=clean))

    assert 3 <= found.resumed < found.parts == 75
    assert out.read_bytes() == clean.read_bytes()
    assert not parts.exists()


def test_a_batch_killed_before_its_manifest_gives_the_same_bytes(
    encoder, source, tmp_path, monkeypatch
):
    batch = cases.small(encoder, source, tmp_path / "out.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("ingot.serve.batch.run.write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_batch(batch)
    before = batch.target.read_bytes()
    (tmp_path / ".out.parquet.a_b3c4d5").write_text("half of it")
    found = run_batch(batch)

    assert (found.resumed, found.parts) == (6, 6)
    assert batch.target.read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir() if "out" in path.name)
    assert names == ["out.parquet", "out.parquet.manifest.json"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_finished_batch_is_not_done_again(encoder, source, tmp_path, monkeypatch):
    batch = cases.small(encoder, source, tmp_path / "out.csv")
    first = run_batch(batch)
    monkeypatch.setattr("ingot.serve.batch.run.answer_here", None)

    assert run_batch(batch).resumed == first.parts


def test_a_part_that_was_changed_on_disk_is_answered_anew(encoder, source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError):
        run_batch(cases.small(encoder, broken(tmp_path, row=80), out, form="csv"))
    (out / "part-000001.csv").write_text("forged\n")
    batch = cases.small(encoder, tmp_path / "broken.csv", out, form="csv", max_errors=1)

    found = run_batch(batch)

    assert found.resumed == 5
    assert "forged" not in (out / "part-000001.csv").read_text()


def broken(folder: Path, *, row: int) -> Path:
    """Write the texts with an empty one."""
    return cases.write_csv(folder / "broken.csv", [*TEXTS[:row], "", *TEXTS[row + 1 :]])


def test_a_bad_row_stops_the_batch_and_finished_parts_stay(encoder, expected, tmp_path):
    source, out = broken(tmp_path, row=50), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"At most 0 .* got 1: row 50: column 'text' must have"):
        run_batch(cases.small(encoder, source, out))
    assert not out.exists()

    found = run_batch(cases.small(encoder, source, out, max_errors=1))

    errors = cases.read_jsonl(tmp_path / "out.jsonl.errors.jsonl")
    rows = cases.read_jsonl(out)
    assert (found.resumed, found.answered, found.errors) == (4, 89, 1)
    assert [(e["row"], e["file"], e["file_row"]) for e in errors] == [(50, "broken.csv", 50)]
    assert [row["row"] for row in rows] == [i for i in range(90) if i != 50]
    assert np.allclose([r["embedding"] for r in rows], np.delete(expected, 50, axis=0), atol=1e-5)


def test_the_same_bad_row_stops_the_same_command_again(encoder, tmp_path):
    batch = cases.small(encoder, broken(tmp_path, row=50), tmp_path / "out.csv")
    for _ in range(2):
        with pytest.raises(DataError, match="got 1: row 50"):
            run_batch(batch)


def test_another_model_input_or_setting_is_refused_by_name(encoder, tmp_path):
    source, out = broken(tmp_path, row=50), tmp_path / "out.csv"
    batch = cases.small(encoder, source, out)
    with pytest.raises(DataError):
        run_batch(batch)

    other = replace(encoder, digest="sha256:" + "0" * 64)
    with pytest.raises(ServeError, match="changed: model: 'sha256:.* then, 'sha256:000"):
        run_batch(replace(batch, model=other))
    with pytest.raises(ServeError, match="settings.max_length: 128 then, 64 now"):
        run_batch(replace(batch, reading=Reading(max_length=64)))
    with pytest.raises(ServeError, match="engine.threads: 1 then, 2 now"):
        run_batch(replace(batch, threads=2))
    source.write_text(source.read_text() + "k,good\n")
    with pytest.raises(ServeError, match="changed: input.*digest: .*Use another output"):
        run_batch(batch)
    assert run_batch(replace(batch, max_errors=1), fresh=True).rows == 91


def test_the_limit_of_errors_is_no_setting_that_must_stay(encoder, tmp_path):
    batch = cases.small(encoder, broken(tmp_path, row=50), tmp_path / "out.csv", max_errors=3)

    assert run_batch(batch).errors == run_batch(replace(batch, max_errors=9)).errors == 1


def test_an_output_that_no_batch_wrote_is_not_overwritten(encoder, source, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(DataError, match="something else is there"):
            run_batch(cases.small(encoder, source, tmp_path / "out.csv"), fresh=fresh)

    assert (tmp_path / "out.csv").read_text() == "mine"


def test_a_folder_with_other_files_is_not_written_into(encoder, source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").write_text("mine")
    with pytest.raises(DataError, match="something else is there"):
        run_batch(cases.small(encoder, source, tmp_path / "out"), fresh=True)

    assert (tmp_path / "out" / "part-000000.parquet").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.csv.manifest.json", "out.csv.parts"])
def test_what_lies_where_a_batch_keeps_its_own_is_not_touched(encoder, source, tmp_path, name):
    (tmp_path / "out.csv").write_text("mine")
    if name.endswith("json"):
        (tmp_path / name).write_text('{"mine": true}')
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
        (tmp_path / "out.csv").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="must be (the manifest of a batch|new)"):
        run_batch(cases.small(encoder, source, tmp_path / "out.csv"), fresh=True)

    assert sorted(tmp_path.rglob("*")) == before


def test_settings_may_change_while_nothing_is_finished(encoder, source, tmp_path):
    batch = cases.small(encoder, source, tmp_path / "out.csv", reading=Reading(max_length=64))
    bf16 = Version("w", 1, "m", "e", EngineConfig(precision="bf16"), "2026-01-01T00:00:00Z", 0)
    with pytest.raises(EngineError):
        run_batch(replace(batch, version=bf16))

    assert run_batch(batch).answered == 90


def test_the_output_cannot_lie_in_the_input(encoder, source, tmp_path):
    with pytest.raises(DataError, match="outside the input"):
        run_batch(cases.small(encoder, tmp_path, tmp_path / "out.csv"))


def test_the_output_must_be_a_file_or_folder_as_its_name_says(encoder, source, tmp_path):
    (tmp_path / "out.csv").mkdir()
    (tmp_path / "out").touch()
    for name, kind in (("out.csv", "file"), ("out", "folder")):
        with pytest.raises(DataError, match=f"must be a {kind}"):
            run_batch(cases.small(encoder, source, tmp_path / name))


def test_an_output_that_is_gone_from_its_manifest_is_named(encoder, source, tmp_path):
    batch = cases.small(encoder, source, tmp_path / "out.csv")
    run_batch(batch)
    batch.target.unlink()
    with pytest.raises(ServeError, match="must be beside its manifest"):
        run_batch(batch)

    assert run_batch(batch, fresh=True).answered == 90


def test_two_batches_cannot_write_one_output(encoder, source, tmp_path):
    batch = cases.small(encoder, source, tmp_path / "out.csv")
    with plan_batch(batch).places.locked(), pytest.raises(ServeError, match="another is at work"):
        run_batch(batch)


def test_a_full_disk_is_named_and_finished_parts_stay(encoder, source, tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    batch = cases.small(encoder, source, tmp_path / "out.csv")
    monkeypatch.setattr("ingot.core.files.os.fsync", full)
    with pytest.raises(IngotError, match="must fit on the disk.*Finished parts stay"):
        run_batch(batch)
    monkeypatch.setattr("ingot.core.files.os.fsync", fsync)

    assert 0 < run_batch(batch).resumed < 6


def test_memory_does_not_grow_with_the_input(encoder, tmp_path):
    def peak(count: int) -> int:
        source = cases.write_csv(tmp_path / f"{count}.csv", cases.sentences(count, longest=6))
        tracemalloc.start()
        run_batch(cases.small(encoder, source, tmp_path / f"{count}.out.csv", part_rows=32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(64)  # what is imported and cached once is not the question

    assert peak(1600) < 1.25 * peak(160)


def test_an_input_that_changes_while_it_is_read_is_noticed(encoder, source, tmp_path):
    class Touches:
        def step(self, message, done, total):
            os.utime(source, (1, 1))

    with pytest.raises(ServeError, match="must stay as it is"):
        run_batch(cases.small(encoder, source, tmp_path / "out.csv"), progress=Touches())


def test_the_manifest_says_what_ran(encoder, source, tmp_path):
    config = EngineConfig(threads=1)
    version = Version("words", 3, encoder.digest, encoder.digest, config, "2026-01-01T00:00:00Z", 0)
    batch = cases.small(encoder, source, tmp_path / "out.csv", version=version)
    moment = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    found = run_batch(batch, now=lambda: moment)

    facts = json.loads(found.manifest.read_text())
    assert facts["version"] == {"name": "words", "number": 3, "digest": version.digest}
    assert facts["model"] == encoder.digest
    assert facts["engine"] == config.to_json()
    assert list(facts["first_files"]) == ["in.csv"]
    assert (facts["rows"], facts["answered"], facts["errors"], facts["parts"]) == (90, 90, 0, 6)
    assert facts["started"] == facts["finished"] == "2026-05-04T03:02:01+00:00"
    assert {"ingot", "numpy", "onnxruntime"} <= set(facts["software"])


def test_a_look_before_the_start_changes_nothing(encoder, source, tmp_path):
    before = sorted(tmp_path.iterdir())
    plan = plan_batch(cases.small(encoder, source, tmp_path / "out.csv"))

    assert (finished_parts(plan), plan.scan.rows) == (0, 90)
    assert sorted(tmp_path.iterdir()) == before


def test_parquet_without_its_library_names_the_extra(encoder, source, tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "ingot\[data\]"'):
        run_batch(cases.small(encoder, source, tmp_path / "out.parquet"))


@pytest.mark.parametrize("field", ["part_rows", "batch_rows", "processes", "max_errors"])
def test_counts_below_their_least_are_refused(encoder, source, tmp_path, field):
    with pytest.raises(DataError, match=f"{field} must be at least"):
        cases.small(encoder, source, tmp_path / "out.csv", **{field: -1})


def test_an_output_of_another_kind_is_refused(encoder, source, tmp_path):
    with pytest.raises(DataError, match="must end in .parquet"):
        cases.small(encoder, source, tmp_path / "out.xlsx")
    with pytest.raises(DataError, match="form must be"):
        cases.small(encoder, source, tmp_path / "out.csv", form="jsonl")


def test_wide_rows_make_shorter_parts():
    rows = [Row(i, 0, i, {"x": [[0.0] * 1024] * 1024}) for i in range(9)]

    assert [len(part.rows) for part in parts_of(iter(rows), 100)] == [4, 4, 1]
