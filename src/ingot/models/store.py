"""The model store: folders addressed by digest, written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.digest import canonical_json, digest_json, hex_of, short
from ingot.core.errors import ModelError
from ingot.core.files import digest_file, home, new_folder
from ingot.models.model import (
    DATA_FILE,
    GENERATION_FILE,
    LINEAGE_FILE,
    ONNX_FILE,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Lineage,
    Model,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    from onnx import ModelProto

    from ingot.models.external import ExternalData

PARTS = (
    ONNX_FILE, DATA_FILE, WEIGHTS_FILE, TOKENIZER_FILE, GENERATION_FILE, SIGNATURE_FILE,
    LINEAGE_FILE,
)  # fmt: skip
INLINE_LIMIT = (
    1_800_000_000  # protobuf cannot hold 2 GiB; above this the weights go beside the graph
)


def store_root() -> Path:
    """Return the folder that holds every stored model."""
    return home() / "store"


def store_model(
    proto: "ModelProto",
    *,
    lineage: Lineage,
    name: str = "model",
    extra: Mapping[str, Path | bytes] | None = None,
    root: Path | None = None,
    files: "ExternalData | None" = None,
) -> Model:
    """Write a graph into the store and return the Model that names it.

    Args:
        proto: Graph; not changed.
        lineage: Where it came from.
        name: Short name for people.
        extra: More files of the model by stored name, e.g. `{"tokenizer.json": path}`, or what is
            in them.
        root: Store folder; the default store if not given.
        files: Large weights of the graph that are on disk; they go to a file beside the stored
            graph, one after another.

    Raises:
        IngotError: The disk is full.
    """
    root = root or store_root()
    signature = read_signature(proto)
    staging = root / f"new-{name}"
    with new_folder(staging) as folder:
        _save_graph(proto, folder / ONNX_FILE, files)
        for stored, source in (extra or {}).items():
            if isinstance(source, bytes):
                (folder / stored).write_bytes(source)
            else:
                shutil.copyfile(source, folder / stored)
        (folder / SIGNATURE_FILE).write_bytes(canonical_json(signature.to_json()))
        (folder / LINEAGE_FILE).write_bytes(canonical_json(asdict(lineage)))
        digest = folder_digest(folder)
        final = root / hex_of(digest)
        if not final.exists():
            with new_folder(final) as target:
                for part in folder.iterdir():
                    part.rename(target / part.name)
    shutil.rmtree(staging, ignore_errors=True)
    return Model(final, digest, signature, lineage, name)


def open_model(path: Path, *, name: str | None = None, verify: bool = True) -> Model:
    """Open a model folder.

    Args:
        path: Folder with `model.onnx`, `signature.json` and `lineage.json`.
        name: Short name for people; the folder's name if not given.
        verify: Recompute the digest and compare it with the folder's name where that is a digest.

    Raises:
        ModelError: A file is missing, or the content is not what the folder's name says.
    """
    missing = [n for n in (ONNX_FILE, SIGNATURE_FILE, LINEAGE_FILE) if not (path / n).is_file()]
    if missing:
        raise ModelError(
            f"A model folder must hold {', '.join(missing)}; {path} does not. "
            "Load an ONNX file or a torch factory to make one."
        )
    named = len(path.name) == 64 and all(c in "0123456789abcdef" for c in path.name)
    digest = folder_digest(path) if verify or not named else f"sha256:{path.name}"
    if named and digest != f"sha256:{path.name}":
        raise ModelError(
            f"The content of model folder {short(path.name)} must have the digest in its name; "
            f"got {short(digest)}. The files were changed: restore them or load the model again."
        )
    signature = Signature.from_json(json.loads((path / SIGNATURE_FILE).read_bytes()))
    lineage = Lineage(**json.loads((path / LINEAGE_FILE).read_bytes()))
    return Model(path, digest, signature, lineage, name or (short(digest) if named else path.name))


def find_model(digest: str, *, root: Path | None = None) -> Model:
    """Return the stored model with this digest.

    Raises:
        ModelError: It is not in the store.
    """
    path = (root or store_root()) / hex_of(digest)
    if not path.is_dir():
        raise ModelError(
            f"Model {short(digest)} must be in the store; {path.parent} does not hold it. "
            "Load it again, or set INGOT_HOME to the folder where it was made."
        )
    return open_model(path)


def adopt_model(model: Model, *, root: Path | None = None) -> Model:
    """Return the model as it stands in the store; copy its folder there if it is elsewhere."""
    final = (root or store_root()) / hex_of(model.digest)
    if not final.is_dir():
        copy_folder(model, final)
    return open_model(final, name=model.name)


def copy_folder(model: Model, target: Path) -> Path:
    """Copy a model's files, caches excluded, to a new folder, whole or not at all."""
    with new_folder(target) as folder:
        for part in PARTS:
            if (model.path / part).is_file():
                shutil.copyfile(model.path / part, folder / part)
    return target


def folder_digest(folder: Path) -> str:
    """Digest over the names and digests of a model's files; caches beside them do not count."""
    return digest_json(
        {part: digest_file(folder / part) for part in PARTS if (folder / part).is_file()}
    )


def read_signature(proto: "ModelProto") -> Signature:
    """Return inputs (without initializers) and outputs of a graph."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return Signature(
        tuple(_spec(value) for value in proto.graph.input if value.name not in weights),
        tuple(_spec(value) for value in proto.graph.output),
    )


def _spec(value: Any) -> TensorSpec:  # an onnx.ValueInfoProto, untyped upstream
    import onnx  # here, so that opening a stored model for serving does not load it

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or f"axis{i}")
        for i, axis in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, dtype, shape)


def _save_graph(proto: "ModelProto", path: Path, files: "ExternalData | None") -> None:
    if files is not None:
        proto = type(proto).FromString(proto.SerializeToString())
        files.write(proto, path.parent / DATA_FILE)
    if proto.ByteSize() < INLINE_LIMIT:
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return
    import onnx

    onnx.save_model(
        proto, path, save_as_external_data=True, location=DATA_FILE, size_threshold=1024
    )
