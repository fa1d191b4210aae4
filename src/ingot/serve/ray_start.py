"""Start Ray on this machine alone, or join the cluster that `RAY_ADDRESS` names."""

import os
from pathlib import Path
from typing import Any

from ingot.core.errors import ServeError
from ingot.core.extras import need

LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    # the name is of other systems; on each it keeps Ray's own ports on loopback
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
_STORE_BYTES = 100 * 1024**2  # the least that Ray takes is 75 MiB


# Any: ray is untyped here
def start_ray(cpus: int, *, folder: Path | None = None, store_bytes: int = 0) -> Any:
    """Start a Ray of our own and return its module.

    Args:
        cpus: Processors that it hands out.
        folder: Where its files are; below the system's folder for such things if not given.
        store_bytes: Of memory that its processes share, 100 MiB at least.

    Raises:
        MissingExtraError: The extra `ray` is not installed.
    """
    os.environ |= LOCAL
    ray = need("ray", extra="ray", what="Running on Ray")
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=max(_STORE_BYTES, store_bytes),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        namespace="ingot",
        **({} if folder is None else {"_temp_dir": str(folder)}),
    )
    return ray


def join_ray(cpus: int, *, store_bytes: int) -> Any:
    """Join the cluster that `RAY_ADDRESS` names, or start a Ray of our own; return the module.

    Args:
        cpus: Processors that a Ray of our own hands out.
        store_bytes: Of memory that processes of a Ray of our own share, 100 MiB at least.

    Raises:
        MissingExtraError: The extra `ray` is not installed.
        ServeError: The cluster cannot be joined.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return start_ray(cpus, store_bytes=store_bytes)
    os.environ["RAY_USAGE_STATS_ENABLED"] = LOCAL["RAY_USAGE_STATS_ENABLED"]
    ray = need("ray", extra="ray", what="Running on Ray")
    try:
        ray.init(log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ServeError(
            f"A Ray cluster must answer at RAY_ADDRESS; got {error}. Correct the address, give "
            "this process the cluster's token, or unset it to start a Ray here."
        ) from error
    return ray
