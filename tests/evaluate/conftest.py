import pytest

from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.evidence import ChangedExample, Comparison, Evidence, Interval
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import machine_digest


@pytest.fixture
def evidence():
    rows = (
        Comparison("accuracy", "fraction", "higher", Interval(0.9, 0.88, 0.92),
                   Interval(0.89, 0.87, 0.91), Interval(0.01, 0.0, 0.02),
                   Interval(0.99, 0.97, 1.0)),
        Comparison("latency", "ms", "lower", Interval(2.0, 1.9, 2.1), Interval(1.0, 0.9, 1.1),
                   Interval(-1.0, -1.2, -0.8), Interval(0.5, 0.45, 0.55), "batch 1"),
        Comparison("size", "bytes", "lower", *(Interval(v, v, v) for v in (400, 100, -300, 0.25))),
    )  # fmt: skip
    facts = {"cpu": "a <b>", "physical_cores": 2}
    verdicts = tuple(
        judge(parse_claim(text), rows) for text in ("accuracy drop <= 0.03", "size <= 50 B")
    )
    return Evidence(
        *("sha256:" + letter * 64 for letter in "abc"),
        machine_digest(facts),
        facts,
        EngineConfig("openvino", "bf16", 2, (32, 128)),
        EngineConfig(threads=2),
        rows,
        verdicts,
        (ChangedExample(3, "<script>alert(1)</script>", "cat", "cat", "dog"),),
        7,
        "2026-01-02T03:04:05+00:00",
        EngineConfig(),
    )
