"""load_model: whatever holds a trained network becomes a Model in the store."""

import re
from collections.abc import Mapping
from pathlib import Path

from ingot.core.errors import ModelError
from ingot.core.files import need_room
from ingot.data.data import Array
from ingot.models.model import ONNX_FILE, SIGNATURE_FILE, TOKENIZER_FILE, Lineage, Model
from ingot.models.store import INLINE_LIMIT, open_model, store_model, store_root

Files = dict[str, Path | bytes]  # more files of a model by stored name, or what is in them
_LABEL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ACCEPTED = (
    "an .onnx file; a .pt2 file of torch.export; a Hugging Face folder with config.json and "
    "*.safetensors; a torch factory 'package.module:function' with weights=; an Ingot model folder"
)


def load_model(
    source: str | Path,
    *,
    weights: Path | None = None,
    example: Mapping[str, Array] | None = None,
    tokenizer: Path | None = None,
    name: str | None = None,
    root: Path | None = None,
) -> Model:
    """Return the model in a file, a folder or a torch factory, stored under its digest.

    No code from a file is run and nothing is unpickled. A factory label is imported because you
    name it here.

    Args:
        source: An `.onnx` or `.pt2` file, a Hugging Face folder, an Ingot model folder, or a torch
            factory `package.module:function`.
        weights: For a factory: `.safetensors`, `.npz` or a state dict.
        example: For a factory: example inputs by name, rows first; `example_inputs()` of its module
            if not given.
        tokenizer: `tokenizer.json` to keep with a text model.
        name: Short name for people; the name of the file, folder or function if not given.
        root: Store folder; the default store if not given.

    Raises:
        ModelError: The source is of no known kind, broken, unsafe, or its parts do not fit.
        MissingExtraError: A library for this format is not installed.
    """
    text, path = str(source), Path(source)
    if tokenizer is not None and not tokenizer.is_file():
        raise ModelError(f"tokenizer must be a file; got {str(tokenizer)!r}. Check the path.")
    extra: Files = {} if tokenizer is None else {TOKENIZER_FILE: tokenizer}
    is_label = not path.exists() and bool(_LABEL.fullmatch(text))
    if is_label:
        return _from_factory(text, weights, example, name=name, extra=extra, root=root)
    if weights is not None or example is not None:
        raise ModelError(
            f"weights and example go with a torch factory 'package.module:function'; got {text!r}. "
            "Leave them out, or name the factory."
        )
    if path.is_dir():
        return _from_folder(path, name=name, extra=extra, root=root)
    if path.is_file() and path.suffix == ".onnx":
        return _from_onnx(path, name=name, extra=extra, root=root)
    if path.is_file() and path.suffix == ".pt2":
        return _from_pt2(path, name=name, extra=extra, root=root)
    raise _unknown(text, path)


def _from_onnx(path: Path, *, name: str | None, extra: Files, root: Path | None) -> Model:
    from ingot.models.onnx_format import external_bytes, open_onnx, read_onnx, read_skeleton

    skeleton = read_skeleton(path)
    size = external_bytes(skeleton)
    lineage, name, root = Lineage("onnx"), name or path.stem, root or store_root()
    if size < INLINE_LIMIT:
        proto = read_onnx(path, skeleton)
        return store_model(proto, lineage=lineage, name=name, extra=extra, root=root)
    need_room(root, size, f"a copy of {path.name!r} in the store")
    with open_onnx(path, scratch=root) as net:
        return store_model(
            net.proto, lineage=lineage, name=name, extra=extra, root=root, files=net.files
        )


def _from_folder(path: Path, *, name: str | None, extra: Files, root: Path | None) -> Model:
    if (path / ONNX_FILE).is_file() and (path / SIGNATURE_FILE).is_file():
        return open_model(path, name=name)
    from ingot.models.hf_format import is_hf_folder, read_hf

    if not is_hf_folder(path):
        raise _unknown(str(path), path)
    from ingot.models.onnx_format import check_graph

    proto, found = read_hf(path)
    return store_model(
        check_graph(proto, path.name),
        lineage=Lineage("hf"),
        name=name or path.resolve().name,
        extra=found | extra,
        root=root,
    )


def _from_factory(
    label: str,
    weights: Path | None,
    example: Mapping[str, Array] | None,
    *,
    name: str | None,
    extra: Files,
    root: Path | None,
) -> Model:
    from ingot.models.onnx_format import check_graph
    from ingot.models.torch_format import (
        build_module,
        example_from_factory,
        export_module,
        weights_file,
    )

    module = build_module(label, weights)
    inputs = dict(example) if example is not None else example_from_factory(label)
    _check_weights(module, label)
    proto = check_graph(export_module(module, inputs), label)
    with weights_file(module) as path:
        return store_model(
            proto,
            lineage=Lineage("torch", builder=label),
            name=name or label.rpartition(":")[2],
            extra=extra | {path.name: path},
            root=root,
        )


def _from_pt2(path: Path, *, name: str | None, extra: Files, root: Path | None) -> Model:
    from ingot.models.onnx_format import check_graph
    from ingot.models.pt2_format import read_pt2
    from ingot.models.torch_format import weights_file

    proto, module = read_pt2(path)
    with weights_file(module) as state:
        return store_model(
            check_graph(proto, path.name),
            lineage=Lineage("pt2"),
            name=name or path.stem,
            extra=extra | {state.name: state},
            root=root,
        )


def _check_weights(module: object, label: str) -> None:
    """Refuse NaN and Inf before the export: its comparison would blame the export."""
    for key, value in module.state_dict().items():  # type: ignore[attr-defined] # a torch module
        if value.is_floating_point() and value.isnan().any() | (
            value.isinf().any() & key.endswith(("weight", "bias"))
        ):
            raise ModelError(
                f"Weights of {label} must be finite; {key!r} holds NaN or infinite values. Its "
                "training diverged or the file is damaged: use an earlier checkpoint."
            )


def _unknown(text: str, path: Path) -> ModelError:
    what = "a folder of another kind" if path.is_dir() else "a file of another kind"
    got = what if path.exists() else "nothing of that name"
    return ModelError(
        f"A model must be one of: {_ACCEPTED}. Got {text!r}, {got}. Check the path, or export the "
        "network to ONNX."
    )
