"""Where two forms of a network part: the error of every tensor that both have, node by node."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ingot.core.digest import Json
from ingot.core.errors import DataError
from ingot.data.data import Array, Split
from ingot.models.feeds import feeds_for, fixed_rows
from ingot.models.model import Lineage, Model
from ingot.models.onnx_format import read_onnx
from ingot.models.store import store_model
from ingot.runtime.agreement import relative_error
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.measure import Candidate

if TYPE_CHECKING:
    import onnx

ROWS = 8
_FLOAT = 1  # TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class NodeError:
    """How far one node's answer is off, and how far what it read was off already.

    Attributes:
        node: Name of the node in the baseline.
        operator: Its ONNX operator.
        before: Largest relative error among what it reads; 0 where both read the same.
        after: Relative error of what it gives, ||b - a|| / ||a||; infinite for NaN.
        lasting: What of `after` the nodes that read it still have. A form that moves a factor from
            one node to the next is off at the first and right again at the second.
    """

    node: str
    operator: str
    before: float
    after: float
    lasting: float

    @property
    def growth(self) -> float:
        """How much of the error was made here and lasts."""
        return self.lasting - self.before if np.isfinite(self.before) else 0.0

    def __str__(self) -> str:
        """Return e.g. `add_mask (Add): error 0.01 before, 0.97 after`."""
        return (
            f"{self.node} ({self.operator}): error {self.before:.2g} before, {self.after:.2g} after"
        )

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "node": self.node,
            "operator": self.operator,
            "before": self.before,
            "after": self.after,
            "lasting": self.lasting,
        }


def node_errors(baseline: Candidate, candidate: Candidate, split: Split) -> tuple[NodeError, ...]:
    """Return the error at every node whose answer both forms have under one name, in graph order.

    A tensor that is quantized in the candidate counts as it is after that. Watching every tensor
    keeps engines from fusing nodes, so an error that only a fused kernel makes is not seen here.

    Args:
        baseline: Trusted model and engine.
        candidate: The same network in another form, on another engine, or both.
        split: Rows to run; the first eight, or as many as the model takes in one call.

    Raises:
        DataError: The rows do not fit, or the two graphs share no tensor.
        EngineError: One of them does not run.
    """
    ours, theirs = read_onnx(baseline.model.onnx_path), read_onnx(candidate.model.onnx_path)
    watched = _shared(ours, theirs)
    if not watched:
        raise DataError(
            "Both models must name some tensor alike to be compared node by node; these share "
            "none. Compare a model with a form of it that was not exported anew."
        )
    rows = fixed_rows(baseline.model.signature) or ROWS
    some = split.take(range(min(len(split), -(-rows // split.rows_per_example))))
    feeds = feeds_for(baseline.model.signature, some.inputs)
    feeds = {name: array[:rows] for name, array in feeds.items()}
    truth = _run(baseline, ours, list(watched), feeds)
    found = _run(candidate, theirs, list(watched.values()), feeds)
    errors = {
        name: relative_error({name: truth[name]}, {name: found[other]})
        for name, other in watched.items()
        if name in truth and other in found
    }
    return tuple(_rows(ours, errors))


def first_difference(errors: Sequence[NodeError], tolerance: float) -> NodeError | None:
    """Return the first node in graph order whose lasting error passes `tolerance`, or None."""
    return next((error for error in errors if not error.lasting <= tolerance), None)


def worst_nodes(errors: Sequence[NodeError], count: int = 5) -> tuple[NodeError, ...]:
    """Return the nodes that make most of the error themselves, the worst first."""
    return tuple(sorted(errors, key=lambda error: -error.growth)[:count])


def _shared(ours: "onnx.ModelProto", theirs: "onnx.ModelProto") -> dict[str, str]:
    """Return float tensors that nodes of both graphs make, with their name in the second one."""
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*ours.graph.value_info, *ours.graph.output)
    }
    made = {name for node in theirs.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in theirs.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    names = [name for node in ours.graph.node for name in node.output]
    return {
        name: _as_read(name, readers)
        for name in names
        if kinds.get(name) == _FLOAT and name in made
    }


def _as_read(name: str, readers: "Mapping[str, list[onnx.NodeProto]]") -> str:
    """Return what readers of a tensor get: its value after QuantizeLinear and DequantizeLinear."""
    first = readers.get(name, [])
    if len(first) == 1 and first[0].op_type == "QuantizeLinear":
        second = readers.get(first[0].output[0], [])
        if second and all(node.op_type == "DequantizeLinear" for node in second):
            return str(second[0].output[0])
    return name


def _run(
    side: Candidate, proto: "onnx.ModelProto", tensors: Sequence[str], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    from onnx import helper

    outputs = {o.name for o in proto.graph.output}
    shapes = {v.name: v for v in proto.graph.value_info}
    for name in tensors:
        if name not in outputs:
            value = shapes.get(name) or helper.make_tensor_value_info(name, _FLOAT, None)
            proto.graph.output.append(value)
    with tempfile.TemporaryDirectory(prefix="ingot-diagnose-") as folder:
        watched = store_model(proto, lineage=Lineage("onnx"), name="watched", root=Path(folder))
        session = open_session(watched, side.config)
        try:
            return dict(session.run(feeds))
        finally:
            session.close()


def _rows(proto: "onnx.ModelProto", errors: Mapping[str, float]) -> list[NodeError]:
    later: dict[str, float] = {}  # tensor -> largest error among the nodes that read it
    for node in proto.graph.node:
        for name in node.input:
            for made in node.output:
                later[name] = max(later.get(name, 0.0), errors.get(made, 0.0))
    found, seen = [], dict(errors)
    for node in proto.graph.node:
        before = max((seen.get(name, 0.0) for name in node.input), default=0.0)
        known = [name for name in node.output if name in errors]
        for name in node.output:  # what is not watched passes on the error of what it is made of
            seen.setdefault(name, before)
        if known:
            after = max(errors[name] for name in known)
            lasting = max(min(errors[name], later.get(name, errors[name])) for name in known)
            found.append(NodeError(node.name, node.op_type, before, after, lasting))
    return found


def explain_difference(baseline: Model, candidate: Candidate, split: Split) -> str:
    """Return a sentence that names the nodes where a candidate's error is made.

    Raises:
        DataError: The rows do not fit, or the two graphs share no tensor.
        EngineError: One of them does not run.
    """
    trusted = EngineConfig("onnxruntime", "fp32", candidate.config.threads)
    errors = node_errors(Candidate("baseline", baseline, trusted), candidate, split)
    worst = "; ".join(str(error) for error in worst_nodes(errors, 3))
    return f"Most of the error is made at {worst}."
