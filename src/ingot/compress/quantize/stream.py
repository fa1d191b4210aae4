"""One layer at a time, from file to file: models that are larger than memory."""

from pathlib import Path

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.compress.run import Run
from ingot.core.digest import digest_json, short
from ingot.core.files import digest_file
from ingot.core.progress import SILENT, Progress
from ingot.data.data import NOTHING
from ingot.models.external import is_external
from ingot.models.model import Lineage, Model
from ingot.models.network import OnnxNetwork
from ingot.models.onnx_format import open_onnx, read_skeleton, tensors_of
from ingot.models.store import store_model, store_root


def quantize_stream(
    source: Path,
    root: Path | None = None,
    *,
    bits: int = 4,
    granularity: str = "k:32",
    embeddings: int = 8,
    skip: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Model:
    """Return the stored integer model of an ONNX file with external data, made layer by layer.

    The numbers are those of `QuantizeWeights`. The float model is not copied into the store, and
    memory holds one layer and its integers at a time. To keep the float model as well, store it
    with `load_model` and apply a recipe to it: that streams, too.

    Args:
        source: The `.onnx` file; its external data lie beside it.
        root: Store folder; the default store if not given.
        bits: 4 or 8.
        granularity: What shares a scale, as in `QuantizeWeights`.
        embeddings: Bits of embedding tables: 8, 4, or 0 to leave them in float.
        skip: Names of layers or embedding tables that stay in float.
        progress: Where each layer is reported.

    Returns:
        A model whose lineage names as its parent the digest over the names and digests of the
        files it was made from.

    Raises:
        ModelError: The file or its external data are missing, broken, or unsafe.
        RecipeError: There is nothing to quantize, or a setting does not fit.
        IngotError: The disk has too little room; nothing was written.
    """
    method = QuantizeWeights(
        bits=bits, granularity=granularity, embeddings=embeddings, skip=tuple(skip)
    )
    recipe, root = Recipe((method,)), root or store_root()
    with open_onnx(source, scratch=root) as net:
        done = method.apply(net, NOTHING, Run(progress=progress))
        assert isinstance(done, OnnxNetwork)
        progress.step("storing", 1, 1)
        lineage = Lineage(
            "recipe",
            parent=_files_digest(source),
            recipe=recipe.digest,
            notes={"methods": recipe.label},
        )
        name = f"{source.stem}-{short(recipe.digest)[:6]}"
        return store_model(done.proto, lineage=lineage, name=name, root=root, files=done.files)


def _files_digest(source: Path) -> str:
    """Return the digest over names and digests of an ONNX file and the files it points to."""
    places = {
        entry.value
        for tensor in tensors_of(read_skeleton(source))
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return digest_json(
        {name: digest_file(source.parent / name) for name in sorted({source.name, *places})}
    )
