import sys
import types

import pytest

from ingot.core.errors import MissingExtraError
from ingot.core.extras import is_installed, need


def test_a_library_that_is_there_is_returned():
    assert need("json", extra="none", what="Reading").loads("1") == 1


def test_a_missing_library_names_its_extra():
    with pytest.raises(
        MissingExtraError, match=r'Serving needs .nolib.*pip install "ingot\[serve\]"'
    ):
        need("nolib.part", extra="serve", what="Serving")


def test_a_library_that_lacks_something_else_keeps_its_own_message(tmp_path, monkeypatch):
    (tmp_path / "brokenlib.py").write_text("import something_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there") as caught:
        need("brokenlib", extra="x", what="X")

    assert not isinstance(caught.value, MissingExtraError)


def test_installed_is_known_without_importing(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)

    assert is_installed("wave")
    assert "wave" not in sys.modules
    assert not is_installed("nolib")
    assert not is_installed("nolib.part")


def test_a_module_without_a_spec_counts_as_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ghost", types.ModuleType("ghost"))

    assert not is_installed("ghost")
