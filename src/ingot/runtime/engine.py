"""Engine and Session: one door to every library that can run a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable

from ingot.core.digest import Json, digest_json
from ingot.data.data import Array
from ingot.models.model import Model

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model is run: the part of a served artefact that is not in the model file.

    Attributes:
        engine: `onnxruntime`, `openvino`, `torch-eager`, `torch-compile`, or a plug-in's name.
        precision: Arithmetic of the float part; integer parts of a quantized model stay integer.
        threads: Threads inside one call, pinned; 0 means every physical core this process may use.
        buckets: Sequence lengths that inputs are padded up to, ascending; empty means as given.
        batch_sizes: Numbers of rows, ascending, for which OpenVINO compiles a graph of its own;
            other engines, and models of text, which have buckets, take no notice.
        streams: Calls that run side by side, each on its share of the threads: more rows per
            second, and each of them later.
    """

    engine: str = "onnxruntime"
    precision: Precision = "fp32"
    threads: int = 0
    buckets: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    streams: int = 1

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        facts = asdict(self) | {"buckets": list(self.buckets)}
        sizes, streams = facts.pop("batch_sizes"), facts.pop("streams")
        # Written down only where they say something: what was proved before them keeps its digest.
        facts |= {"batch_sizes": list(sizes)} if sizes else {}
        return facts | ({"streams": streams} if streams != 1 else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "EngineConfig":
        """Read the JSON form."""
        fields = dict(value)
        for name in ("buckets", "batch_sizes"):
            fields[name] = tuple(fields.get(name) or ())  # type: ignore[arg-type] # a JSON list of int
        return cls(**fields)  # type: ignore[arg-type] # checked by the dataclass fields

    @property
    def digest(self) -> str:
        """Equal configurations have equal digests."""
        return digest_json(self.to_json())

    @property
    def label(self) -> str:
        """Short text for tables, e.g. `openvino bf16 x2`."""
        lengths = f" to {'/'.join(map(str, self.buckets))}" if self.buckets else ""
        rows = f" for {'/'.join(map(str, self.batch_sizes))} at once" if self.batch_sizes else ""
        beside = f" in {self.streams} streams" if self.streams > 1 else ""
        return f"{self.engine} {self.precision} x{self.threads or 'all'}{lengths}{rows}{beside}"


@dataclass(frozen=True, slots=True)
class ExecutedNode:
    """One operation that the engine really runs, after its own fusions.

    Attributes:
        name: Name in the executed graph.
        kind: Operator or kernel type, e.g. `QLinearConv`, `FullyConnected`.
        is_integer: Whether its arithmetic is int8 (inputs and weights), as the engine reports it.
    """

    name: str
    kind: str
    is_integer: bool


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an engine can be used here, and why not."""

    ok: bool
    version: str = ""
    reason: str = ""


@runtime_checkable
class Session(Protocol):
    """A model ready to answer. Thread-safe; `run` adds microseconds to the bare engine call."""

    config: EngineConfig

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name for inputs by name, shapes as in the model's signature.

        Raises:
            EngineError: The engine refused the inputs; names, shapes and dtypes are in the message.
        """
        ...

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return the operations that really run, in order."""
        ...

    def close(self) -> None:
        """Free the engine's memory; `run` afterwards raises."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A library that runs models."""

    name: str

    def available(self) -> Availability:
        """Say whether it is installed and works on this machine."""
        ...

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        """Return the float precisions that this machine runs in hardware for this model."""
        ...

    def open(self, model: Model, config: EngineConfig) -> Session:
        """Load and compile.

        Raises:
            EngineError: The engine cannot run this model; the operator and node are named.
        """
        ...
