"""The noun Method: one change to a network, as a frozen dataclass with one function."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar

from ingot.compress.run import Run
from ingot.core.digest import Json, digest_json
from ingot.data.data import Data
from ingot.models.network import Form, Network


class Method(ABC):
    """One change to a network. Subclasses are frozen dataclasses whose fields are the settings.

    Attributes:
        form: `torch` if it edits modules, `onnx` if it edits graphs. A recipe converts torch to
            ONNX once, when the first ONNX method comes; there is no way back.
        needs: What it reads: names of splits, and `labels` if it reads targets. Asking the data for
            anything else raises.
        engines: Engines on which the result runs as meant; empty means all.
        streams: Whether it reads and writes large weights one at a time, through
            `OnnxNetwork.files`, so that a model larger than memory can be changed.
    """

    __slots__ = ()

    form: ClassVar[Form] = "torch"
    needs: ClassVar[frozenset[str]] = frozenset()
    engines: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[bool] = False

    @abstractmethod
    def apply(self, net: Network, data: Data, run: Run) -> Network:
        """Return the changed network. Edit `net` in place if you like: it is a copy.

        Raises:
            RecipeError: The network has nothing this method can change, or a setting does not fit.
        """

    @property
    def name(self) -> str:
        """Where the class lives, `package.module:Class`: its name in TOML and on the shell."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    @property
    def settings(self) -> Mapping[str, Json]:
        """Every setting by name, as JSON values (tuples become lists)."""
        values: dict[str, Json] = {}
        for spec in fields(self):  # type: ignore[arg-type] # every Method is a dataclass, checked by check_method
            value = getattr(self, spec.name)
            values[spec.name] = list(value) if isinstance(value, tuple) else value
        return values

    @property
    def digest(self) -> str:
        """Equal methods with equal settings have equal digests."""
        return digest_json({"name": self.name, "settings": self.settings})
