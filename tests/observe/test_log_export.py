import csv
import json
import tracemalloc
from dataclasses import asdict, fields, replace

import pyarrow.parquet as parquet
import pytest

from ingot.core.errors import DataError
from ingot.observe.export import COLUMNS, export_log
from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation
from ingot.observe.reading import Selection
from ingot.observe.rules import LogRules

FULL = Observation(
    "r1", 12.5, "digits", "sha256:ab", "user", "b", 0.25, "act", "in", "out", 503, 1.5,
    "curl", "eu", 7, "cat", 0.9, 0.1, True, "d\u00f6g, \"big\"\n", 1.0, "ep", 3, 0.5,
)  # fmt: skip
PLAIN = Observation("r2", 13.5, "digits", "sha256:cd")
OTHER = replace(PLAIN, endpoint="faces", time=14.5)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "o.sqlite"
    with ObservationLog(path, rules=LogRules(max_age_s=1e12), clock=lambda: 5.0) as opened:
        for row in (PLAIN, FULL, OTHER):
            opened.record(row)
    return path


def test_parquet_holds_every_field_in_order_of_time(log, tmp_path):
    done = export_log(log, tmp_path / "t.parquet")

    found = parquet.read_table(done.path).to_pylist()
    assert found == [asdict(FULL), asdict(PLAIN), asdict(OTHER)]
    assert (done.rows, done.first, done.last) == (3, 12.5, 14.5)


def test_json_lines_hold_every_field(log, tmp_path):
    path = export_log(log, tmp_path / "t.jsonl").path

    rows = [Observation(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    assert rows == [FULL, PLAIN, OTHER]


def test_csv_holds_every_field_as_text(log, tmp_path):
    with export_log(log, tmp_path / "t.csv").path.open(encoding="utf-8", newline="") as stream:
        first, *_ = csv.DictReader(stream)

    assert list(first) == [f.name for f in fields(Observation)]
    assert (first["human_label"], first["deferred"], first["latency_ms"]) == (
        FULL.human_label, "1", "1.5",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("selection", "rows"),
    [
        (Selection("faces"), [OTHER]),
        (Selection("digits", version="ab"), [FULL]),
        (Selection(version="sha256:cd"), [PLAIN, OTHER]),
        (Selection(arm="b"), [FULL]),
        (Selection(since=13.5, until=14.5), [PLAIN]),
        (Selection("nobody"), []),
    ],
)
def test_only_what_is_selected_is_written(log, tmp_path, selection, rows):
    path = export_log(log, tmp_path / "t.parquet", selection).path

    assert parquet.read_table(path).to_pylist() == [asdict(row) for row in rows]


def test_parquet_says_what_it_is(log, tmp_path):
    path = export_log(log, tmp_path / "t.parquet", Selection("digits", since=1.0)).path

    said = json.loads(parquet.ParquetFile(path).metadata.metadata[b"ingot"])
    rules = LogRules(max_age_s=1e12)
    assert said["product"].startswith("ingot ")
    assert (said["endpoint"], said["since"], said["rows"]) == ("digits", 1.0, 2)
    assert (said["first"], said["last"]) == (12.5, 13.5)
    assert said["rules"] == [{"digest": rules.digest, "since": 5.0, "rules": rules.to_json()}]


def test_parquet_carries_the_units_of_its_columns(log, tmp_path):
    schema = parquet.read_schema(export_log(log, tmp_path / "t.parquet").path)

    assert schema.field("latency_ms").metadata == {b"unit": b"ms"}
    assert [schema.field(c.name).nullable for c in COLUMNS] == [c.is_optional for c in COLUMNS]


def test_a_large_log_is_written_in_row_groups_holding_little_in_memory(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite", capacity=30_000) as log:
        for i in range(20_000):
            log.record(replace(PLAIN, request_id=f"{i:0200d}", time=float(i)))
    tracemalloc.start()
    path = export_log(tmp_path / "o.sqlite", tmp_path / "t.parquet", row_group=1000).path
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    groups = parquet.ParquetFile(path).metadata
    assert groups.num_row_groups == 20
    assert {groups.row_group(i).num_rows for i in range(20)} == {1000}
    assert peak < 8e6  # 20,000 rows take 20 MB


def test_an_export_that_fails_leaves_the_old_table_and_no_litter(log, tmp_path, monkeypatch):
    target = tmp_path / "out" / "t.jsonl"
    target.parent.mkdir()
    target.write_text("old")
    monkeypatch.setattr(Observation, "to_json", lambda _: {"not": object()})

    with pytest.raises(TypeError):
        export_log(log, target)

    assert [path.name for path in target.parent.iterdir()] == ["t.jsonl"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("name", ["t.xlsx", "t", "nowhere/t.csv"])
def test_a_place_that_cannot_be_written_is_refused(log, tmp_path, name):
    with pytest.raises(DataError, match="must end in|folder that is there"):
        export_log(log, tmp_path / name)


def test_a_log_that_is_not_there_is_refused_and_not_made(tmp_path):
    with pytest.raises(DataError, match="Serve something first"):
        export_log(tmp_path / "o.sqlite", tmp_path / "t.csv")

    assert list(tmp_path.iterdir()) == []
