import math
import re
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ingot.core.errors import ServeError
from ingot.observe.log import ObservationLog
from ingot.observe.observation import Observation
from ingot.observe.reading import count_lost
from ingot.observe.rules import LogRules

PLAIN = Observation("r", 1.0, "digits", "sha256:v", unit_key="ada", client="robot", score=0.5)


def kept(tmp_path: Path, rules: LogRules, rows):
    with ObservationLog(tmp_path / "o.sqlite", rules=rules) as log:
        for row in rows:
            log.record(row)
        return list(log.read())


def units(n, **more):
    return [replace(PLAIN, request_id=f"{u}-{i}", unit_key=f"u{u}", **more)
            for u in range(n) for i in range(3)]  # fmt: skip


def test_a_unit_is_kept_whole_or_not_at_all(tmp_path):
    found = kept(tmp_path, LogRules(sample=0.3), units(200))

    counts = {row.unit_key: 0 for row in found}
    for row in found:
        counts[row.unit_key] += 1
    assert set(counts.values()) == {3}
    assert 0.2 < len(counts) / 200 < 0.4


def test_the_probability_of_being_kept_is_recorded(tmp_path):
    found = kept(tmp_path, LogRules(sample=0.3), units(20))

    assert {row.inclusion for row in found} == {0.3}


@pytest.mark.parametrize("always", [{"status": 500}, {"status": 499}, {"deferred": True}])
def test_errors_and_deferred_requests_are_always_kept(tmp_path, always):
    found = kept(tmp_path, LogRules(sample=1e-9), units(20, **always))

    assert len(found) == 60
    assert {row.inclusion for row in found} == {1.0}


def test_a_request_without_a_unit_is_a_unit_of_its_own(tmp_path):
    rows = [replace(PLAIN, request_id=str(i), unit_key="") for i in range(1000)]

    assert 400 < len(kept(tmp_path, LogRules(sample=0.5), rows)) < 600


def test_another_salt_draws_other_units(tmp_path):
    draws = [
        {r.unit_key for r in kept(tmp_path / salt, LogRules(sample=0.5, salt=salt), units(100))}
        for salt in ("a", "b")
    ]

    assert draws[0] != draws[1]


def test_what_is_left_out_on_purpose_is_not_counted_as_lost(tmp_path):
    with ObservationLog(tmp_path / "o.sqlite", rules=LogRules(sample=1e-9)) as log:
        log.record(PLAIN)
        log.flush()

        assert log.dropped == 0
        assert count_lost(log.path) == 0


def test_a_dropped_field_holds_its_default_and_a_kept_one_its_value(tmp_path):
    rules = LogRules(redact={"client": "drop", "score": "drop", "unit_key": "keep"})

    assert kept(tmp_path, rules, [PLAIN]) == [replace(PLAIN, client="", score=None)]


def test_a_hashed_field_keeps_equality_and_hides_the_value(tmp_path):
    rows = [replace(PLAIN, unit_key=key) for key in ("ada", "ada", "bob", "")]

    a, again, b, empty = (
        r.unit_key for r in kept(tmp_path, LogRules(redact={"unit_key": "hash"}), rows)
    )

    assert a == again != b
    assert empty == ""
    assert re.fullmatch(r"keyed:[0-9a-f]{32}", a)
    assert b"ada" not in (tmp_path / "o.sqlite").read_bytes()


def test_hashes_of_two_fields_cannot_be_joined(tmp_path):
    row = replace(PLAIN, unit_key="same", client="same")
    rules = LogRules(redact={"unit_key": "hash", "client": "hash"})

    (found,) = kept(tmp_path, rules, [row])

    assert found.unit_key != found.client


def test_two_logs_with_one_key_file_hash_alike_and_with_others_differently(tmp_path):
    one = LogRules(redact={"unit_key": "hash"}, key_file=tmp_path / "key")
    other = replace(one, key_file=tmp_path / "other")

    hashes = [
        kept(tmp_path / str(i), rules, [PLAIN])[0].unit_key
        for i, rules in enumerate((one, one, other))
    ]

    assert hashes[0] == hashes[1] != hashes[2]


def test_the_key_file_is_made_at_first_use_for_its_owner_only(tmp_path):
    kept(tmp_path / "a", LogRules(redact={"client": "drop"}), [PLAIN])
    kept(tmp_path / "b", LogRules(redact={"client": "hash"}), [PLAIN])

    assert not (tmp_path / "a" / "log.key").exists()
    assert stat.S_IMODE((tmp_path / "b" / "log.key").stat().st_mode) == 0o600


def test_a_key_file_without_a_key_is_refused(tmp_path):
    (tmp_path / "log.key").write_text("hello")

    with pytest.raises(ServeError, match="must hold 64 hex digits"):
        ObservationLog(tmp_path / "o.sqlite", rules=LogRules(redact={"client": "hash"}))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"sample": 0.0}, "above 0 and at most 1"),
        ({"sample": 1.5}, "above 0 and at most 1"),
        ({"sample": float("nan")}, "above 0 and at most 1"),
        ({"redact": {"unitkey": "hash"}}, "Did you mean 'unit_key'"),
        ({"redact": {"unit_key": "hsh"}}, "Did you mean 'hash'"),
        ({"redact": {"propensity": "drop"}}, "propensity must be kept"),
        ({"redact": {"latency_ms": "hash"}}, "latency_ms must be kept"),
        ({"redact": {"score": "hash"}}, "must be a text to be hashed"),
        ({"max_age_s": 0.0}, "age of rows"),
        ({"max_bytes": 10}, "at least 1,048,576 bytes"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_when_built(rules, words):
    with pytest.raises(ServeError, match=words):
        LogRules(**rules)


NEEDED = {"time", "endpoint", "version", "arm", "propensity", "status", "latency_ms", "hour",
          "deferred", "step", "inclusion"}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Observation)])
def test_what_studies_need_cannot_be_dropped_and_everything_else_can(name):
    def build():
        return LogRules(redact={name: "drop"})

    if name in NEEDED:
        with pytest.raises(ServeError, match=f"{name} must be kept"):
            build()
    else:
        assert build().redact == {name: "drop"}


def test_rules_are_read_from_toml(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(
        'sample = 0.25\nsalt = "s"\nkey_file = "k"\nmax_age_days = 2\nmax_mb = 3\n'
        "refusals_per_s = inf\n"
        '[redact]\nunit_key = "hash"\nclient = "drop"\n'
    )

    assert LogRules.read(path) == LogRules(
        0.25,
        {"unit_key": "hash", "client": "drop"},
        "s",
        tmp_path / "k",
        172_800.0,
        3 * 1024**2,
        math.inf,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampel = 0.5", "Did you mean 'sample'"),
        ('sample = "0.5"', "must be int or float"),
        ("sample = true", "must be int or float"),
        ("[redact]\nunit_kee = 'drop'", "Did you mean 'unit_key'"),
        ("sample =", "must be a TOML file"),
    ],
)
def test_a_file_of_rules_with_a_mistake_is_refused(tmp_path, text, words):
    path = tmp_path / "rules.toml"
    path.write_text(text)

    with pytest.raises(ServeError, match=words):
        LogRules.read(path)


def test_equal_rules_have_equal_digests_whatever_their_keys(tmp_path):
    one = LogRules(redact={"client": "hash"})

    assert one.digest == replace(one, key_file=tmp_path / "k").digest
    assert one.digest != replace(one, sample=0.5).digest
