"""Finds the package and its library: installed, named by the environment, or in native/build."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[1]
if find_spec("ingot_native") is None:
    sys.path.insert(0, str(NATIVE))

from ingot_native import granted_sets  # noqa: E402  # the path above comes first
from ingot_native.binding import library_path  # noqa: E402

_BUILT = NATIVE / "build" / "libingot_native.so"
if not library_path().exists() and _BUILT.exists():
    os.environ["INGOT_NATIVE_LIBRARY"] = str(_BUILT)


@pytest.fixture(scope="session")
def native() -> tuple[str, ...]:
    """Names of the granted instruction sets; skips when the library is not built."""
    if not library_path().exists():
        pytest.skip(
            "the native library is not built: "
            "cmake -S native -B native/build && cmake --build native/build"
        )
    return granted_sets()
