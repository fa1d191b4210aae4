"""Whatever the input holds: every row is answered or refused, once."""

import itertools
import json

import batch_cases as cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.serve.batch.parts import parts_of
from ingot.serve.batch.rows import Row
from ingot.serve.batch.run import run_batch

NUMBERS = st.one_of(
    st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans(), st.lists(st.floats())
)
LINES = st.one_of(
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")),
    st.fixed_dictionaries({}, optional={"x": st.lists(NUMBERS, min_size=2, max_size=4)})
    .map(lambda row: json.dumps(row).encode()),
    st.just(b'{"x": [1, 2, 3], "id": 1}'),
)  # fmt: skip
COUNT = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lines")


@pytest.fixture(scope="module")
def double(folder):
    return cases.number_model(folder / "model")


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(LINES, max_size=12))
def test_every_line_is_answered_or_refused_once(folder, double, lines):
    work = folder / str(next(COUNT))
    work.mkdir()
    first = b'{"x": [1, 2, 3], "id": 1}'
    (work / "in.jsonl").write_bytes(b"\n".join([first, *lines]))
    batch = cases.small(double, work / "in.jsonl", work / "out.jsonl", part_rows=5, max_errors=99)
    found = run_batch(batch)

    errors = cases.read_jsonl(found.error_file) if found.error_file else []
    answers = cases.read_jsonl(work / "out.jsonl")
    rows = sorted(row["row"] for row in (*answers, *errors))
    assert rows == list(range(1 + sum(bool(line.strip()) for line in lines)))
    assert all(len(row["y"]) == 3 for row in answers)


@given(widths=st.lists(st.integers(0, 12), max_size=20), part_rows=st.integers(1, 7))
def test_parts_hold_every_row_in_order_and_stay_small(widths, part_rows):
    rows = [Row(i, 0, i, {"x": [0.0] * width}) for i, width in enumerate(widths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingot.serve.batch.parts.PART_BYTES", 160)  # twenty numbers
        parts = list(parts_of(iter(rows), part_rows))

    assert [row for part in parts for row in part.rows] == rows
    assert [part.index for part in parts] == list(range(len(parts)))
    for part in parts:
        assert 0 < len(part.rows) <= part_rows
        assert sum(len(row.values["x"]) for row in part.rows[:-1]) < 20
