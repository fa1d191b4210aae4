"""Tiny transformers with random weights, exported, and how far a spec's answers are from theirs."""

import numpy as np
import onnx
import onnxruntime

from ingot.models._export import export
from ingot.models.transformer.reference import float_forward

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
LENGTHS = (1, 2, 7, 19)


def wrapped(network, *, pool="tokens", normalize=False, types=False):
    """Return a module that gives one tensor for ids, mask and, if asked for, types."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def run(self, **inputs):
            answer = self.network(**inputs)
            if hasattr(answer, "logits"):
                return answer.logits
            x, mask = answer.last_hidden_state, inputs["attention_mask"][:, :, None]
            if pool == "mean":
                x = (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            elif pool == "first":
                x = x[:, 0]
            elif pool == "last":
                last = inputs["attention_mask"].sum(1) - 1
                x = x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
            return torch.nn.functional.normalize(x, dim=-1) if normalize else x

    class WithTypes(Wrapped):
        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.run(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            )

    class Plain(Wrapped):
        def forward(self, input_ids, attention_mask):
            return self.run(input_ids=input_ids, attention_mask=attention_mask)

    return (WithTypes if types else Plain)().eval()


def shaken(module, seed=0):
    """Give every parameter random values: zeros and ones would hide what was mixed up."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.15 if parameter.ndim > 1 else 0.3
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return module


def example(module):
    """Return inputs by name, the second row padded."""
    rng = np.random.default_rng(0)
    mask = np.ones((2, 8), np.int64)
    mask[1, 5:] = 0
    inputs = {"input_ids": rng.integers(4, 60, (2, 8)), "attention_mask": mask}
    if type(module).__name__ == "WithTypes":
        inputs["token_type_ids"] = rng.integers(0, 2, (2, 8))
    return inputs


def exported(module, outputs=("answer",)):
    """Return the graph that our exporter writes."""
    return export(shaken(module), example(module), dynamic=True, outputs=list(outputs))


def exported_by_tracing(module, folder):
    """Return the graph that torch's older exporter writes."""
    import torch

    inputs, path = example(shaken(module)), folder / "traced.onnx"
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(value) for value in inputs.values()),
        path,
        input_names=list(inputs),
        output_names=["answer"],
        dynamic_axes={n: {0: "batch", 1: "sequence"} for n in inputs} | {"answer": {0: "batch"}},
        dynamo=False,
        opset_version=17,
    )
    return onnx.load(path)


def gap(found, proto, lengths=LENGTHS, *, optimized=True):
    """Return the largest difference to ONNX Runtime's answers, relative to their largest."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    rng, worst = np.random.default_rng(1), 0.0
    for length in lengths:
        ids = rng.integers(0, found.spec.vocab, (1, length))
        types = rng.integers(0, max(1, found.spec.token_types), (1, length))
        feeds = {found.inputs.ids: ids}
        if found.inputs.mask:
            feeds[found.inputs.mask] = np.ones_like(ids)
        if found.inputs.types:
            feeds[found.inputs.types] = types
        theirs = session.run(None, feeds)[0][0]
        ours = float_forward(
            found.spec, found.tensors, ids[0], types[0] if found.inputs.types else None
        )
        assert ours.shape == theirs.shape
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return worst
