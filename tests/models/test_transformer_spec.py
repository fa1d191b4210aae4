import importlib.util
import json
import sys
from dataclasses import fields
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


def test_the_engine_and_the_library_know_the_same_fields(engines_spec):
    ours = [(f.name, f.default) for f in fields(TransformerSpec)]

    assert [(f.name, f.default) for f in fields(engines_spec)] == ours


def test_the_engine_reads_what_the_library_writes(engines_spec):
    spec = recognize(tiny_transformer(), longest=16).spec
    text = json.dumps(spec.to_json())

    theirs = engines_spec.from_json(json.loads(text))

    assert theirs.to_json() == spec.to_json()
    assert TransformerSpec.from_json(json.loads(text)) == spec
