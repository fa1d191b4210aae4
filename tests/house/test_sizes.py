"""The walls of STYLE section 12: small files, small functions, few parameters, little nesting."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ROOT / "src" / "ingot"
FILE_WALL, FILE_HABIT, FUNCTION_WALL, PARAMETER_WALL, NESTING_WALL = 600, 400, 60, 5, 4
PRODUCT_WALL = 57_000
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources():
    return sorted((ROOT / "src").rglob("*.py"))


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def functions():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, FUNCTIONS):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def nesting(node, depth=0, *, is_elif=False):
    """Return the deepest block below `node`; an elif is as deep as its if."""
    inside = depth + (isinstance(node, BLOCKS) and not is_elif)
    deepest = inside
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child, inside, is_elif=chained))
    return deepest


def test_no_file_passes_the_wall():
    found = {str(p.relative_to(ROOT)): lines(p) for p in sources() if lines(p) > FILE_WALL}

    assert found == {}


def test_nine_files_in_ten_keep_the_habit():
    sizes = [lines(path) for path in sources()]

    assert sum(size <= FILE_HABIT for size in sizes) >= 0.9 * len(sizes)


def test_no_function_passes_the_wall():
    sizes = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}

    assert {name: size for name, size in sizes.items() if size > FUNCTION_WALL} == {}


def test_no_function_takes_many_positional_parameters():
    counts = {}
    for name, node in functions():
        positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        counts[name] = len([a for a in positional if a not in {"self", "cls"}])

    assert {name: count for name, count in counts.items() if count > PARAMETER_WALL} == {}


def test_no_function_nests_deeply():
    depths = {name: nesting(node) for name, node in functions()}

    assert {name: depth for name, depth in depths.items() if depth > NESTING_WALL} == {}


def test_nesting_counts_blocks_and_not_elifs():
    tree = ast.parse("def f():\n if a:\n  for b in c:\n   d\n elif e:\n  g\n elif h:\n  i\n")

    assert nesting(tree.body[0]) == 2


def test_the_product_stays_small(capsys):
    total = sum(lines(path) for path in PRODUCT.rglob("*.py"))
    with capsys.disabled():
        sys.stdout.write(f"\nsrc/ingot has {total:,} lines of Python\n")

    assert total <= PRODUCT_WALL
