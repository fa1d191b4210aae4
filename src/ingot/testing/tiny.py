"""Tiny models and data that exercise what real ones have: enough for a test, gone in a second."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ingot.data.data import Array

FloatArray = NDArray[np.float32]
OPSET = 17
IR_VERSION = 8


def tiny_cnn(seed: int = 0, *, classes: int = 4) -> onnx.ModelProto:
    """Return a CNN with conv + batch norm + ReLU, a residual add, pooling and a linear head.

    Input `image` `(batch, 1, 8, 8)` float32, output `logits` `(batch, classes)`.
    """
    rng = np.random.default_rng(seed)
    g = _Graph(rng)
    g.weight("w1", (8, 1, 3, 3))
    g.node("Conv", ["image", "w1"], "c1", pads=[1, 1, 1, 1])
    g.norm("bn1", "c1", "n1", 8)
    g.node("Relu", ["n1"], "a1")
    g.weight("w2", (8, 8, 3, 3))
    g.weight("b2", (8,))
    g.node("Conv", ["a1", "w2", "b2"], "c2", pads=[1, 1, 1, 1])
    g.node("Add", ["c2", "a1"], "r1")
    g.node("Relu", ["r1"], "a2")
    g.node("GlobalAveragePool", ["a2"], "p")
    g.node("Flatten", ["p"], "f")
    g.weight("w3", (8, classes))
    g.weight("b3", (classes,))
    g.node("Gemm", ["f", "w3", "b3"], "logits")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    return g.model("tiny_cnn", [image], [logits])


def tiny_transformer(
    seed: int = 0, *, vocab: int = 50, width: int = 32, layers: int = 1
) -> onnx.ModelProto:
    """Return an encoder: embedding, attention with a mask, GELU, norms, mean pooling.

    Inputs `input_ids`, `attention_mask` `(batch, sequence)` int64, output `embedding`
    `(batch, width)`.
    """
    rng = np.random.default_rng(seed)
    g = _Graph(rng)
    g.weight("table", (vocab, width), scale=0.5)
    g.node("Gather", ["table", "input_ids"], "x")
    g.constant("root", np.array(np.sqrt(width), np.float32))
    g.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    g.constant("one", np.array(1, np.float32))
    g.node("Sub", ["one", "mask"], "gap")
    g.constant("low", np.array(-1e4, np.float32))
    g.node("Mul", ["gap", "low"], "bias2")
    g.constant("axis1", np.array([1], np.int64))
    g.node("Unsqueeze", ["bias2", "axis1"], "bias3")
    x = "x"
    for layer in range(layers):
        x = g.encoder_layer(x, str(layer) if layer else "", width)
    g.constant("axis2", np.array([2], np.int64))
    g.node("Unsqueeze", ["mask", "axis2"], "mask3")
    g.node("Mul", [x, "mask3"], "ym")
    g.node("ReduceSum", ["ym", "axis1"], "sum", keepdims=0)
    g.node("ReduceSum", ["mask3", "axis1"], "count", keepdims=0)
    g.node("Div", ["sum", "count"], "embedding")
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"])
        for n in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])
    return g.model("tiny_transformer", inputs, [output])


def tiny_decoder(
    seed: int = 0, *, vocab: int = 50, width: int = 32, layers: int = 1, positions: int = 64
) -> onnx.ModelProto:
    """Return a language model of GPT-2's kind: positions, causal attention, norms in front.

    Input `input_ids` `(batch, sequence)` int64, output `logits` `(batch, sequence, vocab)`.
    """
    rng = np.random.default_rng(seed)
    g = _Graph(rng)
    g.weight("table", (vocab, width), scale=0.5)
    g.weight("places", (positions, width), scale=0.5)
    g.node("Gather", ["table", "input_ids"], "words")
    g.constant("zero", np.array(0, np.int64))
    g.constant("step", np.array(1, np.int64))
    g.node("Shape", ["input_ids"], "sizes")
    g.node("Gather", ["sizes", "step"], "length")
    g.node("Range", ["zero", "length", "step"], "at")
    g.node("Gather", ["places", "at"], "place")
    g.node("Add", ["words", "place"], "x")
    g.constant("root", np.array(np.sqrt(width), np.float32))
    g.constant("one", np.array(1, np.float32))
    g.constant("axis0", np.array([0], np.int64))
    g.constant("axis1", np.array([1], np.int64))
    g.node("Unsqueeze", ["at", "axis1"], "query")
    g.node("Unsqueeze", ["at", "axis0"], "key")
    g.node("Greater", ["key", "query"], "later")
    g.constant("low", np.array(-1e4, np.float32))
    g.constant("none", np.array(0, np.float32))
    g.node("Where", ["later", "low", "none"], "causal")
    x = "x"
    for layer in range(layers):
        x = g.decoder_layer(x, str(layer) if layer else "", width)
    g.layer_norm("ln", x, "last", width)
    g.weight("head", (width, vocab))
    g.node("MatMul", ["last", "head"], "logits")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    sizes = ["batch", "sequence", vocab]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
    return g.model("tiny_decoder", [ids], [logits])


def toy_images(
    n: int = 64, seed: int = 0, *, classes: int = 4
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return images `(n, 1, 8, 8)` with one bright quadrant each, and the quadrant as label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    images = rng.normal(0, 0.3, (n, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label) % 4, 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
    return images, labels.astype(np.int64)


def toy_tokens(
    n: int = 32, length: int = 12, seed: int = 0, *, vocab: int = 50
) -> dict[str, Array]:
    """Return `input_ids` and `attention_mask` `(n, length)` with rows of 3 to `length` tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, vocab, (n, length))
    lengths = rng.integers(3, length + 1, n)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {"input_ids": (ids * mask).astype(np.int64), "attention_mask": mask}


