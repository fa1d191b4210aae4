"""A table whose columns the model cannot take, refused at once."""

import batch_cases as cases
import pytest

from ingot.core.errors import DataError
from ingot.data.reading import Reading
from ingot.serve.batch.run import run_batch


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    return cases.number_model(tmp_path_factory.mktemp("double"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("target", ["out.jsonl", "out"])
def test_texts_for_numbers_are_refused_at_the_first_part_and_nothing_stays(
    double, tmp_path, processes, target
):
    source = cases.write_csv(tmp_path / "in.csv", cases.sentences(40))
    reading = Reading(columns={"x": "id,id,text"})
    batch = cases.small(
        double, source, tmp_path / target, reading=reading, processes=processes, max_errors=1000
    )

    with pytest.raises(DataError, match=r"none of the first 16 rows does: columns id.*numbers"):
        run_batch(batch)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_rows_of_another_length_than_the_model_takes_are_named_once(double, tmp_path):
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"x": [1.0, 2.0]}] * 20)

    with pytest.raises(DataError, match=r"first 16 rows does: .*'x' must have shape .*\(1, 2\)"):
        run_batch(cases.small(double, source, tmp_path / "out.jsonl"))


def test_one_row_that_fits_makes_the_others_rows_that_are_refused(double, tmp_path):
    rows = [{"x": [1.0, 2.0]}] * 9 + [{"x": [1.0, 2.0, 3.0]}]
    source, out = cases.write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"

    found = run_batch(cases.small(double, source, out, max_errors=9))

    assert (found.answered, found.errors) == (1, 9)
    assert cases.read_jsonl(out)[0]["y"] == [2.0, 4.0, 6.0]


def test_missing_values_are_no_misfit_of_their_column(double, tmp_path):
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"x": None}] * 3)

    with pytest.raises(DataError, match=r"At most 0 rows may be refused; got 3: row 0"):
        run_batch(cases.small(double, source, tmp_path / "out.jsonl"))
