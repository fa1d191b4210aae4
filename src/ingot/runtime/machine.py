"""The machine: what a number was measured on, without saying whose machine it is."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath

from ingot.core.digest import Json, digest_json

# Flags that decide which kernels an engine picks, as Linux spells them, by the name people use.
ISA_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
LIBRARIES = ("ingot-native", "numpy", "onnxruntime", "openvino", "torch")  # in the order JSON keeps


def describe_machine(root: Path = Path("/")) -> dict[str, Json]:
    """Return the facts that explain a latency: processor, cores, memory, system, library versions.

    Holds no host name, user name or path. Cores are those this process may use, so a pinned
    process describes a smaller machine. Libraries are looked up, not imported.

    Args:
        root: Where `proc` and `sys` are found.
    """
    text = _read(root / "proc/cpuinfo")
    cores = usable_cores()
    return {
        "cpu": _field(text, "model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "isa": sorted(instruction_sets(root)),
        "logical_cores": len(cores),
        "physical_cores": physical_cores(root),
        "ram_bytes": _ram_bytes(_read(root / "proc/meminfo")),
        "os": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def machine_digest(facts: Mapping[str, Json]) -> str:
    """Return the digest of `describe_machine()`: equal machines have equal digests."""
    return digest_json(facts)


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the logical cores this process may run on, ascending."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return tuple(sorted(affinity(0))) if affinity else tuple(range(os.cpu_count() or 1))


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may use; None where that is unknown.

    It is the machine's, or less where a control group (a container, a unit of systemd) sets a
    limit: `memory.max` of version 2 in any group above this process, or the limit of version 1.

    Args:
        root: Where `proc` and `sys` are found.
    """
    groups = root / "sys/fs/cgroup"
    own = PurePosixPath(_field(_read(root / "proc/self/cgroup"), "0").lstrip(":/"))
    files = [groups / group / "memory.max" for group in (own, *own.parents)]
    limits = [_read(file).strip() for file in (*files, groups / "memory/memory.limit_in_bytes")]
    found = [int(limit) for limit in limits if limit.isdigit()]
    machine = _ram_bytes(_read(root / "proc/meminfo"))
    return min(found if machine is None else [machine, *found], default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or hidden in this container
        return ""


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def instruction_sets(root: Path = Path("/")) -> set[str]:
    """Return the names in `ISA_FLAGS` of what this CPU can do."""
    cpuinfo = _read(root / "proc/cpuinfo")
    present = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split())
    return {name for flag, name in ISA_FLAGS.items() if flag in present}


def processor(root: Path = Path("/")) -> str:
    """Return what compiled code depends on: the processor and its instruction sets, in one line."""
    name = _field(_read(root / "proc/cpuinfo"), "model name") or platform.processor()
    return " ".join([name or platform.machine(), *sorted(instruction_sets(root))])


def physical_cores(root: Path = Path("/")) -> int:
    """Return how many physical cores lie under the logical cores this process may use."""
    seen = set()
    for core in usable_cores():
        topology = root / f"sys/devices/system/cpu/cpu{core}/topology"
        key = (_read(topology / "physical_package_id"), _read(topology / "core_id"))
        seen.add(key if all(key) else core)
    return len(seen)


def _ram_bytes(meminfo: str) -> int | None:
    parts = _field(meminfo, "MemTotal").split()
    return int(parts[0]) * 1024 if parts else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
