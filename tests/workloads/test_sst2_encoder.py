import json
from pathlib import Path

import numpy as np
import pytest

from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.core.errors import EngineError
from ingot.models.load import load_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402 - needs torch
from tokenizers import Tokenizer  # noqa: E402 - stands with the others

from ingot_workloads import sst2_encoder as package  # noqa: E402 - needs torch
from ingot_workloads.sst2_encoder import data, train  # noqa: E402 - needs torch
from ingot_workloads.sst2_encoder.model import MAX_TOKENS, sst2_encoder  # noqa: E402 - needs torch

LABEL = "ingot_workloads.sst2_encoder.model:sst2_encoder"
GOOD, BAD = ("good", "fine", "warm"), ("bad", "dull", "cold")
THINGS = ("film", "plot", "cast", "score", "scene", "joke", "hero", "tale", "idea", "end")


@pytest.fixture(autouse=True)
def _threads_of_torch():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write(path, rows):
    lines = [f"{text}\t{label}" for text, label in rows]
    path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n")


def reviews(opening):
    return [
        (f"{opening} {thing} is {word}", label)
        for label, words in enumerate((BAD, GOOD))
        for word in words
        for thing in THINGS
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sst2")
    rows = [row for opening in ("the", "its", "this", "a", "one") for row in reviews(opening)]
    write(path / "train.tsv", [*rows, ('a " lonely quote', 0)])
    write(path / "dev.tsv", reviews("that")[:7])
    write(path / "test_a.tsv", [*reviews("every")[:5], ("the film is bad", 0)])
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return data.train_tokenizer(data.parts(folder)["training"][0], size=100)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """An untrained network whose answers are as large as those of a trained one."""
    torch.manual_seed(0)
    net = sst2_encoder().eval()
    with torch.no_grad():
        net.tokens.weight.mul_(50)
        net.head.weight.mul_(20)
    path = tmp_path_factory.mktemp("net") / "weights.safetensors"
    save_file(net.state_dict(), path)
    return net, load_model(LABEL, weights=path, root=path.parent / "store")


def sentences(rows=3, length=9):
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 8000, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def answer(net, feeds):
    with torch.inference_mode():
        return net(**{name: torch.from_numpy(a) for name, a in feeds.items()})["logits"].numpy()


def test_calibration_is_256_sentences_and_no_sentence_is_in_two_parts(folder):
    found = {name: set(texts) for name, (texts, _) in data.parts(folder).items()}

    assert {name: len(texts) for name, texts in found.items()} == {
        "calibration": 256, "training": 301 - 256 - 1, "test": 7 + 6,
    }  # fmt: skip
    assert not found["training"] & found["calibration"]
    assert not found["test"] & (found["training"] | found["calibration"])


def test_the_split_is_the_same_for_the_same_seed_and_another_for_another(folder):
    first, again, other = (data.parts(folder, seed)["training"] for seed in (0, 0, 1))

    assert first == again
    assert set(first[0]) != set(other[0])


def test_a_quote_in_a_sentence_is_text(folder):
    texts, labels = data.read(folder / "train.tsv")

    assert texts[-1] == 'a " lonely quote'
    assert labels[-1] == 0


def test_the_tokenizer_learns_from_the_training_sentences_only(folder, tokenizer):
    ids = tokenizer.encode("the film is bad").ids

    assert [tokenizer.id_to_token(i) for i in ids] == [
        "[CLS]", "the", "film", "is", "bad", "[SEP]"
    ]  # fmt: skip
    assert tokenizer.token_to_id("every") is None


def test_a_long_sentence_is_cut_to_what_the_network_takes(tokenizer):
    assert len(tokenizer.encode("film " * 500).ids) == MAX_TOKENS


def test_data_hold_tokens_masks_labels_and_the_sentences(folder, tokenizer):
    found = data.load(folder, tokenizer).split("test")

    texts, labels = data.parts(folder)["test"]
    assert found.labels == tuple(texts)
    assert found.targets.tolist() == labels
    assert set(found.inputs) == {"input_ids", "attention_mask"}
    assert ((found.inputs["input_ids"] != 0) == found.inputs["attention_mask"]).all()


def test_the_exported_graph_answers_as_torch_at_any_batch_and_length(network):
    net, model = network
    session = open_session(model, EngineConfig(threads=1))

    for rows, length in ((1, 1), (1, MAX_TOKENS), (5, 7)):
        feeds = sentences(rows, length)
        np.testing.assert_allclose(session.run(feeds)["logits"], answer(net, feeds), atol=1e-4)


def test_the_signature_names_tokens_mask_and_logits(network):
    signature = network[1].signature

    assert [(s.name, s.dtype, s.shape) for s in signature.inputs] == [
        ("input_ids", "int64", ("batch", "sequence")),
        ("attention_mask", "int64", ("batch", "sequence")),
    ]
    assert [(s.name, s.shape) for s in signature.outputs] == [("logits", ("batch", 2))]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_padding_changes_no_answer(network, engine):
    session = open_session(network[1], EngineConfig(engine, threads=1))
    short = sentences()
    padded = {n: np.pad(a, ((0, 0), (0, 20))) for n, a in short.items()}
    padded["input_ids"][:, 9:] = 77  # what stands under the mask must not matter

    gap = np.abs(session.run(padded)["logits"] - session.run(short)["logits"]).max()
    assert gap <= 1e-4


def test_a_token_under_the_mask_is_not_seen_and_another_is(network):
    feeds = sentences(1, 6)
    feeds["attention_mask"][0, 4:] = 0
    hidden, seen = ({n: a.copy() for n, a in feeds.items()} for _ in range(2))
    hidden["input_ids"][0, 5] += 1
    seen["input_ids"][0, 2] += 1
    before = answer(network[0], feeds)

    np.testing.assert_array_equal(answer(network[0], hidden), before)
    assert np.abs(answer(network[0], seen) - before).max() > 1e-3


def test_more_tokens_than_the_network_has_places_for_are_refused(network):
    session = open_session(network[1], EngineConfig(threads=1))

    with pytest.raises(EngineError):
        session.run(sentences(1, MAX_TOKENS + 1))


def test_the_recipe_makes_a_quarter_of_the_file_and_keeps_the_answers(
    folder, tokenizer, network, tmp_path
):
    net, model = network
    recipe = Recipe.read(Path(package.__file__).parent / "recipe.toml")
    found = data.load(folder, tokenizer)

    small = recipe.apply(model, found, root=tmp_path)

    feeds = found.split("test").inputs
    said = open_session(small, EngineConfig(threads=1)).run(feeds)["logits"]
    wanted = answer(net, feeds)
    assert recipe.methods == (QuantizeStatic(),)
    assert small.size_bytes < model.size_bytes / 3.5
    assert float((said * wanted).sum() / np.linalg.norm(said) / np.linalg.norm(wanted)) > 0.98


def test_dropped_words_are_unknown_and_special_tokens_stay():
    torch.manual_seed(0)
    ids = torch.tensor([[2, 50, 60, 70, 3, 0]] * 200)

    found = train.drop_words(ids, 0.25)

    changed = found != ids
    assert set(found[changed].tolist()) == {1}
    assert not changed[:, [0, 4, 5]].any()
    assert 0.2 < changed[:, 1:4].float().mean() < 0.3


def test_batches_hold_every_sentence_once_and_sentences_of_like_length():
    lengths = torch.arange(100) % 50

    found = train.batches(lengths, 10)

    assert sorted(torch.cat(found).tolist()) == list(range(100))
    assert max(int(lengths[i].max() - lengths[i].min()) for i in found) < 15


def test_training_writes_weights_a_tokenizer_and_results_that_agree(folder, tmp_path):
    out = tmp_path / "made"
    options = ["--data", str(folder), "--out", str(out), "--epochs", "2", "--threads", "1"]

    train.main([*options, "--float32"], standalone_mode=False)

    said = json.loads((out / "results.json").read_text())
    test = data.load(folder, Tokenizer.from_file(str(out / "tokenizer.json"))).split("test")
    net = sst2_encoder().eval()
    net.load_state_dict(load_file(out / "weights.safetensors"))
    right = (answer(net, test.inputs).argmax(1) == test.targets).sum()
    assert said["rows"][0][1] == f"{right} of 13"
    assert said["accuracy"]["low"] <= right / 13 <= said["accuracy"]["high"]


def test_the_same_seed_trains_the_same_weights(folder, tokenizer):
    split = data.load(folder, tokenizer).split("training").take(range(8))
    config = train.Config(epochs=1, batch=4, bfloat16=False, threads=1)

    first, again = (train.train(split, config).head.weight for _ in range(2))

    assert torch.equal(first, again)
