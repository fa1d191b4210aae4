"""Ingot turns a trained model into a small, fast, proven service.

Everything is imported when it is first used: `import ingot` loads neither numpy nor torch.
"""

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# ONNX Runtime reports its use to its maker, from a thread that starts with its first import;
# nothing leaves a machine unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Model": "ingot.models.model",
    "load_model": "ingot.models.load",
    "Data": "ingot.data.data",
    "Split": "ingot.data.data",
    "load_data": "ingot.data.load",
    "make_data": "ingot.data.splits",
    "split_data": "ingot.data.splits",
    "Method": "ingot.compress.method",
    "Run": "ingot.compress.run",
    "Network": "ingot.models.network",
    "Recipe": "ingot.compress.recipe",
    "EngineConfig": "ingot.runtime.engine",
    "open_session": "ingot.runtime.engines",
    "Evidence": "ingot.evaluate.evidence",
    "compare": "ingot.evaluate.compare",
    "Registry": "ingot.registry.registry",
    "Version": "ingot.registry.version",
    "Ledger": "ingot.ledger.ledger",
    "Endpoint": "ingot.serve.endpoint",
    "Observation": "ingot.observe.observation",
    "optimize": "ingot.search.optimize",
}

__all__ = [
    "Data",
    "Endpoint",
    "EngineConfig",
    "Evidence",
    "Ledger",
    "Method",
    "Model",
    "Network",
    "Observation",
    "Recipe",
    "Registry",
    "Run",
    "Split",
    "Version",
    "__version__",
    "compare",
    "load_data",
    "load_model",
    "make_data",
    "open_session",
    "optimize",
    "split_data",
]

if TYPE_CHECKING:
    from ingot.compress.method import Method
    from ingot.compress.recipe import Recipe
    from ingot.compress.run import Run
    from ingot.data.data import Data, Split
    from ingot.data.load import load_data
    from ingot.data.splits import make_data, split_data
    from ingot.evaluate.compare import compare
    from ingot.evaluate.evidence import Evidence
    from ingot.ledger.ledger import Ledger
    from ingot.models.load import load_model
    from ingot.models.model import Model
    from ingot.models.network import Network
    from ingot.observe.observation import Observation
    from ingot.registry.registry import Registry
    from ingot.registry.version import Version
    from ingot.runtime.engine import EngineConfig
    from ingot.runtime.engines import open_session
    from ingot.search.optimize import optimize
    from ingot.serve.endpoint import Endpoint


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ingot' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
