"""How many cores this process may use: affinity, siblings and the container's quota."""

import math
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from ingot.core.errors import EngineError
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import instruction_sets, physical_cores, usable_cores


def core_limit(root: Path = Path("/")) -> int:
    """Return the cores this process may keep busy: physical cores, or less by the cgroup's quota.

    Args:
        root: Where `proc` and `sys` are found.
    """
    return max(1, min(physical_cores(root), _quota(root)))


def thread_count(asked: int) -> int:
    """Return how many threads to use: `asked`, or every physical core for 0.

    Raises:
        EngineError: `asked` is negative, or more than the logical cores this process may use.
    """
    most = len(usable_cores())
    if not 0 <= asked <= most:
        raise EngineError(
            f"threads must be between 0 and {most}, the cores this process may use; got {asked}. "
            "Use 0 for every physical core."
        )
    return asked or core_limit()


@cache
def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(instruction_sets())


def check_config(
    engine: str, config: EngineConfig, offered: Collection[str], *, widens_bf16: bool = False
) -> None:
    """Refuse a precision, a thread count or buckets before anything is loaded.

    Args:
        engine: Name of the engine, for the message.
        config: What was asked for.
        offered: Precisions that the engine has on some CPU.
        widens_bf16: Whether the engine multiplies bf16 as floats where the CPU has no bf16.

    Raises:
        EngineError: The engine does not have the precision, the CPU does not multiply bf16, or
            `threads` or `streams` is out of range, or buckets are not positive and ascending.
    """
    if config.precision not in offered:
        raise EngineError(
            f"{engine} must run in {' or '.join(offered)}; got {config.precision!r}. "
            "Use one of these, or another engine."
        )
    if config.precision == "bf16" and not (widens_bf16 or has_bf16()):
        raise EngineError(
            f"bf16 must be supported by the CPU to run in {engine}; this one has none of "
            "avx512_bf16, amx_bf16 and bf16. Use precision fp32."
        )
    threads = thread_count(config.threads)
    if not 1 <= config.streams <= threads:
        raise EngineError(
            f"streams must be between 1 and {threads}, the threads they share; got "
            f"{config.streams}. Use 1 for the shortest latency."
        )
    check_buckets(config.buckets)
    check_buckets(config.batch_sizes, what="Batch sizes")


def check_buckets(buckets: Sequence[int], *, what: str = "Buckets") -> None:
    """Refuse buckets, or batch sizes, that are not positive and ascending.

    Raises:
        EngineError: They are not.
    """
    if list(buckets) != sorted(set(buckets)) or min(buckets, default=1) < 1:
        raise EngineError(
            f"{what} must be positive and ascending; got {list(buckets)}. "
            "Sort them, e.g. (32, 64, 128)."
        )


def _quota(root: Path) -> int:
    """Return the cgroup's CPU quota in whole cores, rounded up; very large without a quota."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no cgroup v2, or none with a CPU controller
        return 1 << 20
    return 1 << 20 if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
