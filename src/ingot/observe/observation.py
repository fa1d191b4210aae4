"""The noun Observation: what one request was, who answered it, and what came of it."""

from dataclasses import asdict, dataclass

from ingot.core.digest import Json, digest_json


@dataclass(frozen=True, slots=True)
class Observation:
    """One request as it was answered. The shared log record of every later study.

    Attributes:
        request_id: Unique id of the request, the caller's own if it sent one.
        time: UTC time of arrival, seconds since 1970.
        unit_key: Who is randomized in an experiment (user, robot, session); empty if unknown.
        endpoint: Name of the endpoint.
        version: Digest of the version that answered.
        arm: Traffic arm, `main` when there is no split.
        propensity: Probability with which the arm was drawn, in (0, 1].
        action: What was decided, for policies; empty otherwise.
        inputs_ref: Digest of, or reference to, the request body; never the body itself.
        output_ref: Digest of, or reference to, the answer.
        status: HTTP status code.
        latency_ms: From arrival to answer.
        client: Stratum: caller's kind.
        region: Stratum: where.
        hour: Stratum: UTC hour of the day, 0 to 23.
        stratum_class: Stratum: class of input, if known.
        score: Confidence or value of the answer, if any.
        uncertainty: Uncertainty of the answer, if any.
        deferred: Whether it was handed to a person.
        human_label: What the person said.
        outcome: What came of it, if known.
        episode_id: Id of the sequence this request belongs to.
        step: Position in that sequence.
        inclusion: Probability with which the rules of the log kept it, in (0, 1]; see
            `ingot.observe.estimate`.
    """

    request_id: str
    time: float
    endpoint: str
    version: str
    unit_key: str = ""
    arm: str = "main"
    propensity: float = 1.0
    action: str = ""
    inputs_ref: str = ""
    output_ref: str = ""
    status: int = 200
    latency_ms: float = 0.0
    client: str = ""
    region: str = ""
    hour: int = 0
    stratum_class: str = ""
    score: float | None = None
    uncertainty: float | None = None
    deferred: bool = False
    human_label: str | None = None
    outcome: float | None = None
    episode_id: str = ""
    step: int = 0
    inclusion: float = 1.0

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Equal observations have equal digests."""
        return digest_json(self.to_json())
