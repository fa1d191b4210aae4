"""Every error Ingot raises on purpose.

IngotError
├── ModelError          (ValueError)    a model cannot be read, or is not what it says
├── DataError           (ValueError)    data, splits or labels are not usable as given
├── RecipeError         (ValueError)    a method or recipe cannot be applied
├── EngineError         (RuntimeError)  no engine runs this model, or an engine failed
├── ClaimError          (ValueError)    a claim cannot be parsed or cannot be decided
├── EvidenceError       (ValueError)    evidence is missing, foreign, or broken
├── RegistryError       (LookupError)   a version, stage or name is not there or not allowed
├── LedgerError         (ValueError)    the record does not verify
├── ServeError          (RuntimeError)  an endpoint cannot start or answer
└── MissingExtraError   (ImportError)   an optional library is not installed

Every message says what must hold, what we got, and what to do.
"""


class IngotError(Exception):
    """Base of every error that Ingot raises on purpose."""


class ModelError(IngotError, ValueError):
    """A model cannot be read, or is not what it says."""


class DataError(IngotError, ValueError):
    """Data, splits or labels are not usable as given."""


class RecipeError(IngotError, ValueError):
    """A method or a recipe cannot be applied."""


class EngineError(IngotError, RuntimeError):
    """No engine runs this model, or an engine failed."""


class ClaimError(IngotError, ValueError):
    """A claim cannot be parsed or cannot be decided."""


class EvidenceError(IngotError, ValueError):
    """Evidence is missing, belongs to something else, or is broken."""


class RegistryError(IngotError, LookupError):
    """A version, stage or name is not there, or the move is not allowed."""


class LedgerError(IngotError, ValueError):
    """The record does not verify."""


class ServeError(IngotError, RuntimeError):
    """An endpoint cannot start or answer."""


class MissingExtraError(IngotError, ImportError):
    """An optional library is not installed."""
