"""Where the table of positions of an exported decoder ends."""

import numpy as np
import onnx
import pytest
import transformers
from nets_of_transformers import exported, wrapped

from ingot.models.transformer.positions import longest_sequence
from ingot.testing.tiny import tiny_decoder

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def feeds(length):
    return {
        "input_ids": np.full((1, length), 3), "attention_mask": np.ones((1, length), np.int64),
    }  # fmt: skip


# The table of OPT has 42 rows, of which the first two belong to padding.
@pytest.mark.parametrize(
    ("family", "more", "longest"),
    [
        ("OPT", {"max_position_embeddings": 40, "word_embed_proj_dim": 32, "ffn_dim": 64}, 40),
        ("Llama", {"max_position_embeddings": 40, "intermediate_size": 64}, None),
    ],
)
def test_a_sequence_ends_with_the_table_of_positions(tmp_path, family, more, longest):
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    network = getattr(transformers, f"{family}ForCausalLM")(config)
    onnx.save(exported(wrapped(network)), tmp_path / "model.onnx")

    assert longest_sequence(tmp_path / "model.onnx", feeds) == longest


def test_weights_in_a_file_of_their_own_are_not_needed(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(tiny_decoder(positions=24), path, save_as_external_data=True, location="weights.bin")

    assert longest_sequence(path, lambda n: {"input_ids": np.full((1, n), 3)}) == 24
