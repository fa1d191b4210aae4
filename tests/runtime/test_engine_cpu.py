from pathlib import Path

import pytest

from ingot.core.errors import EngineError
from ingot.runtime import cpu
from ingot.runtime.cpu import check_config, core_limit, thread_count
from ingot.runtime.engine import EngineConfig


def quota(root: Path, text: str) -> Path:
    path = root / "sys/fs/cgroup/cpu.max"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return root


@pytest.fixture
def _eight_cores(monkeypatch):
    monkeypatch.setattr(cpu, "usable_cores", lambda: tuple(range(8)))
    monkeypatch.setattr(cpu, "physical_cores", lambda root: 4)


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 4)],
)
def test_the_quota_of_a_container_limits_the_cores(tmp_path, text, cores):
    assert core_limit(quota(tmp_path, text)) == cores


@pytest.mark.usefixtures("_eight_cores")
def test_without_a_quota_every_physical_core_counts(tmp_path):
    assert core_limit(tmp_path) == 4


@pytest.mark.usefixtures("_eight_cores")
def test_a_thread_count_within_the_cores_is_kept():
    assert thread_count(8) == 8


def test_no_thread_count_means_the_core_limit():
    assert thread_count(0) == core_limit()


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize("threads", [-1, 9])
def test_thread_counts_out_of_range_are_refused(threads):
    with pytest.raises(EngineError, match=f"between 0 and 8.*got {threads}"):
        thread_count(threads)


@pytest.mark.parametrize(
    ("isa", "has"), [(set(), False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)]
)
def test_bf16_is_read_from_the_instruction_sets(monkeypatch, isa, has):
    monkeypatch.setattr(cpu, "instruction_sets", lambda: isa)

    assert cpu.has_bf16.__wrapped__() is has


def test_bf16_is_refused_on_a_cpu_without_it(monkeypatch):
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)

    with pytest.raises(EngineError, match="bf16 must be supported by the CPU"):
        check_config("openvino", EngineConfig("openvino", "bf16"), ("fp32", "bf16"))


def test_fp32_does_not_ask_for_instruction_sets(monkeypatch):
    monkeypatch.setattr(cpu, "has_bf16", lambda: pytest.fail("asked"))

    check_config("openvino", EngineConfig("openvino"), ("fp32", "bf16"))
