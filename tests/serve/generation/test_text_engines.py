"""Real decoders behind an endpoint: which engine writes, and what keeps it from starting."""

import logging
from dataclasses import replace

import httpx
import onnx
import pytest
from fake_decoder import FakeDecoding
from test_text_streams import in_threads
from text_server import events, save_tokenizer

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.core.errors import DataError, EngineError, ServeError
from ingot.models.ends import Ends
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.runtime.generation.drivers import open_decoding
from ingot.runtime.generation.generate import generate
from ingot.runtime.generation.sampling import Sampling
from ingot.runtime.generation.text import tokenizer_of
from ingot.runtime.native_engine import NativeEngine
from ingot.serve.endpoint import Batching, Endpoint, Generation
from ingot.serve.server import serve_in_thread
from ingot.testing.tiny import tiny_decoder

STATUS = NativeEngine().available()
needs_native = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")
HOW = {"temperature": 1.3, "seed": 7, "max_tokens": 10}
LETTERS = [chr(ord("A") + at) for at in range(50)]


@pytest.fixture
def decoder(tmp_path):
    """Give a decoder of letters with a tokenizer; the last letter ends a text."""
    save_tokenizer(tmp_path, LETTERS)
    files = {"tokenizer.json": tmp_path / "tokenizer.json", **Ends((49,)).as_files()}
    return store_model(
        tiny_decoder(layers=2), lineage=Lineage("hf"), name="tiny", root=tmp_path / "store",
        extra=files,
    )  # fmt: skip


def endpoint_of(model, config=None, **more):
    config = config or EngineConfig(threads=1)
    version = Version("tiny", 1, model.digest, model.digest, config, "2026-01-01T00:00:00Z", 0)
    return Endpoint(version, model, port=0, generation=Generation(**more))


def text_from(url, prompt="ABC", **more):
    sent = {"text_input": prompt, "parameters": HOW | more}
    answer = httpx.post(
        url + "/v2/models/tiny/generate", json=sent, trust_env=False, timeout=20
    ).json()  # fmt: skip
    return answer["text_output"]


def library_text(model, config, prompt="ABC"):
    decoding = open_decoding(model, config, threads=1)
    try:
        pieces = generate(decoding, prompt, Sampling(**HOW), tokenizer=tokenizer_of(model))
        return "".join(piece.text for piece in pieces)
    finally:
        decoding.close()


@needs_native
def test_the_native_engine_writes_the_same_text_alone_and_in_company(decoder, tmp_path):
    small = Recipe((QuantizeWeights(),)).apply(decoder, root=tmp_path / "store")
    config = EngineConfig("native", threads=1)
    with serve_in_thread(endpoint_of(small, config, cache_tokens=128)) as running:
        alone = text_from(running.url)
        company = in_threads(*(lambda at=at: text_from(running.url, "AB" + LETTERS[at])
                               for at in range(2, 8)))  # fmt: skip

    assert company[0] == alone == library_text(small, config)
    assert len(set(company)) > 1


def test_an_engine_without_a_cache_writes_and_the_reason_is_logged(decoder, caplog):
    with (
        caplog.at_level(logging.WARNING),
        serve_in_thread(endpoint_of(decoder)) as running,
    ):
        found = text_from(running.url)

    assert found == library_text(decoder, EngineConfig(threads=1))
    assert "keeps no keys and values" in caplog.text


def test_a_version_for_the_native_engine_runs_elsewhere_where_that_cannot(decoder, caplog):
    config = EngineConfig("native", threads=1)  # float weights are not for it
    with caplog.at_level(logging.WARNING), serve_in_thread(endpoint_of(decoder, config)) as running:
        found = text_from(running.url)

    assert found == library_text(decoder, EngineConfig(threads=1))
    assert "the native engine cannot run the model" in caplog.text


@needs_native
def test_a_version_proved_in_bf16_writes_in_bf16(decoder, caplog):
    config = EngineConfig("native", "bf16", threads=1)
    with caplog.at_level(logging.WARNING), serve_in_thread(endpoint_of(decoder, config)) as running:
        found = text_from(running.url)

    assert found == library_text(decoder, config)
    assert "every token" not in caplog.text


def test_the_end_token_of_the_model_ends_a_text_unless_it_is_ignored_or_another(decoder):
    free = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}
    with serve_in_thread(endpoint_of(decoder)) as running:
        text = text_from(running.url, **free)
        by_id = text_from(running.url, **free, stop_token_ids=[LETTERS.index(text[3])])
    with serve_in_thread(endpoint_of(decoder, end_tokens=(text[3],))) as running:
        by_server = text_from(running.url, temperature=0)

    assert len(text) == 10
    assert by_id == by_server == text[: text.index(text[3])]


