"""What a page says about a version: digests, limits, evidence, and how to call it."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.core.errors import IngotError
from ingot.core.units import show_bytes, show_number
from ingot.models.model import TensorSpec
from ingot.registry.version import Version
from ingot.serve.datatypes import wire_name
from ingot.serve.endpoint import Endpoint

log = logging.getLogger(__name__)

_MOST_VALUES = 32  # a line with more of them is nothing to copy


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes:
        name: Its name.
        datatype: As the protocol names it.
        shape: Sizes, and names of axes that vary.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One claim of the evidence.

    Attributes:
        claim: As written.
        passed: Whether it held.
        reason: Why.
    """

    claim: str
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit.

    Attributes:
        label: Of what.
        value: In words.
    """

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What is known of a served version.

    Attributes:
        label: `name:number`.
        digest: Of the version.
        model: Digest of the model.
        evidence: Digest of the evidence.
        engine: What runs it, and how.
        released: UTC time, ISO 8601.
        inputs: What it takes.
        outputs: What it gives.
        limits: What a request may not pass.
        claims: Of the evidence it was released with; empty where this machine does not keep it.
        claims_note: Why there are none.
    """

    label: str
    digest: str
    model: str
    evidence: str
    engine: str
    released: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    limits: tuple[Limit, ...]
    claims: tuple[ClaimRow, ...] = ()
    claims_note: str = ""


def read_facts(endpoint: Endpoint, limits: Sequence[tuple[str, str]]) -> VersionFacts:
    """Return what is known of a served version; reads its evidence.

    Args:
        endpoint: What is served.
        limits: What a request may not pass, and how it is run: labels and words.
    """
    version, signature = endpoint.version, endpoint.model.signature
    claims, note = _claims(version)
    return VersionFacts(
        version.label, version.digest, version.model, version.evidence, version.config.label,
        version.released, _tensors(signature.inputs), _tensors(signature.outputs),
        tuple(Limit(*pair) for pair in limits), claims, note,
    )  # fmt: skip


def limits_of(endpoint: Endpoint) -> list[tuple[str, str]]:
    """Return the limits of a real-time endpoint: labels and words."""
    found = [
        ("Largest body", show_bytes(endpoint.max_body_bytes)),
        ("Time for an answer", f"{endpoint.timeout_s:g} s"),
        ("Time for a body to arrive", f"{endpoint.read_timeout_s:g} s"),
        ("Requests that may wait", f"{endpoint.max_waiting:,}"),
        ("Worker processes", str(endpoint.workers) if endpoint.workers else "none: in the server"),
    ]
    if endpoint.batching is not None:
        rows, wait = endpoint.batching.max_rows, endpoint.batching.max_wait_ms
        found.append(("Batching", f"up to {show_number(rows, 'row')}, waits {wait:g} ms"))
    return found


def curl_line(endpoint: Endpoint, url: str, *, is_known: bool) -> str:
    """Return a line for a shell that calls an endpoint.

    Args:
        endpoint: What is called.
        url: Of its inferences or jobs.
        is_known: Whether callers must prove who they are.
    """
    specs = endpoint.model.signature.inputs
    shapes = [[size if isinstance(size, int) else 1 for size in spec.shape] for spec in specs]
    proof = ' -H "Authorization: Bearer $INGOT_TOKEN"' if is_known else ""
    if sum(math.prod(shape) for shape in shapes) > _MOST_VALUES:
        return f"curl {_quoted(url)}{proof} -d @request.json"
    inputs = [
        {
            "name": spec.name, "shape": shape, "datatype": wire_name(spec.dtype),
            "data": [_example(spec)] * math.prod(shape),
        }
        for spec, shape in zip(specs, shapes, strict=True)
    ]  # fmt: skip
    return f"curl {_quoted(url)}{proof} -d {_quoted(json.dumps({'inputs': inputs}))}"


def _quoted(text: str) -> str:
    """Return text as one word of a shell, whatever is in it."""
    return "'" + text.replace("'", "'\\''") + "'"


def _example(spec: TensorSpec) -> object:
    return "text" if wire_name(spec.dtype) == "BYTES" else 0


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, wire_name(spec.dtype), tuple(spec.shape)) for spec in specs)


def _claims(version: Version) -> tuple[tuple[ClaimRow, ...], str]:
    from ingot.core.files import home
    from ingot.ledger.ledger import FILE
    from ingot.registry.registry import Registry

    if not (home() / FILE).is_file():
        return (), "There is no registry on this machine."
    try:
        with Registry.open() as registry:
            verdicts = registry.evidence_of(version).verdicts
    except (IngotError, OSError) as error:
        log.info("evidence of %s is not shown: %s", version.label, error)
        return (), "The registry on this machine does not hold this evidence unchanged."
    rows = tuple(ClaimRow(one.claim, one.passed, one.reason) for one in verdicts)
    return rows, "" if rows else "The evidence has no claims."
