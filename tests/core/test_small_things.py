import doctest
import importlib
import pkgutil

import pytest

import ingot.core
from ingot.core import errors
from ingot.core.units import show_bytes, show_count


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(ingot.core.__path__)])
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(f"ingot.core.{name}")

    assert doctest.testmod(module).failed == 0


def test_every_error_is_an_ingot_error_and_a_builtin_one():
    found = [e for e in vars(errors).values() if isinstance(e, type) and e is not errors.IngotError]

    assert len(found) == 10
    for error in found:
        assert issubclass(error, errors.IngotError)
        assert error.__bases__[1] in (ValueError, RuntimeError, LookupError, ImportError)


def test_sizes_beyond_gibibytes_have_a_unit():
    assert show_bytes(3 * 1024**4) == "3.0 TiB"
    assert show_bytes(5 * 1024**3) == "5.0 GiB"


def test_counts_up_to_trillions_have_a_unit():
    assert [show_count(n) for n in (2e12, 4.1e9, 3e3)] == ["2.0 T", "4.1 G", "3.0 k"]
