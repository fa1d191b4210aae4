"""NaN and infinities, refused where an endpoint takes and gives finite numbers only."""

from collections.abc import Iterable, Mapping

import numpy as np

from ingot.data.data import Array
from ingot.serve.problems import RequestError


def need_finite_inputs(feeds: Mapping[str, Array]) -> None:
    """Refuse a request that holds NaN or an infinity.

    Args:
        feeds: Arrays by input name; those that are not of floats always pass.

    Raises:
        RequestError: One is there (400); names the input and the index of the first.
    """
    for name, array in feeds.items():
        if found := _first_bad(array):
            raise RequestError(
                f"Input {name!r} must be finite; got {found}. Send a number there, or ask a "
                "server that takes NaN and infinities."
            )


def need_finite_outputs(outputs: Mapping[str, Array], names: Iterable[str]) -> None:
    """Refuse an answer that holds NaN or an infinity although its request held neither.

    Args:
        outputs: Arrays by output name.
        names: Those that are answered with.

    Raises:
        RequestError: One is there (500); names the output and the index of the first.
    """
    for name in names:
        if found := _first_bad(outputs[name]):
            raise RequestError(
                f"Output {name!r} must be finite; the model gave {found} for finite inputs. Send "
                "smaller numbers, or serve a version of higher precision.",
                status=500,
            )


def _first_bad(array: Array) -> str:
    """Return the first value that is not finite and where it is; empty if all are."""
    if array.dtype.kind != "f":
        return ""
    fine = np.isfinite(array)
    if fine.all():
        return ""
    index = np.unravel_index(int(np.argmin(fine)), array.shape)
    return f"{array[index]} at index {[int(place) for place in index]}"