class _Graph:
    """Nodes and weights under construction."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.nodes, self.weights = rng, [], []  # type: ignore[var-annotated] # lists of protos

    def constant(self, name: str, value: Array) -> None:
        self.weights.append(numpy_helper.from_array(value, name))

    def weight(self, name: str, shape: tuple[int, ...], *, scale: float | None = None) -> None:
        spread = scale if scale is not None else 1 / np.sqrt(max(1.0, float(np.prod(shape[1:]))))
        self.constant(name, self.rng.normal(0, spread, shape).astype(np.float32))

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> None:
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes)
        )

    def norm(self, name: str, source: str, target: str, channels: int) -> None:
        for part in ("scale", "bias", "mean"):
            self.constant(f"{name}_{part}", self.rng.normal(1, 0.1, channels).astype(np.float32))
        self.constant(f"{name}_var", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        inputs = [source, *(f"{name}_{part}" for part in ("scale", "bias", "mean", "var"))]
        self.node("BatchNormalization", inputs, target)

    def linear(self, name: str, source: str, target: str) -> None:
        self.node("MatMul", [source, f"w_{name}"], f"{target}_mm")
        self.node("Add", [f"{target}_mm", f"b_{name}"], target)

    def layer_norm(self, name: str, source: str, target: str, width: int) -> None:
        self.constant(f"{name}_g", np.ones(width, np.float32))
        self.constant(f"{name}_b", np.zeros(width, np.float32))
        self.node("LayerNormalization", [source, f"{name}_g", f"{name}_b"], target, axis=-1)

    def attention(self, x: str, tag: str, width: int, *, bias: str) -> str:
        """Add attention of one head, whose scores get a bias, and its output layer."""
        for name in ("q", "k", "v", "o"):
            self.weight(f"w_{name}{tag}", (width, width))
            self.weight(f"b_{name}{tag}", (width,))
        for name in ("q", "k", "v"):
            self.linear(f"{name}{tag}", x, f"{name}{tag}")
        self.node("Transpose", [f"k{tag}"], f"kt{tag}", perm=[0, 2, 1])
        self.node("MatMul", [f"q{tag}", f"kt{tag}"], f"s0{tag}")
        self.node("Div", [f"s0{tag}", "root"], f"s1{tag}")
        self.node("Add", [f"s1{tag}", bias], f"s2{tag}")
        self.node("Softmax", [f"s2{tag}"], f"p{tag}", axis=-1)
        self.node("MatMul", [f"p{tag}", f"v{tag}"], f"c{tag}")
        self.linear(f"o{tag}", f"c{tag}", f"a{tag}")
        return f"a{tag}"

    def decoder_layer(self, x: str, tag: str, width: int) -> str:
        """Add one pre-norm layer whose tensors end in `tag`; return its output."""
        self.layer_norm(f"ln1{tag}", x, f"h{tag}", width)
        attended = self.attention(f"h{tag}", tag, width, bias="causal")
        self.node("Add", [x, attended], f"r1{tag}")
        self.layer_norm(f"ln2{tag}", f"r1{tag}", f"m{tag}", width)
        self.feed_forward(f"m{tag}", f"ff{tag}", tag, width)
        self.node("Add", [f"r1{tag}", f"ff{tag}"], f"y{tag}")
        return f"y{tag}"

    def encoder_layer(self, x: str, tag: str, width: int) -> str:
        """Add one post-norm layer whose tensors end in `tag`; return its output."""
        self.attention(x, tag, width, bias="bias3")
        self.node("Add", [x, f"a{tag}"], f"r1{tag}")
        self.layer_norm(f"ln1{tag}", f"r1{tag}", f"h{tag}", width)
        self.feed_forward(f"h{tag}", f"ff{tag}", tag, width)
        self.node("Add", [f"h{tag}", f"ff{tag}"], f"r2{tag}")
        self.layer_norm(f"ln2{tag}", f"r2{tag}", f"y{tag}", width)
        return f"y{tag}"

    def feed_forward(self, source: str, target: str, tag: str, width: int) -> None:
        for name, shape in (("u", (width, 2 * width)), ("d", (2 * width, width))):
            self.weight(f"w_{name}{tag}", shape)
            self.weight(f"b_{name}{tag}", shape[1:])
        self.linear(f"u{tag}", source, f"up{tag}")
        if not tag:
            self.constant("sqrt2", np.array(np.sqrt(2), np.float32))
            self.constant("half", np.array(0.5, np.float32))
        self.node("Div", [f"up{tag}", "sqrt2"], f"up_s{tag}")
        self.node("Erf", [f"up_s{tag}"], f"up_e{tag}")
        self.node("Add", [f"up_e{tag}", "one"], f"up_1{tag}")
        self.node("Mul", [f"up{tag}", f"up_1{tag}"], f"up_m{tag}")
        self.node("Mul", [f"up_m{tag}", "half"], f"gelu{tag}")
        self.linear(f"d{tag}", f"gelu{tag}", target)

    def model(self, name: str, inputs: list[object], outputs: list[object]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        proto.ir_version = IR_VERSION
        onnx.checker.check_model(proto, full_check=True)
        return proto
