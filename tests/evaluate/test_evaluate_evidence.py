import json
from dataclasses import replace

import pytest

from ingot.core.errors import EvidenceError
from ingot.evaluate.evidence import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    evidence_from_statement,
    read_evidence,
    write_evidence,
)


def statement(evidence):
    return json.loads(json.dumps(evidence.to_statement()))


def test_evidence_comes_back_from_its_file_as_it_was(evidence, tmp_path):
    path = write_evidence(evidence, tmp_path)

    assert read_evidence(path) == evidence
    assert read_evidence(path).digest == evidence.digest


def test_the_file_is_an_in_toto_statement_about_the_model(evidence, tmp_path):
    found = json.loads(write_evidence(evidence, tmp_path).read_text())

    assert (found["_type"], found["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    assert found["subject"] == [{"name": "model", "digest": {"sha256": "a" * 64}}]


def test_evidence_passes_only_if_every_claim_held(evidence):
    assert [v.passed for v in evidence.verdicts] == [True, False]
    assert not evidence.passed


def test_evidence_without_claims_has_not_passed(evidence):
    body = statement(evidence)
    body["predicate"]["verdicts"] = []

    assert not evidence_from_statement(body).passed


def change(*path, to):
    def apply(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = to

    return apply


def drop(*path):
    def apply(body):
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return apply


@pytest.mark.parametrize(
    "edit",
    [
        change("_type", to="https://example.com/other"),
        change("predicateType", to="https://example.com/other"),
        change("subject", 0, "digest", "sha256", to="b" * 64),
        change("predicate", "model", to="latest"),
        change("predicate", "machine_facts", "cpu", to="another"),
        change("predicate", "comparisons", to={}),
        change("predicate", "comparisons", 0, "direction", to="sideways"),
        change("predicate", "comparisons", 0, "drop", "value", to="much"),
        change("predicate", "comparisons", 0, "surprise", to=1),
        change("predicate", "verdicts", 0, "passed", to="yes"),
        change("predicate", "config", "threads", to="2"),
        change("predicate", "config", "buckets", to=[1.5]),
        change("predicate", "comparisons", 0, "drop", "low", to=9.0),
        change("predicate", "comparisons", 0, "drop", "level", to=7),
        change("predicate", "comparisons", 0, "drop", "n", to=-3),
        change("predicate", "comparisons", 0, "drop", "value", to=10**400),
        change("predicate", "machine_facts", "cpu", to="\ud800"),
        change("predicate", "seed", to=True),
        change("predicate", "created", to=5),
        change("predicate", "machine_facts", to=[]),
        change("predicate", "comparisons", 0, "metric", to=1),
        change("predicate", "verdicts", 0, "reason", to=1),
        change("predicate", "verdicts", 0, "bound", to="0"),
        change("predicate", "surprise", to=1),
        drop("predicate", "seed"),
        drop("predicate"),
        drop("predicate", "comparisons", 0, "ratio"),
    ],
)
def test_a_statement_with_a_part_missing_changed_or_unknown_is_refused(evidence, edit):
    body = statement(evidence)
    edit(body)

    with pytest.raises(EvidenceError):
        evidence_from_statement(body)


BAD = (b"", b"{", b"[]", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b"\xff\xfe", b"null")


@pytest.mark.parametrize("content", [*BAD, b"[" * 100_000])
def test_a_file_that_is_no_statement_is_refused(tmp_path, content):
    path = tmp_path / "evidence.json"
    path.write_bytes(content)

    with pytest.raises(EvidenceError):
        read_evidence(path)


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(EvidenceError, match="evidence.json"):
        read_evidence(tmp_path / "evidence.json")


def test_numbers_that_are_not_finite_are_not_written(evidence, tmp_path):
    broken = replace(evidence, machine_facts={"load": float("nan")})

    with pytest.raises(EvidenceError, match="finite numbers"):
        write_evidence(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_find_takes_the_first_row_or_that_of_a_setting(evidence):
    assert evidence.find("latency").setting == "batch 1"
    assert evidence.find("latency", "batch 2") is None
