"""A GPT-2 for OpenVINO as its own tools make one: keys and values are state of the graph."""

from pathlib import Path

import _nets
import numpy as np
import torch
from torch import Tensor, nn

BITS = {8: "INT8_ASYM", 4: "INT4_SYM"}


class Cached(nn.Module):
    """The network with keys and values of earlier tokens as inputs; scores of the last token."""

    def __init__(self, net: _nets.Gpt2Scores) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, beam_idx: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        old, count = past[0].shape[2], input_ids.shape[1]
        at = torch.arange(count) + old
        x = self.net.tokens(input_ids) + self.net.places(at)
        mask = torch.arange(old + count)[None, :] <= at[:, None]
        present: list[Tensor] = []
        for index, layer in enumerate(self.net.layers):
            keys, values = (part.index_select(0, beam_idx) for part in past[2 * index :][:2])
            y, keys, values = _attended(layer, layer.norm1(x), (keys, values), mask)
            present += [keys, values]
            x = x + y
            x = x + layer.down(nn.functional.gelu(layer.up(layer.norm2(x)), approximate="tanh"))
        return self.net.norm(x)[:, -1] @ self.net.tokens.weight.T, *present


def _attended(
    layer: _nets.DecoderLayer, x: Tensor, past: tuple[Tensor, Tensor], mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, count, width = x.shape
    qkv = layer.qkv(x).view(batch, count, 3, layer.heads, width // layer.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return layer.out(y.transpose(1, 2).reshape(batch, count, width)), k, v


def write_stateful(net: _nets.Gpt2Scores, target: Path, bits: int) -> None:
    """Convert, make keys and values state, compress every matrix with NNCF, and save."""
    import nncf
    import openvino as ov
    from openvino._offline_transformations import apply_make_stateful_transformation

    heads, width = net.layers[0].heads, net.tokens.weight.shape[1]
    past = tuple(torch.zeros(2, heads, 3, width // heads) for _ in range(2 * len(net.layers)))
    example = (torch.ones(2, 4, dtype=torch.long), torch.arange(2, dtype=torch.int32), *past)
    with torch.no_grad():
        model = ov.convert_model(Cached(net).eval(), example_input=example)
    names = [f"{part}.{index}" for index in range(len(net.layers)) for part in ("key", "value")]
    for port, name in zip(model.inputs, ("input_ids", "beam_idx", *names), strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ("logits", *names), strict=True):
        port.get_tensor().set_names({name if name == "logits" else f"present.{name}"})
    shape = ov.PartialShape([-1, heads, -1, width // heads])
    shapes = {"input_ids": ov.PartialShape([-1, -1]), "beam_idx": ov.PartialShape([-1])}
    model.reshape({**shapes, **dict.fromkeys(names, shape)})
    apply_make_stateful_transformation(model, {name: f"present.{name}" for name in names})
    _begin_empty(model)
    mode = getattr(nncf.CompressWeightsMode, BITS[bits])
    options = {"group_size": 32, "ratio": 1.0, "all_layers": True} if bits == 4 else {}
    ov.save_model(nncf.compress_weights(model, mode=mode, **options), target)


def _begin_empty(model: object) -> None:
    """Let every state begin without tokens, with as many rows as the ids have."""
    from openvino import opset13 as op

    ids = model.input("input_ids")
    rows = op.gather(op.shape_of(ids, output_type="i64"), op.constant([0]), op.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            sizes = [rows, *(op.constant(np.array([size], np.int64))
                             for size in (heads.get_length(), 0, width.get_length()))]  # fmt: skip
            zero = op.constant(np.float32(0))
            node.set_arguments([op.broadcast(zero, op.concat(sizes, axis=0))])
    model.validate_nodes_and_infer_types()
