"""torch.export archives: checked entry by entry, rebuilt clean, then loaded."""

import ast
import io
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from ingot.core.errors import ModelError
from ingot.core.extras import need
from ingot.models._export import OPSET, check_against, flat, quiet, tidy
from ingot.models._weights import check_archive
from ingot.models.store import read_signature
from ingot.models.torch_format import example_for

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PLAIN = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
_KEPT = ("archive_format", "archive_version", "byteorder", "version", ".data/version")
# torch's reader hands size expressions to sympy, which evaluates Python: only arithmetic is let by.
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Name, ast.Load, ast.operator,
    ast.unaryop, ast.cmpop,
)  # fmt: skip
_FUNCTIONS = {
    "Integer", "Rational", "Float", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv",
    "CeilDiv", "Eq", "Ne", "Le", "Lt",
    "Ge", "Gt", "And", "Or", "Not", "Add", "Mul", "Pow", "Symbol",
}  # fmt: skip
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
# Operators that the graph may call: torch's own arithmetic, nothing that touches files or code.
_TARGET = re.compile(
    r"(torch\.ops\.(aten|prims|quantized_decomposed)(\.\w+){1,2}|_operator\.(add|sub|mul|floordiv|"
    r"truediv|mod|neg|pow|eq|ne|le|lt|ge|gt|getitem|and_|or_)|math\.(ceil|floor|trunc)|"
    r"torch\.sym_(int|float|max|min|not|ite|sum)|torch\._sym_sqrt|"
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|scan|cond|while_loop))"
)


def read_pt2(path: Path) -> tuple[onnx.ModelProto, "torch.nn.Module"]:
    """Return the graph of a `.pt2` file and the torch network in it.

    Raises:
        ModelError: The archive is broken, of an old layout, or could run code when loaded.
    """
    need("onnxscript", extra="compress", what="A torch.export archive")
    import torch

    program = load_program(path)
    module = program.module()
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path.name} must export to ONNX; torch says: "
            f"{str(error).strip().splitlines()[0][:300]}. "
            "Use standard operators, or export the network to ONNX yourself."
        ) from error
    proto = tidy(exported.model_proto)
    signature = read_signature(proto)
    names = [spec.name for spec in signature.inputs]

    def call(feeds: Any) -> list[Any]:
        tensors = [torch.from_numpy(feeds[name]) for name in names]
        return _call_in_order(torch, program, module, tensors)

    dynamic = all(spec.shape and spec.shape[0] == "batch" for spec in signature.inputs)
    if not dynamic:
        log.warning("%s has a fixed batch: export it with a dynamic first axis", path.name)
    else:
        check_against(proto, call, example_for(signature), dynamic=True)
    return proto, module


def _call_in_order(torch: Any, program: Any, module: Any, tensors: list[Any]) -> list[Any]:
    args, kwargs = torch.utils._pytree.tree_unflatten(tensors, program.call_spec.in_spec)
    with torch.inference_mode():
        return flat(module(*args, **kwargs))


def module_from_pt2(path: Path) -> "torch.nn.Module":
    """Return the torch network of a `.pt2` file.

    Raises:
        ModelError: The archive is broken, of an old layout, or could run code when loaded.
    """
    return load_program(path).module()


def load_program(path: Path) -> Any:
    """Return the `torch.export.ExportedProgram` of an archive after checking all of it.

    torch's own loader falls back to unpickling for sample inputs, odd tensors and custom objects,
    and evaluates size expressions as Python. So every entry is checked first, and the loader sees
    only a fresh archive written from the checked bytes.

    Raises:
        ModelError: The archive is broken, of an old layout, or could run code when loaded.
    """
    torch = need("torch", extra="compress", what="A torch.export archive")
    clean = _clean_archive(path, torch)
    try:
        with quiet():
            return torch.export.load(clean)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, OSError) as error:
        raise _broken(
            path, str(error).splitlines()[0] if str(error) else "it ends early"
        ) from error


