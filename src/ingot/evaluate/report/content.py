"""What a report says, before it is a page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingot.core.digest import Json, canonical_json, short
from ingot.core.errors import EvidenceError
from ingot.core.files import write_atomic
from ingot.evaluate.evidence import Evidence, Interval, evidence_from_statement


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One candidate: a model made by a recipe, run by an engine.

    Attributes:
        label: What a person calls it, e.g. `int8 static, histogram`.
        config: Engine, precision and threads, e.g. `openvino bf16 x2`.
        kind: `float` for the untouched model, `candidate` for the rest.
        size_bytes: Whole file on disk; None if it was never made.
        latency: p50 in ms at the first shape; None if never measured.
        quality: The task's main metric; None if never measured.
        passed: Whether every claim held; None if not judged.
        is_chosen: The one that was kept.
        on_frontier: No other candidate is better in size, latency and quality at once.
        reason: Why it failed, was dropped, or was kept: one sentence.
    """

    label: str
    config: str
    kind: str
    size_bytes: int | None = None
    latency: Interval | None = None
    quality: Interval | None = None
    passed: bool | None = None
    is_chosen: bool = False
    on_frontier: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """How much the output suffers when one layer alone is compressed.

    Attributes:
        layer: Node name.
        operator: `Conv`, `MatMul`, ...
        sqnr_db: Signal-to-quantization-noise ratio of the output in decibels; higher is safer.
        parameters: Weights in the layer.
    """

    layer: str
    operator: str
    sqnr_db: float
    parameters: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page shows.

    Attributes:
        title: Headline, e.g. `MiniLM: 3.9x smaller, 2.1x faster, proven`.
        summary: The outcome in one to three sentences.
        metric: Name of the quality metric on the plots' axis.
        goal: What was optimized for.
        shape: Shape at which latency was measured, e.g. `batch 1 x 128`.
        rows: Every candidate tried, the float baseline among them.
        evidence: Evidence of the chosen candidate (or of a single comparison); None if none passed.
        sensitivity: Layers, most sensitive first; may be empty.
        facts: Names and digests worth printing: model, baseline, data, recipe (as text), claims.
        notes: Sentences that explain choices and failures.
        command: The command that makes this result again.
    """

    title: str
    summary: str
    metric: str
    goal: str
    shape: str
    rows: tuple[ReportRow, ...]
    evidence: Evidence | None
    sensitivity: tuple[SensitivityRow, ...] = ()
    facts: Mapping[str, Json] | None = None
    notes: tuple[str, ...] = ()
    command: str = ""


def report_of(evidence: Evidence, *, title: str, command: str = "") -> Report:
    """Return the report of a single comparison: baseline and candidate, no search."""
    latency = evidence.find("latency")
    quality = next((row for row in evidence.comparisons if row.unit == "fraction"), None)
    size = evidence.find("size")
    rows = tuple(
        ReportRow(
            label,
            config.label,
            kind,
            size_bytes=int(getattr(size, side).value) if size else None,
            latency=getattr(latency, side) if latency else None,
            quality=getattr(quality, side) if quality else None,
            passed=passed,
            is_chosen=kind == "candidate",
        )
        for label, config, kind, side, passed in (
            ("baseline", evidence.baseline_config, "float", "baseline", None),
            ("candidate", evidence.config, "candidate", "candidate", _passed(evidence)),
        )
    )
    return Report(
        title=title,
        summary=_verdict_sentence(evidence),
        metric=quality.metric if quality else "quality",
        goal="comparison",
        shape=latency.setting if latency else "",
        rows=rows,
        evidence=evidence,
        facts={"model": short(evidence.model), "baseline": short(evidence.baseline)},
        command=command,
    )


def save_report(report: Report, path: Path) -> Path:
    """Write `report.json`, from which the page can be made again."""
    body = asdict(report) | {
        "evidence": report.evidence.to_statement() if report.evidence else None,
        "facts": dict(report.facts or {}),
    }
    return write_atomic(path, canonical_json(body))


def read_report(path: Path) -> Report:
    """Read `report.json`.

    Raises:
        EvidenceError: The file is not a report.
    """
    try:
        body = json.loads(path.read_bytes())
        statement = body.pop("evidence")
        rows = tuple(_row(row) for row in body.pop("rows"))
        layers = tuple(SensitivityRow(**row) for row in body.pop("sensitivity"))
        body["notes"] = tuple(body["notes"])
        evidence = evidence_from_statement(statement) if statement else None
        return Report(**body, rows=rows, sensitivity=layers, evidence=evidence)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvidenceError(
            f"A report must be a report.json that `ingot optimize` wrote; got {path.name!r}: "
            f"{error}. Run it again to write a new one."
        ) from error


def _row(row: dict[str, Any]) -> ReportRow:  # parsed JSON
    for key in ("latency", "quality"):
        row[key] = Interval(**row[key]) if isinstance(row[key], dict) else None
    return ReportRow(**row)


def _passed(evidence: Evidence) -> bool | None:
    return evidence.passed if evidence.verdicts else None


def _verdict_sentence(evidence: Evidence) -> str:
    if not evidence.verdicts:
        return "No claims were made; these are the measured differences."
    failed = [verdict.claim for verdict in evidence.verdicts if not verdict.passed]
    if failed:
        return f"{len(failed)} of {len(evidence.verdicts)} claims do not hold: {'; '.join(failed)}."
    return f"All {len(evidence.verdicts)} claims hold on the bad end of their intervals."
