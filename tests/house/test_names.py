"""Names that say nothing are not used."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMPTY_FILES = {"utils", "util", "common", "helpers", "helper", "misc"}
EMPTY_PARTS = ("Manager", "Handler", "Helper", "Processor", "Advanced")


def test_no_file_or_folder_has_an_empty_name():
    places = [
        p for top in ("src", "tests", "benchmarks", "examples") for p in (ROOT / top).rglob("*")
    ]
    found = [
        str(p.relative_to(ROOT))
        for p in places
        if "__pycache__" not in p.parts and p.stem.lstrip("_").lower() in EMPTY_FILES
    ]

    assert found == []


def test_no_class_has_an_empty_name():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any(part in node.name for part in EMPTY_PARTS)
    ]

    assert found == []
