import shlex
from dataclasses import replace

import pytest

from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.models.model import Lineage, TensorSpec
from ingot.models.store import store_model
from ingot.registry.registry import Registry
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import machine_digest
from ingot.serve.console.facts import curl_line, limits_of, read_facts
from ingot.serve.endpoint import Batching, Endpoint
from ingot.testing.tiny import tiny_cnn


@pytest.fixture
def released(tmp_path):
    """Return an endpoint of a version that was released with one claim kept."""
    model = store_model(tiny_cnn(), lineage=Lineage("onnx"), root=tmp_path / "home" / "store")
    row = Comparison("accuracy", "fraction", "higher", *(Interval(0.9, 0.8, 0.95),) * 4)
    verdict = judge(parse_claim("accuracy >= 0.7"), (row,))
    config, other = EngineConfig(), "sha256:" + "b" * 64
    facts = {"cores": 2}
    evidence = Evidence(
        model.digest, other, other, machine_digest(facts), facts, config, config, (row,), (verdict,)
    )
    with Registry.open() as registry:
        return Endpoint(registry.release("tiny", model, evidence), model)


def test_claims_are_those_of_the_evidence(released):
    (claim,) = read_facts(released, ()).claims

    assert (claim.claim, claim.passed) == ("accuracy >= 0.7", True)
    assert claim.reason


def test_evidence_that_was_changed_is_not_shown(released, tmp_path):
    for path in (tmp_path / "home" / "evidence").iterdir():
        path.write_text("{}")
    found = read_facts(released, ())

    assert found.claims == ()
    assert "does not hold this evidence" in found.claims_note


def test_without_a_registry_there_are_no_claims_and_none_is_made(endpoint, tmp_path):
    found = read_facts(endpoint, ())

    assert found.claims_note == "There is no registry on this machine."
    assert not (tmp_path / "home").exists()


def test_limits_say_what_they_are(endpoint):
    limits = dict(limits_of(replace(endpoint, batching=Batching(8, 2.5), timeout_s=7.0)))

    assert limits["Largest body"] == "4.0 KiB"
    assert limits["Time for an answer"] == "7 s"
    assert limits["Batching"] == "up to 8 rows, waits 2.5 ms"


def test_a_line_to_copy_is_one_word_per_argument_whatever_is_in_it(endpoint):
    spec = TensorSpec("it's $(x)", "float32", ("batch",))
    signature = replace(endpoint.model.signature, inputs=(spec,))
    hostile = replace(endpoint, model=replace(endpoint.model, signature=signature))
    words = shlex.split(curl_line(hostile, "http://h/'; rm x", is_known=True))

    assert words[:2] == ["curl", "http://h/'; rm x"]
    assert words[2:4] == ["-H", "Authorization: Bearer $INGOT_TOKEN"]
    assert words[5].startswith('{"inputs": [{"name": "it\'s $(x)"')


def test_a_request_that_is_too_long_for_a_line_is_a_file(endpoint):
    spec = TensorSpec("image", "float32", ("batch", 3, 224, 224))
    signature = replace(endpoint.model.signature, inputs=(spec,))
    large = replace(endpoint, model=replace(endpoint.model, signature=signature))

    assert curl_line(large, "http://h/x", is_known=False) == "curl 'http://h/x' -d @request.json"
