"""A decoder of up to 1.3 B parameters quantized in 4 bits, one layer at a time: memory and time."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

WIDTH, HEADS, VOCAB, POSITIONS = 2048, 16, 32_000, 1024
TOKENS = 16
_QUANTIZE = "from _scale import quantize; quantize()"
_ANSWER = "from _scale import answer; answer()"


def measure(work: Path, layers: tuple[int, ...] = (3, 6, 12, 24)) -> list[dict]:
    """Quantize random decoders of several depths, each in a process of its own, and run them.

    A decoder is written weight by weight, so this process stays small, too; its files are removed
    after each depth.

    Args:
        work: A folder on a disk with room for 8 GB at 24 layers.
        layers: Depths; 24 make 1.35 B parameters with a head of their own.

    Returns:
        A row per depth: `layers`, `parameters`, `float_bytes`, `stored_bytes`, `ratio`, `wall_s`
        (a whole process: read, check, quantize, write, digest), `cpu_s`, `peak_rss_bytes` (with
        mapped pages of files while they are resident: the kernel's high-water mark),
        `peak_anonymous_bytes` (without them; sampled every 10 ms), `open_s` and `answer_s` of
        ONNX Runtime on one sequence of 16 tokens with one thread, `engine_peak_rss_bytes`,
        `finite` answers, `operators` that ran in 4 bits, and `cosine` of the logits with those of
        the float model where that has at most 6 layers.
    """
    rows = []
    for depth in layers:
        folder = work / f"decoder-{depth}"
        try:
            rows.append(_measure_one(folder, depth))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def fit_line(rows: list[dict], what: str = "wall_s") -> dict[str, float]:
    """Return how time grows with depth: `seconds_per_layer`, `seconds_fixed`, `r_squared`.

    Args:
        rows: At least three depths, from `measure`.
        what: `wall_s`, or `cpu_s` where other work shares the machine.
    """
    depth = np.array([row["layers"] for row in rows], float)
    time_s = np.array([row[what] for row in rows])
    slope, fixed = np.polyfit(depth, time_s, 1)
    left = ((time_s - slope * depth - fixed) ** 2).sum() / ((time_s - time_s.mean()) ** 2).sum()
    return {
        "seconds_per_layer": float(slope),
        "seconds_fixed": float(fixed),
        "r_squared": float(1 - left),
    }


def _measure_one(folder: Path, depth: int) -> dict:
    folder.mkdir(parents=True)
    path = folder / "decoder.onnx"
    parameters = write_decoder(path, depth)
    size = sum(p.stat().st_size for p in folder.iterdir())
    start = time.monotonic()
    done = _child(_QUANTIZE, {"source": str(path), "root": str(folder / "store")})
    row = {
        "layers": depth,
        "parameters": parameters,
        "float_bytes": size,
        "stored_bytes": done["stored_bytes"],
        "ratio": size / done["stored_bytes"],
        "wall_s": time.monotonic() - start,
        **{key: done[key] for key in ("cpu_s", "peak_rss_bytes", "peak_anonymous_bytes")},
    }
    request = {"model": done["model"], "source": str(path) if depth <= 6 else None}
    return row | _child(_ANSWER, request)


def _child(code: str, request: dict) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def quantize() -> None:
    """Quantize the file that the request names; print what it took. Runs in a fresh process."""
    from ingot.compress.quantize.stream import quantize_stream

    request = json.loads(sys.argv[1])
    peaks = _watch()
    model = quantize_stream(Path(request["source"]), Path(request["root"]))
    print(
        json.dumps(
            {
                "model": str(model.path),
                "stored_bytes": model.size_bytes,
                "cpu_s": time.process_time(),
                "peak_rss_bytes": _status()["VmHWM"],
                "peak_anonymous_bytes": peaks["RssAnon"],
            }
        )
    )


def answer() -> None:
    """Open the stored model in ONNX Runtime, run it once, print what it took."""
    from ingot.models.store import open_model
    from ingot.runtime.engine import EngineConfig
    from ingot.runtime.engines import open_session

    request = json.loads(sys.argv[1])
    model = open_model(Path(request["model"]), verify=False)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (1, TOKENS))
    start = time.monotonic()
    session = open_session(model, EngineConfig("onnxruntime", threads=1))
    opened = time.monotonic()
    logits = session.run({"input_ids": tokens})["logits"]
    row = {
        "open_s": opened - start,
        "answer_s": time.monotonic() - opened,
        "engine_peak_rss_bytes": _status()["VmHWM"],
        "finite": bool(np.isfinite(logits).all()),
        "operators": sum(node.kind == "MatMulNBits" for node in session.executed()),
    }
    session.close()
    if request["source"] is not None:
        row["cosine"] = _cosine(logits, _float_logits(request["source"], tokens))
    print(json.dumps(row))


def _float_logits(path: str, tokens: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": tokens})[0]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _status() -> dict[str, int]:
    """Return this process's memory in bytes, by the kernel's names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {key: int(value.split()[0]) * 1024 for key, value in pairs}


def _watch() -> dict[str, int]:
    """Return a record of the largest private memory, kept up to date by a thread."""
    peaks = {"RssAnon": 0}

    def look() -> None:
        while True:
            peaks["RssAnon"] = max(peaks["RssAnon"], _status()["RssAnon"])
            time.sleep(0.01)

    threading.Thread(target=look, daemon=True).start()
    return peaks


def write_decoder(path: Path, depth: int, *, seed: int = 0) -> int:
    """Write a random GPT-like decoder: `input_ids` (batch, sequence) to `logits`; return its size.

    Pre-norm layers of width 2048 with 16 heads and a GELU of four times the width; weights are
    normal with deviation 0.02, drawn and written one tensor at a time.
    """
    with path.with_suffix(".weights").open("wb") as stream:
        net = _Decoder(np.random.default_rng(seed), stream, path.with_suffix(".weights").name)
        net.build(depth)
    path.write_bytes(net.model().SerializeToString())
    return net.parameters


class _Decoder:
    """Nodes in memory, weights in a stream."""

    def __init__(self, rng: np.random.Generator, stream: IO[bytes], location: str) -> None:
        self.rng, self.stream, self.location = rng, stream, location
        self.nodes, self.tensors, self.parameters = [], [], 0

    def weight(self, name: str, *shape: int, value: float | None = None) -> str:
        if value is None:
            array = self.rng.standard_normal(shape, np.float32) * np.float32(0.02)
        else:
            array = np.full(shape, value, np.float32)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, fact in (
            ("location", self.location),
            ("offset", self.stream.tell()),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(fact))
        self.stream.write(array.data)
        self.tensors.append(tensor)
        self.parameters += array.size
        return name

    def constant(self, name: str, value: object, kind: type) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def node(self, op: str, inputs: list[str], *outputs: str, **options: object) -> str:
        name = f"{op}_{outputs[0]}"
        self.nodes.append(helper.make_node(op, inputs, list(outputs), name, **options))
        return outputs[0]

    def build(self, depth: int) -> None:
        for name, value in (("zero", 0), ("one", 1), ("axis1", [1]), ("axis0", [0])):
            self.constant(name, value, np.int64)
        for name, value in (("root", (WIDTH / HEADS) ** 0.5), ("low", -1e9), ("nought", 0),
                            ("sqrt2", 2**0.5), ("unit", 1), ("half", 0.5)):  # fmt: skip
            self.constant(name, value, np.float32)
        self.constant("apart", [0, 0, HEADS, WIDTH // HEADS], np.int64)
        self.constant("together", [0, 0, WIDTH], np.int64)
        x = self.enter()
        for i in range(depth):
            x = self.layer(x, f"l{i}")
        self.node("MatMul", [self.norm(x, "last"), self.weight("head", WIDTH, VOCAB)], "logits")

    def enter(self) -> str:
        tokens = self.node("Gather", [self.weight("tokens", VOCAB, WIDTH), "input_ids"], "embedded")
        length = self.node("Gather", [self.node("Shape", ["input_ids"], "shape"), "one"], "length")
        place = self.node("Range", ["zero", length, "one"], "place")
        row = self.node("Unsqueeze", [place, "axis1"], "row")
        column = self.node("Unsqueeze", [place, "axis0"], "column")
        seen = self.node("LessOrEqual", [column, row], "seen")
        self.node("Where", [seen, "nought", "low"], "mask")
        placed = self.node("Gather", [self.weight("places", POSITIONS, WIDTH), place], "placed")
        return self.node("Add", [tokens, placed], "entered")

    def norm(self, x: str, name: str) -> str:
        parts = [self.weight(f"{name}_{p}", WIDTH, value=v) for p, v in (("g", 1), ("b", 0))]
        return self.node("LayerNormalization", [x, *parts], f"{name}_normed", axis=-1)

    def linear(self, x: str, name: str, inner: int, outer: int) -> str:
        product = self.node("MatMul", [x, self.weight(f"{name}_w", inner, outer)], f"{name}_mm")
        return self.node("Add", [product, self.weight(f"{name}_b", outer, value=0)], f"{name}_out")

    def layer(self, x: str, name: str) -> str:
        attended = self.attention(self.norm(x, f"{name}_n1"), name)
        x = self.node("Add", [x, attended], f"{name}_r1")
        h = self.linear(self.norm(x, f"{name}_n2"), f"{name}_up", WIDTH, 4 * WIDTH)
        e = self.node("Erf", [self.node("Div", [h, "sqrt2"], f"{name}_e0")], f"{name}_e1")
        g = self.node("Mul", [h, self.node("Add", [e, "unit"], f"{name}_e2")], f"{name}_e3")
        g = self.node("Mul", [g, "half"], f"{name}_gelu")
        return self.node("Add", [x, self.linear(g, f"{name}_down", 4 * WIDTH, WIDTH)], f"{name}_r2")

    def attention(self, x: str, name: str) -> str:
        joined = self.linear(x, f"{name}_qkv", WIDTH, 3 * WIDTH)
        parts = [f"{name}_{p}" for p in "qkv"]
        self.nodes.append(helper.make_node("Split", [joined], parts, f"{name}_split", axis=-1))
        apart = [self.node("Reshape", [p, "apart"], f"{p}_apart") for p in parts]
        q, v = (
            self.node("Transpose", [apart[i]], f"{parts[i]}_t", perm=[0, 2, 1, 3]) for i in (0, 2)
        )
        k = self.node("Transpose", [apart[1]], f"{parts[1]}_t", perm=[0, 2, 3, 1])
        score = self.node("Div", [self.node("MatMul", [q, k], f"{name}_s0"), "root"], f"{name}_s1")
        score = self.node("Add", [score, "mask"], f"{name}_s2")
        share = self.node("Softmax", [score], f"{name}_s3", axis=-1)
        mixed = self.node("MatMul", [share, v], f"{name}_mixed")
        back = self.node("Transpose", [mixed], f"{name}_back", perm=[0, 2, 1, 3])
        whole = self.node("Reshape", [back, "together"], f"{name}_whole")
        return self.linear(whole, f"{name}_proj", WIDTH, WIDTH)

    def model(self) -> ModelProto:
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        logits = helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB]
        )
        graph = helper.make_graph(self.nodes, "decoder", [ids], [logits], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
