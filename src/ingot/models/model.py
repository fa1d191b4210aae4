"""The noun Model: a folder addressed by the digest of what is in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ingot.core.digest import Json

ONNX_FILE = "model.onnx"
DATA_FILE = ONNX_FILE + ".data"  # weights that do not fit into the graph's own file
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation.json"
SIGNATURE_FILE = "signature.json"
LINEAGE_FILE = "lineage.json"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Its name in the graph.
        dtype: numpy name of the element type, e.g. `float32`, `int64`.
        shape: Sizes; a string names a dynamic axis (`batch`, `sequence`).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether any axis is dynamic."""
        return any(isinstance(size, str) for size in self.shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes in and what comes out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> Json:
        """Return the JSON form stored in `signature.json`."""
        return {
            "inputs": [asdict(spec) | {"shape": list(spec.shape)} for spec in self.inputs],
            "outputs": [asdict(spec) | {"shape": list(spec.shape)} for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, list[Mapping[str, object]]]) -> "Signature":
        """Read the JSON form."""

        def specs(key: str) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(str(row["name"]), str(row["dtype"]), tuple(row["shape"]))  # type: ignore[arg-type] # a JSON list of int and str
                for row in value[key]
            )

        return cls(specs("inputs"), specs("outputs"))


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model came from. Holds no path and no time: equal histories have equal digests.

    Attributes:
        source: `onnx`, `torch`, `pt2`, `hf` for a loaded model; `recipe` for a candidate.
        builder: Label `package.module:function` of the torch factory, or None. Only a label:
            loading never imports it.
        parent: Digest of the model a recipe was applied to.
        recipe: Digest of that recipe.
        data: Digest of the data the recipe read.
        notes: Facts worth keeping, e.g. `{"method": "quantize-static", "engines": "any"}`.
    """

    source: str
    builder: str | None = None
    parent: str | None = None
    recipe: str | None = None
    data: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """A trained network on disk: `model.onnx`, and for a torch network its `weights.safetensors`.

    Attributes:
        path: The folder.
        digest: SHA-256 over names and digests of the files in it (caches excluded).
        signature: Inputs and outputs.
        lineage: Where it came from.
        name: A short name for people; not part of the digest.
    """

    path: Path
    digest: str
    signature: Signature
    lineage: Lineage
    name: str = "model"

    @property
    def onnx_path(self) -> Path:
        """The graph and its weights."""
        return self.path / ONNX_FILE

    @property
    def weights_path(self) -> Path | None:
        """Weights for rebuilding the torch network, if this model has one."""
        path = self.path / WEIGHTS_FILE
        return path if path.exists() else None

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer, for text models that carry one."""
        path = self.path / TOKENIZER_FILE
        return path if path.exists() else None

    @property
    def generation_path(self) -> Path | None:
        """How texts of a language model end and how it is talked to, if that is known."""
        path = self.path / GENERATION_FILE
        return path if path.exists() else None

    @property
    def size_bytes(self) -> int:
        """Bytes on disk that serving needs: the ONNX file and its external data."""
        return sum(p.stat().st_size for p in self.path.glob("model.onnx*"))
