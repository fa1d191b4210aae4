"""What is worth trying, by architecture: a prior, ordered from the safest to the boldest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import onnx

from ingot.compress.method import Method
from ingot.compress.quantize.dynamic import QuantizeDynamic
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.quantize.weights import QuantizeGroups, QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.core.errors import EngineError
from ingot.core.goals import Goal
from ingot.models.model import Model
from ingot.runtime.buckets import MASK
from ingot.runtime.cpu import check_buckets, thread_count
from ingot.runtime.engine import Engine, EngineConfig
from ingot.runtime.openvino_shapes import has_row_axis
from ingot.search.trial import Trial

Architecture = Literal["transformer", "cnn", "dense"]
# (engine, type of what stays float, methods), the best first
Prior = tuple[tuple[str, Literal["fp32", "narrow"], tuple[Method, ...]], ...]


def architecture(model: Model) -> Architecture:
    """Return what kind of network this is, by its operators, not by its name.

    Softmax between matrix products makes a transformer; convolutions make a CNN; the rest is dense.
    """
    graph = onnx.load(model.onnx_path, load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    products = operators["MatMul"] + operators["Gemm"] + operators["Attention"]
    if operators["Conv"] and operators["Conv"] * 2 >= products:
        return "cnn"
    if (operators["Softmax"] and products) or operators["Attention"]:
        return "transformer"
    return "dense"


def default_trials(
    model: Model,
    engines: Mapping[str, Engine],
    *,
    threads: int,
    buckets: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    goal: Goal = "latency",
) -> tuple[Trial, ...]:
    """Return the float model on every engine, then int8 forms on the engines that run them.

    Args:
        model: The float model.
        engines: Engines that are available here, by name.
        threads: Threads per call; 0 is every physical core.
        buckets: Lengths that texts are padded up to.
        batch_sizes: Numbers of rows that OpenVINO compiles a graph of its own for.
        goal: For size and memory, weights in 4 bits are tried too.

    Raises:
        EngineError: There are buckets, and the model takes no `attention_mask`.
    """
    threads = thread_count(threads)  # written down as a number: evidence says what ran
    if buckets and MASK not in {spec.name for spec in model.signature.inputs}:
        raise EngineError(
            f"Buckets must go with a model of masked text; {model.name!r} takes no {MASK!r}. "
            "Leave the buckets out."
        )
    floats = [
        Trial(Recipe(), EngineConfig(name, precision, threads))
        for name, engine in engines.items()
        for precision in engine.precisions(model)
    ]
    kind = architecture(model)
    prior = _PRIOR[kind] + (_SMALL[kind] if goal in {"size", "memory"} else ())
    trials = (*floats, *_integers(prior, model, engines, threads))
    check_buckets(buckets)
    return tuple(
        replace(t, config=_with_shapes(t.config, model, buckets, batch_sizes)) for t in trials
    )


def _with_shapes(
    config: EngineConfig, model: Model, buckets: Sequence[int], batch_sizes: Sequence[int]
) -> EngineConfig:
    """Return a configuration with what can be compiled ahead for the requests that matter."""
    fits = config.engine == "openvino" and has_row_axis(model.signature)
    sizes = tuple(sorted(set(batch_sizes))) if fits else ()
    # the native engine computes no padding: there is nothing to pad up to
    lengths = () if config.engine == "native" else tuple(buckets)
    return replace(config, buckets=lengths, batch_sizes=sizes)


def _integers(
    prior: Prior, model: Model, engines: Mapping[str, Engine], threads: int
) -> list[Trial]:
    trials = []
    for name, rest, methods in prior:
        if name not in engines:
            continue
        # What stays float in a quantized graph runs in fp32, or in the narrowest type there is.
        precision = "fp32" if rest == "fp32" else engines[name].precisions(model)[-1]
        found = [
            Trial(Recipe((method,)), EngineConfig(name, precision, threads)) for method in methods
        ]
        trials += [trial for trial in found if trial not in trials]
    return trials


# The order is what paid most often on the models of benchmarks/results/first_light.json. Attention
# products and SmoothQuant help transformers on OpenVINO. CNNs are all integer, so the type of what
# stays float makes no difference there.
_PRIOR: dict[Architecture, Prior] = {
    "transformer": (
        ("native", "fp32", (QuantizeWeights(),)),
        (
            "openvino",
            "narrow",
            (
                QuantizeStatic(attention=True),
                QuantizeStatic(attention=True, smooth=0.95),
                QuantizeStatic(attention=True, observer="min-max"),
                QuantizeStatic(),
                QuantizeStatic(smooth=0.5),
                QuantizeWeights(),
            ),
        ),
        ("openvino", "fp32", (QuantizeStatic(attention=True),)),
        ("onnxruntime", "fp32", (QuantizeDynamic(), QuantizeStatic())),
    ),
    "cnn": (
        (
            "openvino",
            "fp32",
            (
                QuantizeStatic(),
                QuantizeStatic(observer="moving-average"),
                QuantizeStatic(observer="mse"),
                QuantizeStatic(observer="percentile"),
                QuantizeStatic(observer="entropy"),
            ),
        ),
        ("openvino", "narrow", (QuantizeWeights(),)),
        ("onnxruntime", "fp32", (QuantizeStatic(), QuantizeStatic(observer="min-max"))),
    ),
    "dense": (
        ("openvino", "narrow", (QuantizeStatic(), QuantizeWeights())),
        ("onnxruntime", "fp32", (QuantizeDynamic(), QuantizeStatic())),
    ),
}
# Weights in 4 bits pay in bytes; in time they pay only where a single row is read at a time.
_FOUR_BITS: tuple[Method, ...] = (
    QuantizeGroups(embeddings=4),
    QuantizeWeights(bits=4, embeddings=4),
)
_SMALL: dict[Architecture, Prior] = {
    "transformer": (
        ("openvino", "narrow", (QuantizeStatic(attention=True, embeddings=4), *_FOUR_BITS)),
        ("onnxruntime", "fp32", _FOUR_BITS),
    ),
    "cnn": (),
    "dense": (("onnxruntime", "fp32", _FOUR_BITS),),
}
