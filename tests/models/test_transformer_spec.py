import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest

from ingot.models.transformer.recognize import recognize
from ingot.models.transformer.spec import TransformerSpec
from ingot.testing.tiny import tiny_transformer

ENGINES = Path(__file__).parents[2] / "native" / "ingot_native" / "spec.py"


@pytest.fixture
def engines_spec(monkeypatch):
    described = importlib.util.spec_from_file_location("spec_of_the_engine", ENGINES)
    module = importlib.util.module_from_spec(described)
    monkeypatch.setitem(sys.modules, "spec_of_the_engine", module)
    described.loader.exec_module(module)
    return module.TransformerSpec


def test_the_engine_and_the_library_have_the_same_file():
    assert ENGINES.read_text() == Path(inspect.getfile(TransformerSpec)).read_text()


def test_the_engine_reads_what_the_library_writes(engines_spec):
    spec = recognize(tiny_transformer(), longest=16).spec
    text = json.dumps(spec.to_json())

    theirs = engines_spec.from_json(json.loads(text))

    assert theirs.to_json() == spec.to_json()
    assert TransformerSpec.from_json(json.loads(text)) == spec
