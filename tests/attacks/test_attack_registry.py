import dataclasses
import json
import sqlite3

import pytest

from ingot.core.errors import EvidenceError, LedgerError, ModelError
from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.evidence import (
    Comparison,
    Evidence,
    Interval,
    evidence_from_statement,
    read_evidence,
    write_evidence,
)
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.registry.registry import Registry
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import machine_digest
from ingot.testing.tiny import tiny_cnn


def prove(model, seed=0, claim="size ratio <= 0.5", ratio=0.3):
    one = Interval(ratio, ratio, ratio)
    row = Comparison("size", "bytes", "lower", one, one, one, one)
    digests = model.digest, "sha256:" + "b" * 64, "sha256:" + "d" * 64, machine_digest({})
    verdicts = (judge(parse_claim(claim), (row,)),)
    return Evidence(*digests, {}, EngineConfig(), EngineConfig(), (row,), verdicts, seed=seed)


@pytest.fixture
def registry(tmp_path):
    with Registry.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def model(tmp_path):
    return store_model(tiny_cnn(), lineage=Lineage("onnx"), root=tmp_path / "home" / "store")


@pytest.fixture
def version(registry, model):
    return registry.release("digits", model, prove(model))


def tamper(registry, statement, *values):
    for verb in ("update", "delete"):
        for table in ("versions", "moves"):
            registry.ledger.connection.execute(f"DROP TRIGGER {table}_no_{verb}")
    registry.ledger.connection.execute(statement, values)


def test_a_verdict_turned_round_in_the_file_is_not_released(registry, model, tmp_path):
    path = write_evidence(prove(model, ratio=0.7), tmp_path)
    statement = json.loads(path.read_bytes())
    statement["predicate"]["verdicts"][0] |= {"passed": True, "bound": 0.4}
    path.write_text(json.dumps(statement))

    with pytest.raises(
        EvidenceError, match="'size ratio <= 0.5' is stated to hold at 0.4, but 0.7"
    ):
        registry.release("digits", model, read_evidence(path))


def test_a_claim_about_something_that_was_never_measured_is_not_released(registry, model):
    statement = prove(model).to_statement()
    statement["predicate"]["verdicts"][0]["claim"] = "latency <= 5 ms"

    with pytest.raises(EvidenceError, match="no 'latency'"):
        registry.release("digits", model, evidence_from_statement(statement))


def test_an_interval_edited_with_its_verdict_is_another_evidence(registry, model):
    honest = prove(model, ratio=0.7)
    with pytest.raises(EvidenceError, match="must have held"):
        registry.release("digits", model, honest)
    forged = prove(model, ratio=0.3)

    version = registry.release("digits", model, forged)

    # numbers that were made up cannot be told from measured ones before evidence is signed
    assert version.evidence == forged.digest != honest.digest


def test_a_claim_loosened_with_its_verdict_shows_in_the_ledger(registry, model):
    honest = prove(model)
    statement = honest.to_statement()
    statement["predicate"]["verdicts"][0]["claim"] = "size ratio <= 0.9"
    loosened = evidence_from_statement(statement)

    version = registry.release("digits", model, loosened)

    # nothing is signed yet: what protects is that the ledger holds what was released, for good
    assert version.evidence == loosened.digest != honest.digest
    assert registry.ledger.entry(version.entry).body["evidence"] == loosened.digest


@pytest.mark.parametrize("sql", ["DELETE FROM versions", "UPDATE versions SET model = 'x'"])
def test_a_version_cannot_be_changed_while_the_triggers_stand(registry, version, sql):
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        registry.ledger.connection.execute(sql)


def test_a_model_swapped_in_the_row_is_not_resolved(registry, version):
    tamper(registry, "UPDATE versions SET model = ?", "sha256:" + "0" * 64)

    with pytest.raises(LedgerError, match="must say what ledger entry 0 says"):
        registry.resolve("digits")


def test_a_stage_moved_in_the_row_is_not_resolved(registry, model, version):
    registry.release("digits", model, prove(model, seed=1))
    registry.promote("digits", 1, "prod")
    tamper(registry, "UPDATE moves SET number = 2")

    with pytest.raises(LedgerError, match="must say what ledger entry 2 says"):
        registry.resolve("digits@prod")


def test_a_model_changed_in_the_store_is_not_released(registry, model):
    (model.path / "model.onnx").write_bytes(tiny_cnn(seed=1).SerializeToString())

    with pytest.raises(ModelError, match="files were changed"):
        registry.release("digits", model, prove(model))


def test_a_model_that_names_another_digest_is_not_released(registry, model, tmp_path):
    plain = model.path.rename(model.path.parent / "plain")
    claimed = dataclasses.replace(model, path=plain, digest="sha256:" + "0" * 64)

    with pytest.raises(ModelError, match="must be the one in its folder"):
        registry.release("digits", claimed, prove(claimed))


def test_a_model_changed_in_the_store_is_not_given_out(registry, model, version):
    (model.path / "model.onnx").write_bytes(tiny_cnn(seed=1).SerializeToString())

    with pytest.raises(ModelError, match="files were changed"):
        registry.model_of(version)


def evidence_file(tmp_path):
    return next((tmp_path / "home" / "evidence").iterdir())


def test_changed_evidence_is_not_given_out(registry, version, tmp_path):
    path = evidence_file(tmp_path)
    path.write_text(path.read_text().replace("0.5", "0.9"))

    with pytest.raises(EvidenceError, match="must have the digest it was released with"):
        registry.evidence_of(version)


def test_evidence_that_is_not_json_is_not_given_out(registry, version, tmp_path):
    evidence_file(tmp_path).write_text("{")

    with pytest.raises(EvidenceError, match="not JSON"):
        registry.evidence_of(version)


def test_removed_evidence_is_named(registry, version, tmp_path):
    evidence_file(tmp_path).unlink()

    with pytest.raises(EvidenceError, match="must be kept beside the registry"):
        registry.evidence_of(version)
