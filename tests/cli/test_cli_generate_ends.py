"""`ingot generate`: where a text ends, and a text from a server."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ingot.models.ends import Ends
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint, Generation
from ingot.serve.server import serve_in_thread
from ingot.testing.tiny import tiny_decoder

HOW = ["--engine", "onnxruntime", "--threads", 1, "--prompt", "ABC"]


@pytest.fixture
def model(tmp_path):
    """Give `model(ends)`: a decoder of letters that carries them."""

    def make(ends=()):
        letters = [chr(ord("A") + at) for at in range(48)]
        library = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        library.add_special_tokens([AddedToken("</s>", special=True)])
        library.save(str(tmp_path / "tokenizer.json"))
        files = {"tokenizer.json": tmp_path / "tokenizer.json", **Ends(tuple(ends)).as_files()}
        return store_model(
            tiny_decoder(), lineage=Lineage("hf"), name="tiny", root=tmp_path / "store", extra=files
        )

    return make


def tokens(run, model, *more):
    return run("generate", model.path, *HOW, "--max-tokens", 8, "--json", *more).json["tokens"]


def test_a_text_ends_at_the_token_that_the_model_carries(run, model):
    free = tokens(run, model())
    end = free[4]

    ended = tokens(run, model([end]))

    assert ended == free[: free.index(end) + 1]


def test_the_end_may_be_ignored_or_given(run, model):
    free = tokens(run, model())
    end = free[4]

    assert tokens(run, model([end]), "--ignore-eos") == free
    given = tokens(run, model([1]), "--end-token", end, "--end-token", "</s>")
    assert given == free[: free.index(end) + 1]


def test_an_unknown_end_token_is_refused_with_the_known_ones(run, model):
    done = run("generate", model().path, *HOW, "--end-token", "<eos>")

    assert done.code == 2
    assert "No token is called '<eos>'" in done.err


@pytest.fixture
def served(model):
    stored = model()
    version = Version(
        "tiny", 1, stored.digest, stored.digest, EngineConfig(threads=1), "2026-01-01T00:00:00Z", 0
    )
    with serve_in_thread(Endpoint(version, stored, port=0, generation=Generation())) as running:
        yield running.url, stored


def test_a_text_from_a_server_is_that_of_the_model(run, served):
    url, stored = served
    how = ["--prompt", "ABC", "--max-tokens", 8, "--temperature", 1.2, "--seed", 3]
    here = run("generate", stored.path, "--engine", "onnxruntime", "--threads", 1, *how)

    there = run("generate", f"{url}/tiny", *how)

    assert there.code == 0
    assert there.out == here.out
    assert f"8 pieces from {url}/tiny" in there.err


def test_json_from_a_server_has_tokens_and_log_probabilities(run, served):
    url, stored = served
    how = ["--prompt", "ABC", "--max-tokens", 3, "--logprobs", 2, "--json"]
    here = run("generate", stored.path, "--engine", "onnxruntime", "--threads", 1, *how).json

    there = run("generate", f"{url}/tiny", *how).json

    assert there["tokens"] == here["tokens"]
    assert there["logprobs"] == pytest.approx(here["logprobs"])
    assert [len(row) for row in there["top"]] == [2] * 3
    assert there["finish"] == "length"


def test_the_end_token_of_a_text_from_a_server_is_that_of_the_caller(run, served):
    url, stored = served
    free = tokens(run, stored)

    done = run(
        "generate", f"{url}/tiny", "--prompt", "ABC", "--max-tokens", 8, "--end-token", free[4],
        "--json",
    )  # fmt: skip

    assert done.json["tokens"] == free[: free.index(free[4]) + 1]
    assert done.json["finish"] == "stop"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--tokens", "1,2"], "A server takes a text"),
        (["--prompt", "A", "--end-token", "</s>"], "A server takes a text"),
        (["--prompt", "A", "--top-p", "2"], "top_p must be between"),
    ],
)
def test_misuse_of_a_server_is_refused_in_words(run, served, words, error):
    url, _ = served
    done = run("generate", f"{url}/tiny", *words)

    assert done.code == 2
    assert error in done.err


def test_a_server_that_is_not_there_is_said(run):
    done = run("generate", "http://127.0.0.1:1/tiny", "--prompt", "A")

    assert done.code == 2
    assert "must answer at" in done.err


def test_a_refusal_of_the_server_is_quoted(run, served):
    done = run("generate", f"{served[0]}/tinny", "--prompt", "A", "--json")

    assert "Did you mean 'tiny'" in json.loads(done.err)["error"]
