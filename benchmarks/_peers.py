"""The peers: what a user would run instead, prepared with their own tools and default settings."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Feeds = Mapping[str, np.ndarray]
Answer = Callable[[Feeds], object]

PREPARED = (
    "ort-fp32",
    "ort-dynamic",
    "ort-static",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-nncf",
)
TORCH = ("torch-compile-bf16", "torchao-int8")


def prepare(
    name: str, onnx_path: Path, rows: list[Feeds], folder: Path, *, transformer: bool
) -> Path:
    """Write the artefact of one peer and return its path.

    Args:
        name: One of `PREPARED`.
        onnx_path: The float model.
        rows: Calibration inputs, one mapping per call.
        folder: Where to write.
        transformer: Passed to NNCF as its model type.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "ort-dynamic":
        return _ort_dynamic(onnx_path, folder / "ort_dynamic.onnx")
    if name == "ort-static":
        return _ort_static(onnx_path, rows, folder)
    if name == "openvino-nncf":
        return _nncf(onnx_path, rows, folder / "nncf.xml", transformer=transformer)
    return onnx_path


def _ort_dynamic(source: Path, target: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = _without_value_info(source, target.with_name("ort_plain.onnx"))
    quantize_dynamic(plain, target, per_channel=True, weight_type=QuantType.QInt8)
    return target


def _without_value_info(source: Path, target: Path) -> Path:
    """Drop the shapes noted in a graph: ONNX Runtime's tool transposes weights under them."""
    import onnx

    model = onnx.load(source)
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def _ort_static(source: Path, rows: list[Feeds], folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else dict(row)

    clean, target = folder / "ort_clean.onnx", folder / "ort_static.onnx"
    plain = _without_value_info(source, folder / "ort_plain.onnx")
    quant_pre_process(plain, clean, skip_symbolic_shape=True)
    quantize_static(clean, target, Reader(), per_channel=True)
    return target


def _nncf(source: Path, rows: list[Feeds], target: Path, *, transformer: bool) -> Path:
    import nncf
    import openvino as ov

    core, data = ov.Core(), nncf.Dataset(rows, lambda row: dict(row))
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    model = nncf.quantize(core.read_model(source), data, model_type=kind)
    try:
        core.compile_model(model, "CPU")
    except RuntimeError:  # OpenVINO 2026.4 cannot fold integer tables of RoBERTa's positions
        tables = nncf.IgnoredScope(types=["Gather"])
        model = nncf.quantize(core.read_model(source), data, model_type=kind, ignored_scope=tables)
    ov.save_model(model, target)
    return target


def open_peer(name: str, path: Path, threads: int, feeds: Feeds) -> Answer:
    """Open one peer's artefact and return a function that answers feeds.

    A name that ends in `-fixed` is compiled for exactly the shapes of `feeds`.
    """
    if name.startswith("ort"):
        return _open_ort(path, threads)
    # a set without bf16 would be made to emulate it
    capped = not os.environ.get("ONEDNN_MAX_CPU_ISA", "BF16").endswith("BF16")
    precision = "f32" if capped or name == "openvino-fp32" else "bf16"
    return _open_openvino(
        path, threads, precision, fixed=feeds if name.endswith("-fixed") else None
    )


def _open_ort(path: Path, threads: int) -> Answer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _open_openvino(path: Path, threads: int, precision: str, fixed: Feeds | None) -> Answer:
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    core = ov.Core()
    graph = core.read_model(path)
    if fixed is not None:
        graph.reshape({name: list(array.shape) for name, array in fixed.items()})
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    return lambda feeds: request.infer(dict(feeds), share_inputs=True)


def open_torch(name: str, module: object, order: list[str], threads: int) -> Answer:
    """Open a torch peer: the module compiled in bf16, or quantized by torchao and compiled."""
    import torch
    import torch._inductor.config as inductor

    torch.set_num_threads(threads)
    inductor.freezing = True
    net = module.eval()
    if name == "torch-compile-bf16":
        net = net.to(torch.bfloat16)
    else:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(net, Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(net)
    half = name == "torch-compile-bf16"

    def answer(feeds: Feeds) -> object:
        values = [torch.from_numpy(feeds[n]) for n in order]
        values = [v.to(torch.bfloat16) if half and v.is_floating_point() else v for v in values]
        with torch.inference_mode():
            return compiled(*values)

    return answer
