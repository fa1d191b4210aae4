"""Network: a module tree one can walk, whichever library holds it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import onnx
    import torch

    from ingot.models.external import ExternalData

Form = Literal["torch", "onnx"]
Kind = TypeVar("Kind")


@runtime_checkable
class Network(Protocol):
    """What a method is handed and hands back.

    `form` says what it holds: `torch` (a module) or `onnx` (a graph).
    """

    form: Form

    def layers(self, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
        """Give (name, layer) for every layer of this kind, in order."""
        ...


@dataclass(slots=True)
class TorchNetwork:
    """A torch module that a method may edit in place; the recipe hands out a copy."""

    module: "torch.nn.Module"
    form: Form = "torch"

    def layers(self, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
        """Give (dotted name, module) for every submodule of this type."""
        for name, module in self.module.named_modules():
            if isinstance(module, kind):
                yield name, module

    def copy(self) -> "TorchNetwork":
        """Return a network of its own weights: editing it leaves this one as it is."""
        return TorchNetwork(copy.deepcopy(self.module))


@dataclass(slots=True)
class OnnxNetwork:
    """An ONNX graph that a method may edit in place.

    Attributes:
        proto: The graph, with its weights inside unless `files` holds the large ones.
        files: Weights that stay on disk because the model may be larger than memory; None for most.
            A recipe gives such a graph only to methods that say `streams`.
    """

    proto: "onnx.ModelProto"
    files: "ExternalData | None" = None
    form: Form = "onnx"

    def layers(self, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
        """Give (node name, node) for every node; `kind` is `onnx.NodeProto`."""
        node: Any  # onnx.NodeProto, untyped upstream
        for node in self.proto.graph.node:
            if isinstance(node, kind):
                yield str(node.name), node  # type: ignore[attr-defined,unused-ignore] # a NodeProto

    def copy(self) -> "OnnxNetwork":
        """Return a graph of its own: editing it leaves this one as it is."""
        return OnnxNetwork(copy.deepcopy(self.proto), self.files)

    def nodes(self, *operators: str) -> "Iterator[tuple[str, onnx.NodeProto]]":
        """Give (node name, node) for every node of these operator types, e.g. `"MatMul"`."""
        for node in self.proto.graph.node:
            if node.op_type in operators:
                yield node.name, node
