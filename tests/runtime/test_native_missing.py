"""An ingot-native that is there and does not work: it is said, and nothing crashes."""

import sys

import pytest

from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.generation.drivers import open_decoding
from ingot.runtime.native_engine import NativeEngine
from ingot.testing.tiny import tiny_decoder


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_package_that_cannot_be_imported_is_no_engine(monkeypatch, tmp_path, error):
    (tmp_path / "ingot_native").mkdir()
    (tmp_path / "ingot_native" / "__init__.py").write_text(f"raise {error}('no such symbol')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "ingot_native"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    proto = tiny_decoder()
    model = store_model(proto, lineage=Lineage("onnx"), name="tiny", root=tmp_path / "store")

    status, decoding = NativeEngine().available(), open_decoding(model, threads=1)

    assert not status.ok
    assert "no such symbol" in status.reason
    assert decoding.config == EngineConfig(threads=1)
    assert "no such symbol" in decoding.why


def test_a_cap_that_is_no_instruction_set_is_refused(monkeypatch):
    pytest.importorskip("ingot_native.binding", reason="needs ingot-native")
    monkeypatch.setenv("INGOT_NATIVE_ISA", "foo")

    status = NativeEngine().available()

    assert not status.ok
    assert "must be one of scalar, avx2" in status.reason
    assert "got 'foo'" in status.reason
