"""Randomness is passed in, never ambient."""

import hashlib


def derive_seed(seed: int, *labels: str) -> int:
    """Return a seed for one named part of a job, independent of the other parts.

    Examples:
        >>> derive_seed(0, "bootstrap") == derive_seed(0, "bootstrap")
        True
        >>> derive_seed(0, "bootstrap") == derive_seed(0, "calibration")
        False
    """
    text = "/".join([str(seed), *labels]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
