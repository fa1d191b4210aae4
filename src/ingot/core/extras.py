"""Optional libraries: imported where they are used, with an error that names the extra."""

import importlib
import importlib.util
from types import ModuleType

from ingot.core.errors import MissingExtraError


def need(module: str, *, extra: str, what: str) -> ModuleType:
    """Import `module` or say which extra brings it.

    Args:
        module: Dotted name to import.
        extra: The extra of this package that installs it.
        what: What the caller wanted to do, as the subject of a sentence.

    Raises:
        MissingExtraError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the library is there but one of its own needs is not: its message is better
        raise MissingExtraError(
            f'{what} needs {module!r}. Install it with: pip install "ingot[{extra}]"'
        ) from error


def is_installed(module: str) -> bool:
    """Say whether `module` can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (
        ModuleNotFoundError,
        ValueError,
    ):  # ValueError: a module made at run time, without a spec
        return False
