"""Words that do not belong into tracked files."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A path of one machine, not of a URL or of a longer word.
MACHINE_PATH = re.compile(r"(?<![\w./:~-])/(?:work|tmp|root|home)/[\w.-]")
PYTHON_WORDS = re.compile(r"[.;,] (?:Pass|Give|Use|[Rr]un|Set|Ask for) \w[\w.]*[=(]")
PRINTING_ROOMS = {"cli"}


def files():
    """Return what git tracks or would track, or everything outside hidden folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and p.relative_to(ROOT).parts[0][0] != "."]


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an array
        found += [
            f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if MACHINE_PATH.search(line)
        ]

    assert found == []


def test_the_pattern_finds_machine_paths_and_leaves_urls():
    place = "/" + "work/x"

    assert MACHINE_PATH.search(f"open({place!r})")
    assert not MACHINE_PATH.search(f"https://example.org{place} and net{place}")


def test_the_library_does_not_print():
    found = []
    for path in (ROOT / "src" / "ingot").rglob("*.py"):
        room = path.relative_to(ROOT / "src" / "ingot").parts[0]
        if room in PRINTING_ROOMS:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]

    assert found == []


def test_what_to_do_is_said_in_words_of_python_and_of_the_command_line_alike():
    """`Pass x=...` helps nobody who typed a command: name the thing, then its option."""
    found = []
    for path in (ROOT / "src" / "ingot").rglob("*.py"):
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.value[:80]}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and PYTHON_WORDS.search(node.value)
        ]

    assert found == []
