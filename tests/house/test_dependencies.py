"""Few dependencies in the core; extras only where they are used."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ingot"
CORE_WALL = 9
SERVING = {"starlette", "uvicorn", "msgspec", "prometheus_client", "uvloop", "httptools"}
MADE_OF_TORCH = {"models/torch_graph.py", "models/_torch_ops.py"}
EXTRAS = {"torch", "onnxscript", "openvino", "transformers", "pyarrow", "PIL", "jinja2", *SERVING}
EXTRAS |= {"fsspec", "psycopg", "grpc", "jwt", "cryptography", "ddsketch", "opentelemetry"}
EXTRAS |= {"yaml", "ray"}
# clients that tests speak to the server with: no file of the product may need one
CLIENTS = {"tritonclient", "gevent", "geventhttpclient"}


def eager_imports(tree):
    """Give the top package of every import that runs when the module is imported."""
    return (name.split(".")[0] for name in eager_modules(tree))


def eager_modules(tree):
    """Give the dotted name of every import that runs when the module is imported."""
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def test_the_core_has_few_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert len(project["dependencies"]) <= CORE_WALL


def test_extras_are_imported_where_they_are_used():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        allowed = SERVING if place.parts[0] == "serve" else set()
        allowed = {"torch"} if str(place) in MADE_OF_TORCH else allowed
        names = set(eager_imports(ast.parse(path.read_text(encoding="utf-8"))))
        found += [f"{path.relative_to(ROOT)}: {name}" for name in names & EXTRAS - allowed]

    assert found == []


def test_the_product_needs_no_client_of_its_tests():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in CLIENTS]

    assert found == []


def test_files_made_of_torch_are_imported_late_by_all_others():
    late = {f"ingot.{place.removesuffix('.py').replace('/', '.')}" for place in MADE_OF_TORCH}
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if str(path.relative_to(SOURCE)) not in MADE_OF_TORCH:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path.name}: {name}" for name in set(eager_modules(tree)) & late]

    assert found == []


def test_eager_imports_are_told_from_late_ones():
    tree = ast.parse(
        "import torch.nn\nif TYPE_CHECKING:\n    import PIL\ndef f():\n    import jinja2\n"
        "try:\n    from openvino import Core\nexcept ImportError:\n    raise\n"
    )

    assert set(eager_imports(tree)) == {"torch", "openvino"}
