"""What a graph answers, what one of its layers holds, and how far two answers are apart."""

import numpy as np
import onnxruntime
from onnx import numpy_helper


def answer(proto, feeds):
    """Return the first output, on one thread of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)[0]


def weight(proto, node, position=1):
    """Return a constant that the node of this name reads."""
    name = next(n for n in proto.graph.node if n.name == node).input[position]
    return next(numpy_helper.to_array(w) for w in proto.graph.initializer if w.name == name)


def sqnr(a, b):
    """Return the signal to noise ratio of `b` for `a`, in decibel."""
    return 20 * np.log10(np.linalg.norm(a) / np.linalg.norm(a - b))
