"""The description of a machine, from files of a made-up one."""

import getpass
import json
import platform
from pathlib import Path

import pytest

from ingot.runtime import machine
from ingot.runtime.machine import describe_machine, machine_digest, memory_bytes

CPUINFO = """processor\t: 0
model name\t: Test CPU 9000
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16
"""


def _tree(root: Path) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(CPUINFO)
    (root / "proc/meminfo").write_text("MemTotal:        2048 kB\nMemFree: 1 kB\n")
    for core, physical in ((0, 0), (1, 0), (2, 1)):
        topology = root / f"sys/devices/system/cpu/cpu{core}/topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{physical}\n")
        (topology / "physical_package_id").write_text("0\n")
    return root


def test_processor_memory_and_instruction_sets_are_read(tmp_path):
    facts = describe_machine(_tree(tmp_path))

    assert facts["cpu"] == "Test CPU 9000"
    assert facts["ram_bytes"] == 2048 * 1024
    assert facts["isa"] == ["avx2", "avx512_bf16", "avx512_vnni", "avx512f"]


def test_two_threads_of_one_core_are_one_physical_core(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: (0, 1, 2))
    facts = describe_machine(_tree(tmp_path))

    assert (facts["logical_cores"], facts["physical_cores"]) == (3, 2)


def test_arm_features_get_the_names_people_use(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("Features\t: fp asimd asimddp i8mm bf16\n")

    assert describe_machine(tmp_path)["isa"] == ["bf16", "dotprod", "i8mm", "neon"]


def test_a_system_without_proc_still_has_a_description(tmp_path):
    facts = describe_machine(tmp_path)

    assert facts["ram_bytes"] is None
    assert facts["physical_cores"] == facts["logical_cores"] >= 1


def test_core_count_is_used_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 3)

    assert machine.usable_cores() == (0, 1, 2)


def test_description_says_nothing_about_the_owner():
    text = json.dumps(describe_machine())

    assert platform.node() not in text
    assert getpass.getuser() not in json.loads(text).values()
    assert str(Path.home()) not in text


def test_libraries_are_named_with_versions_and_absent_ones_left_out(monkeypatch):
    monkeypatch.setattr(machine, "LIBRARIES", ("numpy", "no-such-library"))

    assert list(describe_machine()["libraries"]) == ["numpy"]


def test_digest_changes_with_any_fact():
    facts = describe_machine()

    assert machine_digest(facts) == machine_digest(describe_machine())
    assert machine_digest(facts) != machine_digest(facts | {"kernel": "0"})


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("", {}, 4096 * 1024),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "2048\n"}, 2048),
        ("0::/\n", {"memory.max": "1024\n"}, 1024),
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": "512\n"}, 512),
        ("", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 4096 * 1024),
    ],
)
def test_memory_is_what_the_control_group_leaves(tmp_path, own, files, found):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4096 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(own)
    for name, limit in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit)

    assert memory_bytes(tmp_path) == found


def test_memory_is_unknown_without_proc(tmp_path):
    assert memory_bytes(tmp_path) is None