def test_readiness_comes_after_a_real_token(decoder):
    class Mute(FakeDecoding):
        def step(self, work):
            raise EngineError("no step is possible")

    with pytest.raises(ServeError, match="must write a token before"):
        serve_in_thread(endpoint_of(decoder), Mute())


def test_the_decoder_that_was_given_stays_the_callers(decoder):
    given = FakeDecoding()
    with serve_in_thread(endpoint_of(decoder), given):
        assert len(given.steps) == 1
    assert not given.is_closed
    assert given.rows == {}


def test_a_model_without_a_tokenizer_is_refused(decoder, tmp_path):
    bare = store_model(tiny_decoder(), lineage=Lineage("onnx"), root=tmp_path / "store")

    with pytest.raises(ServeError, match="must carry a tokenizer"):
        serve_in_thread(endpoint_of(bare))


def test_a_model_that_is_no_decoder_is_refused(cnn, tmp_path):
    save_tokenizer(tmp_path)
    model = store_model(
        onnx.load(cnn.onnx_path), lineage=Lineage("onnx"), root=tmp_path / "store",
        extra={"tokenizer.json": tmp_path / "tokenizer.json"},
    )  # fmt: skip

    with pytest.raises(EngineError, match="decoder"):
        serve_in_thread(endpoint_of(model))


def test_an_end_token_that_does_not_exist_is_refused(decoder):
    with pytest.raises(DataError, match="No token is called"):
        serve_in_thread(endpoint_of(decoder, end_tokens=("<eos>",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 2}, "2 workers"),
        ({"batching": Batching()}, "Batching"),
        ({"generation": Generation(most_waiting=0)}, "most_waiting of tiny:1 must be 1 or more"),
        ({"generation": Generation(cache_tokens=0)}, "cache_tokens"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(decoder, changes, words):
    with pytest.raises(ServeError, match=words):
        serve_in_thread(replace(endpoint_of(decoder), **changes))


def test_a_step_too_small_for_its_texts_is_refused(decoder):
    with pytest.raises(EngineError, match="step_tokens must be above most_running"):
        serve_in_thread(endpoint_of(decoder, step_tokens=4))


def test_a_batcher_that_stopped_makes_the_endpoint_unready(decoder):
    class Breaks(FakeDecoding):
        def step(self, work):
            if self.steps:
                raise RuntimeError("out of memory")
            return super().step(work)

    with serve_in_thread(endpoint_of(decoder), Breaks()) as running:
        get = {"trust_env": False, "timeout": 20}
        before = httpx.get(running.url + "/v2/health/ready", **get).status_code
        sent = {"text_input": "ABC"}
        broken = httpx.post(running.url + "/v2/models/tiny/generate", json=sent, **get)
        after = httpx.get(running.url + "/v2/health/ready", **get).status_code

    assert (before, broken.status_code, after) == (200, 500, 503)


def test_a_decoder_that_crashes_once_loses_no_text_and_stays_ready(decoder):
    class Stumbles(FakeDecoding):
        has_stumbled = False

        def step(self, work):
            if len(self.steps) == 5 and not self.has_stumbled:
                self.has_stumbled = True
                raise RuntimeError("out of memory")
            return super().step(work)

    with serve_in_thread(endpoint_of(decoder), Stumbles()) as running:
        url, get = running.url, {"trust_env": False, "timeout": 20}
        sent = {"text_input": "ABC", "max_tokens": 8, "seed": 3}
        stream = httpx.post(url + "/v2/models/tiny/generate_stream", json=sent, **get)
        after = httpx.get(url + "/v2/health/ready", **get).status_code
        again = httpx.post(url + "/v2/models/tiny/generate", json=sent, **get).json()
        page = httpx.get(url + "/metrics", **get).text

    text = "".join(event["text_output"] for event in events(stream))
    assert (text, after) == (again["text_output"], 200)
    assert 'ingot_text_crashes_total{model="tiny",version="1"} 1.0' in page


def test_inferences_and_texts_share_an_address(decoder, cnn):
    version = Version("cnn", 1, cnn.digest, cnn.digest, EngineConfig(threads=1), "t", 0)
    endpoint = replace(endpoint_of(decoder), beside=(Endpoint(version, cnn),))
    image = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    with serve_in_thread(endpoint) as running:
        inferred = httpx.post(
            running.url + "/v2/models/cnn/infer", json={"inputs": [image]}, trust_env=False
        ).status_code  # fmt: skip
        models = httpx.get(running.url + "/v1/models", trust_env=False).json()["data"]

    assert inferred == 200
    assert [row["id"] for row in models] == ["tiny", "tiny:1"]
