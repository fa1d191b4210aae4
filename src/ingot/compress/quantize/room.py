"""Room on the disk for a model whose weights are quantized one at a time."""

from collections.abc import Iterator

import onnx

from ingot.compress.quantize.prepare import FOLDABLE
from ingot.core.files import need_room
from ingot.models.external import is_external, size_bytes
from ingot.models.network import OnnxNetwork

_SCALE_BITS = 1  # a float32 scale for every 32 weights, the smallest group in use
_FLOAT_BITS = 32


def check_room(net: OnnxNetwork, *, bits: int, table_bits: int) -> None:
    """Check that the disk holds what quantizing layer by layer writes, before it starts.

    New weights are written twice, to a scratch file and to the stored model; weights that have to
    be transposed or folded first are written as floats once.

    Args:
        net: A network with weights on disk.
        bits: Of linear layers.
        table_bits: Of embedding tables; 0 for float.

    Raises:
        IngotError: The disk has less room.
    """
    assert net.files is not None
    size = 0
    readers = _readers(net.proto)
    for tensor in filter(is_external, net.proto.graph.initializer):
        whole, operators = size_bytes(tensor), readers.get(tensor.name, set())
        width = sum(_widths(tensor, operators, bits, table_bits))
        size += 2 * whole * width // _FLOAT_BITS
        size += whole if operators & {"Gemm", *FOLDABLE} else 0
    need_room(net.files.folder, size, "the quantized model")


def _widths(
    tensor: onnx.TensorProto, operators: set[str], bits: int, table_bits: int
) -> Iterator[int]:
    """Give about how many bits, of 32, a weight takes afterwards, as a table and as a layer."""
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
        yield _FLOAT_BITS
        return
    if "Gather" in operators:
        yield table_bits + _SCALE_BITS if table_bits else _FLOAT_BITS
    if operators - {"Gather"}:
        yield bits + _SCALE_BITS


def _readers(proto: onnx.ModelProto) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            found.setdefault(name, set()).add(node.op_type)
    return found