def _clean_archive(path: Path, torch: Any) -> io.BytesIO:
    if not path.is_file():
        raise ModelError(
            f"A torch.export archive must be a file; got {str(path)!r}. Check the path."
        )
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.namelist()
        if len(set(entries)) != len(entries):
            raise _unsafe(path, "it holds two entries of one name")
        root = entries[0].split("/")[0]
        files = {name.removeprefix(root + "/"): archive.read(name) for name in entries}
    if _MODEL not in files:
        raise ModelError(
            f"{path.name} must hold {_MODEL}; it does not. Save it again with "
            "torch.export.save() of "
            "a current torch: older layouts are unpickled when loaded, and that is never done."
        )
    _check_configs(path, files)
    _check_samples(path, files.get(_SAMPLES, b""), torch)
    files[_MODEL] = _check_program(path, files[_MODEL])
    wanted = {_MODEL, _SAMPLES, *_CONFIGS, *_KEPT}
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            if name in wanted or _PLAIN.fullmatch(name):
                archive.writestr(f"{root}/{name}", data)
            elif not name.startswith(("extra/", ".data/")):
                raise _unsafe(path, f"entry {name!r} is not plain weights or a graph")
    clean.seek(0)
    return clean


def _check_configs(path: Path, files: dict[str, bytes]) -> None:
    for config in _CONFIGS:
        if config not in files:
            raise _broken(path, f"{config} is missing")
        try:
            rows = json.loads(files[config])["config"]
            bad = [
                name
                for name, row in rows.items()
                if row.get("use_pickle") is not False
                or not re.fullmatch(r"(weight|tensor)_\d+", str(row.get("path_name")))
            ]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _broken(path, f"{config} cannot be read") from error
        if bad:
            raise _unsafe(path, f"{bad[0]!r} is stored as a pickled object")


def _check_samples(path: Path, data: bytes, torch: Any) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, "its sample inputs are pickled objects") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _broken(path, "its sample inputs cannot be read") from error


def _check_program(path: Path, data: bytes) -> bytes:
    """Return the graph without what only debuggers read and torch would evaluate or import."""
    try:
        program = json.loads(data)
        program["guards_code"] = []
        for key, value in _strings(program):
            if key == "expr_str" and not _is_arithmetic(value):
                raise _unsafe(path, f"a size is the expression {value[:60]!r}")
            if key == "target" and not _TARGET.fullmatch(value):
                raise _unsafe(path, f"its graph calls {value[:60]!r}")
            if key in {"in_spec", "out_spec"}:
                _check_tree(path, json.loads(value))
        _drop_metadata(program)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise _broken(path, f"{_MODEL} is not a graph in JSON") from error
    return json.dumps(program).encode()


def _is_arithmetic(text: str) -> bool:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError):
        return False
    names = {n.func for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return all(_is_plain(node, names) for node in ast.walk(tree))


def _is_plain(node: ast.AST, called: set[ast.expr]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS if node in called else "__" not in node.id
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    if isinstance(node, ast.keyword):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool)
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", node.value))
        return isinstance(node.value, (int, float))
    return isinstance(node, _ARITHMETIC)


def _check_tree(path: Path, spec: Any) -> None:
    stack = [spec]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            kind, context = item.get("type"), str(item.get("context"))
            if kind not in _TREES or "__" in context:
                raise _unsafe(path, f"its inputs are of the type {kind!r}")
            stack.extend(item.get("children_spec", []))


def _drop_metadata(program: Any) -> None:
    stack = [program]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if isinstance(item.get("metadata"), dict):
                item["metadata"] = {}
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    stack: list[tuple[str, Any]] = [(key, value)]
    while stack:
        name, item = stack.pop()
        if isinstance(item, str):
            yield name, item
        elif isinstance(item, dict):
            stack.extend(item.items())
        elif isinstance(item, list):
            stack.extend((name, part) for part in item)


def _unsafe(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path.name} must be loadable without running code from it; {why}. Nothing was "
        "loaded. Save "
        "the network again with torch.export.save(), with plain tensors only."
    )


def _broken(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path.name} must be a whole torch.export archive; {why}. Copy or save it again."
    )
