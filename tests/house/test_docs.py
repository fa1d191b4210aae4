"""Every public name, command and page is documented, and every Python block runs."""

import ast
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

from ingot.cli.main import ingot
from ingot.testing.tiny import tiny_cnn, toy_images

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<reason><!--.+?-->\s*\n)?^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
PUBLIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def commands(group=ingot, path=()):
    """Give every command with its path of names."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_public_name_has_a_docstring():
    found = []
    for path in sorted((ROOT / "src" / "ingot").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, PUBLIC)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]

    assert found == []


def test_every_command_has_help_and_an_example():
    lacking = [
        " ".join(path)
        for path, command in commands()
        if not command.help
        or (not isinstance(command, click.Group) and not re.search("Examples?:", command.help))
    ]

    assert lacking == []


def test_every_option_has_help():
    lacking = [
        f"{' '.join(path)} {option.opts[0]}"
        for path, command in commands()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]

    assert lacking == []


def test_every_verb_has_a_page_or_a_heading_on_the_page_of_the_command_line():
    page = DOCS / "reference" / "cli.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    lacking = [
        path[0]
        for path, _ in commands()
        if len(path) == 1
        and not (DOCS / "reference" / "cli" / f"{path[0]}.md").is_file()
        and f"ingot {path[0]}" not in text
    ]

    assert lacking == []


def test_every_page_is_in_the_navigation_and_every_entry_exists():
    listed = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}

    assert there == listed


def write_reader_files(folder):
    """Write what a reader of the quick start brings: `model.onnx` and `data.npz`."""
    onnx.save(tiny_cnn(), folder / "model.onnx")
    images, labels = toy_images(1200)
    parts = {"calibration": slice(0, 100), "test": slice(100, None)}
    arrays = {f"{name}/image": images[rows] for name, rows in parts.items()}
    arrays |= {f"{name}/target": labels[rows] for name, rows in parts.items()}
    np.savez(folder / "data.npz", **arrays)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_reader_files(tmp_path)
    module = types.ModuleType("docs_page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "docs_page", module)
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if "notest" in block["mark"]:
            assert block["reason"], f"{page.name}: a block marked notest needs a comment above it"
            continue
        code = compile(block["code"], f"{page.name}", "exec")
        exec(code, vars(module))


def test_every_change_has_a_known_kind():
    kinds = "added|changed|fixed|removed|security"
    names = [path.name for path in (ROOT / "changes").glob("*.md")]

    assert [name for name in names if not re.fullmatch(rf"\d+\.({kinds})\.md", name)] == []


def test_the_version_is_the_same_everywhere():
    import ingot as package

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")

    assert package.__version__ == project["version"]
    assert f"version: {project['version']}" in citation


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]

    assert [target for target in local if not (page.parent / target).exists()] == []


def test_generated_parts_of_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "render.py", "--check"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
