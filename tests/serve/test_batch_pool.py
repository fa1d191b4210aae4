from dataclasses import replace
from pathlib import Path

import batch_cases as cases
import pytest

from ingot.core.errors import DataError, EngineError, ServeError
from ingot.runtime.engine import EngineConfig
from ingot.serve.batch.parts import parts_of
from ingot.serve.batch.plan import plan_batch
from ingot.serve.batch.pool import answer_in_processes
from ingot.serve.batch.rows import rows_of

TEXTS = cases.sentences(80)


@pytest.fixture
def work(tmp_path: Path):
    source = cases.write_csv(tmp_path / "in.csv", TEXTS)
    model = cases.text_model(tmp_path / "model")
    work = plan_batch(cases.small(model, source, tmp_path / "out.csv")).work
    work.folder.mkdir()
    return work


def parts(work):
    return parts_of(rows_of(work.source, ["text"]), 16)


def test_a_killed_process_is_replaced_and_its_part_done_again(work):
    found = list(answer_in_processes(parts(work), work, 2, opener=cases.DiesOnce))

    assert sorted(done.index for done in found) == [0, 1, 2, 3, 4]
    assert (work.errors / "killed").exists()
    assert all(work.part_path(index).exists() for index in range(5))


def test_a_part_that_kills_every_process_is_named_by_its_rows(work):
    with pytest.raises(ServeError, match=r"3 died .* at rows 32 to 47"):
        list(answer_in_processes(parts(work), work, 2, opener=cases.DiesAlways))


def test_what_is_under_way_is_finished_when_a_part_fails(work):
    found = []
    with pytest.raises(ServeError, match="part 1 raised KeyError: 'no such thing'"):
        found.extend(answer_in_processes(parts(work), work, 2, opener=cases.Raises))

    assert 0 in [done.index for done in found]


def test_what_is_under_way_is_finished_when_the_input_breaks_off(work):
    def breaks():
        yield next(parts(work))
        raise DataError("broken off")

    found = []
    with pytest.raises(DataError, match="broken off"):
        found.extend(answer_in_processes(breaks(), work, 2))

    assert [done.index for done in found] == [0]


def test_an_engine_that_cannot_open_says_why(work):
    bad = replace(work, config=EngineConfig(precision="bf16"))
    with pytest.raises(EngineError, match="must run in fp32"):
        list(answer_in_processes(parts(work), bad, 2))
