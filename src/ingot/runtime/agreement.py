"""Whether a way of running a model still gives the model's answers."""

from collections.abc import Mapping

import numpy as np

from ingot.data.data import Array

MAX_RELATIVE_ERROR = 0.3  # bf16 and fast integer paths stay far below; broken kernels far above


def relative_error(reference: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """Return the largest over outputs of ||got - reference|| / ||reference||.

    An output that is missing, misshapen or not finite makes it infinite.

    Examples:
        >>> relative_error({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 4.5])})
        0.1
    """
    return max((_one(reference[name], got.get(name)) for name in reference), default=0.0)


def _one(reference: Array, got: Array | None) -> float:
    if got is None or got.shape != reference.shape:
        return float("inf")
    left, right = reference.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(right).all():
        return float("inf")
    gap = float(np.linalg.norm(right - left))
    norm = float(np.linalg.norm(left))
    if norm == 0.0:
        return 0.0 if gap == 0.0 else float("inf")
    return gap / norm
