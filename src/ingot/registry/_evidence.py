"""Evidence as a file named by its digest."""

import json
from pathlib import Path

from ingot.core.digest import canonical_json, digest_json, hex_of, short
from ingot.core.errors import EvidenceError
from ingot.core.files import write_atomic
from ingot.evaluate.evidence import Evidence, evidence_from_statement


def keep_evidence(evidence: Evidence, folder: Path) -> Path:
    """Write the statement to `folder/<hex digest>.json`.

    Raises:
        EvidenceError: The statement does not read back as it was.
    """
    path = folder / f"{hex_of(evidence.digest)}.json"
    write_atomic(path, canonical_json(evidence.to_statement()))
    read_kept(evidence.digest, folder)
    return path


def read_kept(digest: str, folder: Path) -> Evidence:
    """Return the evidence with this digest.

    Raises:
        EvidenceError: It is missing, or its content is not what the digest says.
    """
    path = folder / f"{hex_of(digest)}.json"
    try:
        statement = json.loads(path.read_bytes())
        found = digest_json(statement)
    except FileNotFoundError as error:
        raise EvidenceError(
            f"Evidence {short(digest)} must be kept beside the registry; {path.name} is not "
            "there. Restore the file from a copy."
        ) from error
    except ValueError as error:
        raise EvidenceError(_changed(digest, "a file that is not JSON")) from error
    if found != digest:
        raise EvidenceError(_changed(digest, short(found)))
    return evidence_from_statement(statement)


def _changed(digest: str, got: str) -> str:
    return (
        f"Evidence must have the digest it was released with, {short(digest)}; got {got}. "
        "The file was changed: restore it from a copy, or compare and release again."
    )
