"""What must hold before anything is released."""

import math
import re

from ingot.core.digest import short
from ingot.core.errors import ClaimError, EvidenceError, RegistryError
from ingot.evaluate.claims import judge_again
from ingot.evaluate.evidence import Evidence, Verdict
from ingot.models.model import Model

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(what: str, name: str) -> None:
    """Refuse a name or stage that could not be written in a reference or a file name."""
    if not _NAME.fullmatch(name):
        raise RegistryError(
            f"A registry {what} must match {_NAME.pattern}; got {name!r}. "
            "Use lower-case letters, digits, dots, dashes and underscores, e.g. 'digits'."
        )


def check_evidence(model: Model, evidence: Evidence | None) -> None:
    """Refuse evidence that is missing, of another model, that did not pass, or that was edited."""
    if evidence is None:
        raise EvidenceError(
            "A release must come with evidence; got None. "
            "Run compare on the model you are releasing."
        )
    if evidence.model != model.digest:
        raise EvidenceError(
            f"Evidence is for model {short(evidence.model)} but the version holds "
            f"{short(model.digest)}. Run compare on the model you are releasing."
        )
    if not evidence.verdicts:
        raise EvidenceError(
            "Evidence for a release must decide at least one claim; got none. "
            'Run compare with a claim, e.g. "accuracy drop <= 0.01".'
        )
    failed = [verdict.claim for verdict in evidence.verdicts if not verdict.passed]
    if failed:
        raise EvidenceError(
            f"Every claim must have held for a release; these did not: {'; '.join(failed)}. "
            "Choose another candidate, or compare with the claims you can accept."
        )
    for stated, follows in zip(evidence.verdicts, _judge_again(evidence), strict=True):
        same = math.isclose(stated.bound, follows.bound, rel_tol=1e-9)  # another libm is no forger
        if stated.passed != follows.passed or not same:
            raise EvidenceError(
                f"Verdicts must follow from the comparisons of the evidence; {stated.claim!r} is "
                f"stated to hold at {stated.bound:.6g}, but {follows.bound:.6g} follows"
                f"{'' if follows.passed else ', which breaks the claim'}. The evidence was edited: "
                "run compare again."
            )


def _judge_again(evidence: Evidence) -> tuple[Verdict, ...]:
    try:
        return judge_again(evidence)
    except ClaimError as error:
        raise EvidenceError(
            f"Every claim of the evidence must be about something it measured; {error} "
            "The evidence was edited: run compare again."
        ) from error
