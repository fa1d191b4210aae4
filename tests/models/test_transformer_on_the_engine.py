"""From a graph to the native engine's answers, family by family."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers  # noqa: E402 # made of torch
from nets_of_transformers import TINY, exported_by_tracing, wrapped  # noqa: E402 # made of torch
from test_transformer_families import (  # noqa: E402 # made of torch
    DISTIL,
    GPT2,
    LLAMA,
    MODERN,
    encoder,
    headed,
    make,
)

from ingot.compress.quantize.weights import QuantizeWeights  # noqa: E402
from ingot.compress.recipe import Recipe  # noqa: E402
from ingot.core.errors import EngineError  # noqa: E402
from ingot.models.model import Lineage  # noqa: E402
from ingot.models.store import store_model  # noqa: E402
from ingot.runtime.engine import EngineConfig  # noqa: E402
from ingot.runtime.engines import open_session  # noqa: E402
from ingot.runtime.native_engine import NativeEngine, packed_decoder  # noqa: E402

STATUS = NativeEngine().available()
pytestmark = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")
WIDE = LLAMA | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
OPT = {
    "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 60, "max_position_embeddings": 40, "word_embed_proj_dim": 64, "use_cache": False,
}  # fmt: skip
T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60,
    "use_cache": False,
}  # fmt: skip
FAMILIES = {
    "Bert": lambda: encoder("Bert", TINY, pool="mean", normalize=True),
    "BertForSequenceClassification": lambda: headed("Bert", "SequenceClassification", TINY),
    "Roberta": lambda: encoder("Roberta", TINY),
    "DistilBert": lambda: encoder("DistilBert", DISTIL),
    "MPNet": lambda: encoder("MPNet", TINY),
    "ModernBert": lambda: encoder("ModernBert", MODERN),
    "GPT2": lambda: encoder("GPT2", GPT2),
    "Llama": lambda: encoder("Llama", LLAMA),
    "Nomic": lambda: encoder("NomicBert", TINY, pool="mean"),
    "T5": lambda: wrapped(transformers.T5EncoderModel(transformers.T5Config(**T5)), pool="mean"),
}
DECODERS = {
    "GPT2": lambda: wrapped(transformers.GPT2LMHeadModel(make("GPT2", GPT2))),
    "Llama": lambda: headed("Llama", "CausalLM", WIDE),
    "Qwen2": lambda: headed("Qwen2", "CausalLM", WIDE),
    "Mistral": lambda: headed("Mistral", "CausalLM", WIDE | {"sliding_window": 6}),
    "Gemma": lambda: headed("Gemma", "CausalLM", WIDE | {"head_dim": 16}),
    "OPT": lambda: headed("OPT", "CausalLM", OPT),
}


def model_of(module, folder):
    proto = exported_by_tracing(module, folder)
    return store_model(proto, lineage=Lineage("onnx"), name="net", root=folder / "store")


def quantized(model, folder, **options):
    return Recipe((QuantizeWeights(**options),)).apply(model, root=folder / "store")


def check_answers(model, precision="fp32", least=0.9995):
    """Compare the engine's answers with those of ONNX Runtime."""
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: np.ones((3, 12), spec.dtype)
        if "mask" in spec.name
        else rng.integers(5, 59, (3, 12)).astype(spec.dtype)
        for spec in model.signature.inputs
    }
    found = open_session(model, EngineConfig("native", precision, threads=1)).run(feeds)
    wanted = open_session(model, EngineConfig("onnxruntime", threads=1)).run(feeds)
    for name, right in wanted.items():
        assert found[name].shape == right.shape
        left, right = found[name].ravel().astype(float), right.ravel().astype(float)
        assert left @ right >= least * np.linalg.norm(left) * np.linalg.norm(right)


@pytest.mark.filterwarnings("ignore")  # the older exporter warns of itself and of what it traces
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_answers_like_onnx_runtime_from_the_same_file(family, tmp_path):
    if family == "Nomic" and not hasattr(transformers, "NomicBertModel"):
        pytest.skip("this version of transformers has no NomicBert")

    model = model_of(FAMILIES[family](), tmp_path)

    check_answers(quantized(model, tmp_path))
    check_answers(model, "bf16", least=0.9999)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", DECODERS)
def test_language_models_are_packed_in_the_bits_they_have(family, tmp_path):
    model = model_of(DECODERS[family](), tmp_path)
    eight = quantized(model, tmp_path)
    four = quantized(model, tmp_path, bits=4, granularity="k:32")

    in_eight, in_four = packed_decoder(eight), packed_decoder(four)
    in_bf16 = packed_decoder(model, "bf16")

    check_answers(model, "bf16", least=0.9999)
    check_answers(eight)
    check_answers(four)
    assert in_eight.spec == in_four.spec
    assert {"layers.0.qkv.codes", "layers.1.down.codes", "head.0.codes"} <= set(in_eight.tensors)
    assert {"layers.0.qkv.codes4", "layers.1.down.codes4", "head.0.codes4"} <= set(in_four.tensors)
    assert {"layers.0.qkv.bf16", "layers.1.down.bf16", "head.0.bf16"} <= set(in_bf16.tensors)
    # One table for both ends, rounded alike, is kept once. Gemma's is scaled at one of them.
    assert ("embed.tokens.codes" not in in_eight.tensors) == (family in {"GPT2", "OPT"})
    assert ("embed.tokens.bf16" not in in_bf16.tensors) == (family in {"GPT2", "OPT"})


@pytest.mark.filterwarnings("ignore")
def test_a_body_without_a_head_is_no_decoder(tmp_path):
    body = quantized(model_of(encoder("GPT2", GPT2), tmp_path), tmp_path)

    with pytest.raises(EngineError, match="gives no scores of its vocabulary. Export it with"):
        packed_decoder(body)
