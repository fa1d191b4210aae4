"""The noun Version: a model that was released, with the evidence that allowed it."""

from dataclasses import asdict, dataclass

from ingot.core.digest import digest_json
from ingot.runtime.engine import EngineConfig


@dataclass(frozen=True, slots=True)
class Version:
    """A released model. Never changes once written.

    Attributes:
        name: Registry name, e.g. `digits`.
        number: 1, 2, 3, ... within the name.
        model: Digest of the model.
        evidence: Digest of the evidence it was released with.
        config: How it is run, as measured in the evidence.
        released: UTC time, ISO 8601.
        entry: Index of its entry in the ledger.
    """

    name: str
    number: int
    model: str
    evidence: str
    config: EngineConfig
    released: str
    entry: int

    @property
    def label(self) -> str:
        """`name:number`."""
        return f"{self.name}:{self.number}"

    @property
    def digest(self) -> str:
        """What an endpoint puts in its response header."""
        body = asdict(self) | {"config": self.config.to_json()}
        return digest_json(body)
