import json

import numpy as np
import onnxruntime
import pytest

from ingot.core.errors import ModelError
from ingot.models.ends import ends_of
from ingot.models.load import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    path = tmp_path / "bert"
    transformers.BertModel(config).eval().save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2")]
    (path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds])
    )
    return path


def test_a_sentence_encoder_gives_the_embedding_that_transformers_gives(folder, tmp_path):
    ids = np.random.default_rng(1).integers(1, 40, (3, 11))
    mask = (np.arange(11) < np.array([[11], [4], [7]])).astype(np.int64)
    with torch.inference_mode():
        hidden = transformers.AutoModel.from_pretrained(folder)(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )[0].numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    want = mean / np.linalg.norm(mean, axis=1, keepdims=True)

    model = load_model(folder, root=tmp_path / "store")

    session = onnxruntime.InferenceSession(model.onnx_path)
    got = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert [i.name for i in model.signature.inputs] == ["input_ids", "attention_mask"]


def test_an_unknown_pooling_is_refused(folder):
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')

    with pytest.raises(ModelError, match="must be mean or CLS"):
        load_model(folder)


def test_a_decoder_gives_the_scores_that_transformers_gives(tmp_path):
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.GPT2LMHeadModel(config).eval()
    network.save_pretrained(tmp_path / "gpt2")
    ids = np.random.default_rng(1).integers(1, 40, (2, 9))
    with torch.inference_mode():
        want = network(torch.from_numpy(ids)).logits.numpy()

    model = load_model(tmp_path / "gpt2", root=tmp_path / "store")

    session = onnxruntime.InferenceSession(model.onnx_path)
    got = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_decoder_carries_the_tokens_that_end_its_texts(tmp_path):
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=1, vocab_size=20, n_positions=16, bos_token_id=0,
        eos_token_id=7,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config)
    network.generation_config.eos_token_id = [7, 9]
    network.save_pretrained(tmp_path / "gpt2")

    model = load_model(tmp_path / "gpt2", root=tmp_path / "store")

    assert ends_of(model).tokens == (7, 9)
