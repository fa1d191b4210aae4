"""Which layers suffer most: each is compressed alone, and the model's output is compared."""

import copy
from collections.abc import Sequence

import numpy as np
import onnx

from ingot.compress.quantize.calibrate import calibrate
from ingot.compress.quantize.observers import make_observer
from ingot.compress.quantize.placement import Plan, linear_layers, place
from ingot.compress.quantize.prepare import prepare
from ingot.compress.quantize.qparams import affine, symmetric
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.writer import write_qdq
from ingot.core.progress import SILENT, Progress
from ingot.data.data import Array, Split
from ingot.evaluate.report.content import SensitivityRow
from ingot.models.feeds import feeds_for, fixed_rows
from ingot.models.model import Model
from ingot.models.onnx_format import read_onnx

ROWS = 32
MOST_DB = 120.0  # an output that did not change at all


def layer_sensitivity(
    model: Model,
    calibration: Split,
    method: QuantizeStatic,
    *,
    rows: int = ROWS,
    progress: Progress = SILENT,
) -> tuple[SensitivityRow, ...]:
    """Quantize each layer alone and return the SQNR of the model's output, most sensitive first.

    SQNR = 20 log10(||y|| / ||y - y_q||) over the first output. One-at-a-time figures ignore how
    layers interact: they rank layers, they do not add up.

    Args:
        model: The float model.
        calibration: Rows for ranges and for the comparison; the first `rows` examples are used.
        method: Observer and granularity to use.
        rows: Examples.
        progress: Told once per layer.

    References:
        Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 5.
        arXiv:2004.09602
    """
    split = calibration.take(range(min(rows, len(calibration))))
    proto = read_onnx(model.onnx_path)
    clean = prepare(copy.deepcopy(proto))
    layers = [name for name in linear_layers(clean) if name not in method.skip]
    plans = {name: _alone(proto, layers, name) for name in layers}
    observed = sorted({tensor for plan in plans.values() for tensor in plan.observed})
    ranges = calibrate(
        clean.proto, split, observed, make=lambda: make_observer(method.observer), progress=progress
    )
    truth = _answer(proto, model, split)
    found = []
    for done, (name, plan) in enumerate(plans.items()):
        progress.step(f"sensitivity of {name}", done, len(plans))
        graph = prepare(copy.deepcopy(proto))
        node, weight = graph.by_name[name], graph.value(graph.by_name[name].input[1])
        operator, size = node.op_type, 0 if weight is None else int(weight.size)
        grids = {t: (symmetric if t in plan.signed else affine)(*ranges[t]) for t in plan.observed}
        changed = write_qdq(graph, plan, grids, per_channel=method.per_channel)
        db = output_sqnr_db(truth, _answer(changed, model, split))
        found.append(SensitivityRow(name, operator, db, size))
    return tuple(sorted(found, key=lambda row: row.sqnr_db))


def output_sqnr_db(truth: Array, changed: Array) -> float:
    """Return 20 log10(||y|| / ||y - y_q||), at most 120 dB.

    Examples:
        >>> output_sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
        20.0
    """
    noise = float(np.linalg.norm(np.asarray(changed, np.float64) - truth))
    signal = float(np.linalg.norm(np.asarray(truth, np.float64)))
    if noise == 0.0 or signal / noise > 10 ** (MOST_DB / 20):
        return MOST_DB
    return 20 * float(np.log10(max(signal, 1e-30) / noise))


def _alone(proto: onnx.ModelProto, layers: Sequence[str], name: str) -> Plan:
    others = tuple(layer for layer in layers if layer != name)
    return place(prepare(copy.deepcopy(proto)), skip=others, embeddings=False)


def _answer(proto: onnx.ModelProto, model: Model, split: Split) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = Split(feeds_for(model.signature, split.inputs))
    batches = feeds.batches(fixed_rows(model.signature) or feeds.rows)
    first = model.signature.outputs[0].name
    return np.concatenate([session.run([first], batch)[0] for batch in batches])
