"""What importing costs, each measured in a fresh interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "ingot"
MODULES = sorted(
    ".".join(("ingot", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in SOURCE.rglob("*.py")
    if path.stem not in {"__init__", "__main__"}
)
MADE_OF_TORCH = {"ingot.models.torch_graph", "ingot.models._torch_ops"}  # see test_dependencies
ROOMS = sorted({module.split(".")[1] for module in MODULES})
HEAVY = ("torch", "openvino", "transformers", "pyarrow", "PIL", "jinja2")


def loaded_after(statements):
    """Return the names in `sys.modules` after the statements, in a new interpreter."""
    code = f"import sys\n{statements}\nimport json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_ingot_loads_few_modules_beyond_a_bare_interpreter():
    added = loaded_after("import ingot") - loaded_after("")

    assert len(added) <= 120


def test_import_ingot_loads_neither_torch_nor_numpy():
    loaded = loaded_after("import ingot")

    assert not {"torch", "numpy"} & loaded


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_never_imports_a_heavy_library(room):
    wanted = [m for m in MODULES if m.split(".")[1] == room and m not in MADE_OF_TORCH]
    lines = ["import importlib", *(f"importlib.import_module({name!r})" for name in wanted)]
    loaded = loaded_after("\n".join(lines))

    assert not set(HEAVY) & loaded
