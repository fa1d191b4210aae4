"""The noun Evidence: what changed between two models, on which data and machine, with intervals."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from ingot.core.digest import Json, canonical_json, digest_json
from ingot.core.errors import EvidenceError
from ingot.core.files import write_atomic
from ingot.runtime.engine import EngineConfig

PREDICATE_TYPE = "https://ingot.dev/evidence/v1"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
EVIDENCE_FILE = "evidence.json"

T = TypeVar("T")

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: Point estimate.
        low: Lower end.
        high: Upper end.
        level: Two-sided confidence, e.g. 0.95.
        method: How it was made, e.g. `exact-unconditional`, `paired-bootstrap`, `deterministic`.
        n: Number of independent observations.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    method: str = "deterministic"
    n: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity measured on the baseline and on the candidate.

    Attributes:
        metric: `accuracy`, `spearman`, `latency`, `size`, `memory`, `throughput`, `cold_start`, ...
        unit: `fraction`, `ms`, `bytes`, `items/s`, `s`.
        direction: Which way is better.
        baseline: Value for the baseline.
        candidate: Value for the candidate.
        drop: How much worse the candidate is, in the metric's unit (negative: better); paired.
        ratio: candidate / baseline; paired where pairing makes sense.
        setting: Shape and conditions, e.g. `batch 1 x 128`; empty for quality.
    """

    metric: str
    unit: str
    direction: Direction
    baseline: Interval
    candidate: Interval
    drop: Interval
    ratio: Interval
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim and whether it held.

    Attributes:
        claim: The claim as written.
        passed: True only if the bad end of the interval keeps the claim.
        bound: That bad end.
        reason: One sentence for people.
    """

    claim: str
    passed: bool
    bound: float
    reason: str


@dataclass(frozen=True, slots=True)
class ChangedExample:
    """An example on which the two models differ."""

    index: int
    label: str
    baseline: str
    candidate: str
    target: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured, bound by digest to the model, the baseline, the data and the machine.

    Attributes:
        model: Digest of the candidate.
        baseline: Digest of the baseline model.
        data: Digest of the data.
        machine: Digest of `machine_facts`.
        machine_facts: Hardware and library versions.
        config: How the candidate was run when it was measured; the endpoint runs it the same way.
        baseline_config: How the baseline was run.
        comparisons: Every quantity, with intervals.
        verdicts: One per claim.
        changed: Examples that changed, at most fifty.
        seed: Seed of resampling.
        created: UTC time, ISO 8601.
        reference_config: How the baseline was run when its quality was judged, where that is not
            `baseline_config`: a search judges quality against fp32 and speed against the best float
            path, which may be bf16.
    """

    model: str
    baseline: str
    data: str
    machine: str
    machine_facts: Mapping[str, Json]
    config: EngineConfig
    baseline_config: EngineConfig
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...] = ()
    changed: tuple[ChangedExample, ...] = ()
    seed: int = 0
    created: str = ""
    reference_config: EngineConfig | None = None

    @property
    def passed(self) -> bool:
        """Whether every claim held. Evidence without claims has not passed anything."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    @property
    def digest(self) -> str:
        """Digest of the whole statement."""
        return digest_json(self.to_statement())

    def find(self, metric: str, setting: str = "") -> Comparison | None:
        """Return the first comparison of this metric (and setting, if given)."""
        for row in self.comparisons:
            if row.metric == metric and (not setting or row.setting == setting):
                return row
        return None

    def to_statement(self) -> dict[str, Any]:
        """Return the in-toto Statement v1 that is written to `evidence.json`."""
        body = asdict(self)
        body |= {name: list(body[name]) for name in ("comparisons", "verdicts", "changed")}
        body["config"] = self.config.to_json()
        body["baseline_config"] = self.baseline_config.to_json()
        body["reference_config"] = (
            self.reference_config.to_json() if self.reference_config else None
        )
        body["machine_facts"] = dict(self.machine_facts)
        return {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": "model", "digest": {"sha256": self.model.removeprefix("sha256:")}}
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": body,
        }


def write_evidence(evidence: Evidence, folder: Path) -> Path:
    """Write `folder/evidence.json`, whole or not at all, and return its path.

    Raises:
        EvidenceError: A number is not finite.
    """
    try:
        data = canonical_json(evidence.to_statement())
    except ValueError as error:
        raise EvidenceError(
            "Evidence must hold finite numbers; got a NaN or an infinity. Measure again."
        ) from error
    return write_atomic(folder / EVIDENCE_FILE, data)


def read_evidence(path: Path) -> Evidence:
    """Read `evidence.json`, or the folder that holds it.

    Raises:
        EvidenceError: The file is missing, is not JSON, or is not a statement of evidence.
    """
    file = path / EVIDENCE_FILE if path.is_dir() else path
    try:
        value = json.loads(
            file.read_bytes(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_single,
        )
    except FileNotFoundError as error:
        raise EvidenceError(
            f"Evidence must be a file; {file.name!r} is not there. Run compare first."
        ) from error
    except (ValueError, RecursionError) as error:
        raise EvidenceError(
            f"Evidence must be JSON with finite numbers; got {error}. Run compare again."
        ) from error
    return evidence_from_statement(value)


def evidence_from_statement(value: Any) -> Evidence:  # parsed JSON of unknown shape
    """Return the Evidence that an in-toto statement holds.

    Raises:
        EvidenceError: A type, a field, a digest or a number is not what evidence has.
    """
    top = _fields(value, {"_type", "subject", "predicateType", "predicate"}, "The statement")
    for key, want in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if top[key] != want:
            raise _broken(f"{key} must be {want!r}; got {top[key]!r}")
    body = _fields(top["predicate"], {f.name for f in fields(Evidence)}, "The predicate")
    subject = [{"name": "model", "digest": {"sha256": str(body["model"]).removeprefix("sha256:")}}]
    if top["subject"] != subject:
        raise _broken(f"subject must be the model of the predicate; got {top['subject']!r}")
    _check_body(body)
    try:
        return Evidence(
            **body
            | {
                "config": _config(body["config"]),
                "baseline_config": _config(body["baseline_config"]),
                "reference_config": _config(body["reference_config"])
                if body["reference_config"] is not None
                else None,
                "comparisons": tuple(_comparison(row) for row in body["comparisons"]),
                "verdicts": tuple(_flat(Verdict, row) for row in body["verdicts"]),
                "changed": tuple(_flat(ChangedExample, row) for row in body["changed"]),
            }
        )
    except (TypeError, AttributeError) as error:
        raise _broken(f"its fields must have the types of Evidence; {error}") from error


def _check_body(body: Mapping[str, Any]) -> None:
    for key in ("model", "baseline", "data", "machine"):
        if not isinstance(body[key], str) or not _DIGEST.fullmatch(body[key]):
            raise _broken(f"{key} must be a digest 'sha256:<64 hex digits>'; got {body[key]!r}")
    if not isinstance(body["machine_facts"], dict):
        raise _broken(f"machine_facts must be an object; got {body['machine_facts']!r}")
    try:
        facts = digest_json(body["machine_facts"])
    except ValueError as error:
        raise _broken(f"machine_facts must be plain JSON; {error}") from error
    if facts != body["machine"]:
        raise _broken("machine must be the digest of machine_facts; it is another one")
    if isinstance(body["seed"], bool) or not isinstance(body["seed"], int):
        raise _broken(f"seed must be an integer; got {body['seed']!r}")
    if not isinstance(body["created"], str):
        raise _broken(f"created must be text; got {body['created']!r}")
    for key in ("comparisons", "verdicts", "changed"):
        if not isinstance(body[key], list):
            raise _broken(f"{key} must be a list; got {body[key]!r}")


def _config(value: Any) -> EngineConfig:  # parsed JSON
    if isinstance(value, dict):  # written down only where there are some
        value = {"batch_sizes": [], "streams": 1} | value
    row = _fields(value, {f.name for f in fields(EngineConfig)}, "A configuration")
    good = (
        isinstance(row["engine"], str)
        and row["precision"] in {"fp32", "bf16"}
        and isinstance(row["threads"], int)
        and isinstance(row["streams"], int)
        and isinstance(row["buckets"], list)
        and isinstance(row["batch_sizes"], list)
        and all(
            isinstance(b, int) and not isinstance(b, bool)
            for b in (*row["buckets"], *row["batch_sizes"])
        )
    )
    if not good or isinstance(row["threads"], bool):
        raise _broken(f"a configuration must hold engine, precision, threads, buckets; got {row!r}")
    return EngineConfig.from_json(row)


def _comparison(value: Any) -> Comparison:  # parsed JSON
    row = _fields(value, {f.name for f in fields(Comparison)}, "A comparison")
    parts = {name: _interval(row[name]) for name in _INTERVALS}
    for name in ("metric", "unit", "setting"):
        if not isinstance(row[name], str):
            raise _broken(f"Comparison.{name} must be text; got {row[name]!r}")
    if row["direction"] not in {"higher", "lower"}:
        raise _broken(f"direction must be 'higher' or 'lower'; got {row['direction']!r}")
    return Comparison(**row | parts)


def _interval(value: Any) -> Interval:  # parsed JSON
    found = _flat(Interval, value)
    try:
        ends = float(found.value), float(found.low), float(found.high)
    except OverflowError as error:
        raise _broken(f"an interval must hold numbers of 64 bits; {error}") from error
    if not (ends[1] <= ends[2] and 0 < found.level < 1 and found.n >= 1):
        raise _broken(
            "an interval must have low <= high, a level between 0 and 1 and n >= 1; got "
            f"low {found.low!r}, high {found.high!r}, level {found.level!r}, n {found.n!r}"
        )
    return found


def _flat(kind: type[T], value: Any) -> T:  # parsed JSON
    row = _fields(value, {f.name for f in fields(kind)}, kind.__name__)  # type: ignore[arg-type] # dataclasses only
    for name, number in row.items():
        wants = _NUMBERS.get(name)
        if name == "passed" and not isinstance(number, bool):
            raise _broken(f"{kind.__name__}.passed must be true or false; got {number!r}")
        if wants is None and name != "passed" and not isinstance(number, str):
            raise _broken(f"{kind.__name__}.{name} must be text; got {number!r}")
        if wants and (isinstance(number, bool) or not isinstance(number, wants)):
            raise _broken(f"{kind.__name__}.{name} must be a number; got {number!r}")
        if isinstance(number, float) and not math.isfinite(number):
            raise _broken(f"{kind.__name__}.{name} must be finite; got {number!r}")
    return kind(**row)


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INTERVALS = ("baseline", "candidate", "drop", "ratio")
_NUMBERS: dict[str, tuple[type, ...]] = {
    "value": (int, float),
    "low": (int, float),
    "high": (int, float),
    "level": (int, float),
    "bound": (int, float),
    "n": (int,),
    "index": (int,),
}


def _fields(value: Any, names: set[str], what: str) -> dict[str, Any]:  # parsed JSON
    got = set(value) if isinstance(value, dict) else set()
    if not isinstance(value, dict) or got != names:
        unknown, missing = sorted(got - names), sorted(names - got)
        raise _broken(
            f"{what} must have exactly its own fields; unknown {unknown}, missing {missing}"
        )
    return value


def _broken(problem: str) -> EvidenceError:
    return EvidenceError(f"Evidence does not read: {problem}. Run compare again.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text}, which no float holds")
    return number


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice: another parser would take the other value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} twice")
    return found
