import os
import subprocess
import sys
from pathlib import Path

import batch_cases as cases
import pytest

from ingot.core.errors import MissingExtraError
from ingot.core.extras import is_installed
from ingot.serve.batch.on_ray import answer_on_ray
from ingot.serve.batch.plan import plan_batch
from ingot.serve.batch.rows import rows_of
from ingot.serve.batch.run import parts_of

HAS_RAY = is_installed("ray") and sys.platform == "linux"
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed, or this is not Linux")
TEXTS = cases.sentences(80)

# In a process of its own, as Ray puts its own marks on the one that starts it.
DIES = """
import sys
from pathlib import Path
import batch_cases as cases
from ingot.serve.batch.on_ray import answer_on_ray
from ingot.serve.batch.plan import plan_batch
from ingot.serve.batch.rows import rows_of
from ingot.serve.batch.run import parts_of

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = cases.text_model(folder / "model")
    work = plan_batch(cases.small(model, folder / "in.csv", folder / "out.csv")).work
    work.folder.mkdir()
    parts = parts_of(rows_of(work.source, ["text"]), 16)
    done = sorted(one.index for one in answer_on_ray(parts, work, 2, opener=cases.DiesOnce))
    print(done, (work.errors / "killed").exists())
"""


def test_a_batch_on_ray_without_ray_names_the_extra(tmp_path):
    if HAS_RAY:
        pytest.skip("Ray is installed")
    source = cases.write_csv(tmp_path / "in.csv", TEXTS)
    model = cases.text_model(tmp_path / "model")
    work = plan_batch(cases.small(model, source, tmp_path / "out.csv")).work

    with pytest.raises(MissingExtraError, match=r"ingot\[ray\]"):
        list(answer_on_ray(parts_of(rows_of(work.source, ["text"]), 16), work, 2))


@needs_ray
def test_a_batch_on_ray_writes_the_bytes_of_one_on_processes(tmp_path):
    source = cases.write_csv(tmp_path / "in.csv", TEXTS)
    model = cases.text_model(tmp_path / "model")
    for where in ("processes", "ray"):
        words = [model.path, source, tmp_path / f"{where}.csv", "--on", where]
        words += ["--processes", "2", "--threads", "1", "--part-rows", "16", "--json"]
        subprocess.run(
            [sys.executable, "-m", "ingot.cli", "batch", *map(str, words)],
            check=True, capture_output=True, timeout=240,
        )  # fmt: skip

    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "processes.csv").read_bytes()
    assert len((tmp_path / "ray.csv").read_text().splitlines()) == 1 + len(TEXTS)


@needs_ray
def test_an_actor_that_dies_is_replaced_and_its_part_done_again(tmp_path):
    cases.write_csv(tmp_path / "in.csv", TEXTS)
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip

    assert done.stdout.splitlines()[-1:] == ["[0, 1, 2, 3, 4] True"], done.stderr[-800:]
