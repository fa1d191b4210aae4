"""Every engine by name, and the one door to a session."""

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from ingot.core.errors import EngineError
from ingot.core.names import suggest
from ingot.models.model import Model
from ingot.runtime.buckets import BucketSession
from ingot.runtime.compiled import Form, keep_form, open_form
from ingot.runtime.engine import Availability, Engine, EngineConfig, Session
from ingot.runtime.native_engine import NativeEngine
from ingot.runtime.onnxruntime_engine import OnnxRuntimeEngine
from ingot.runtime.openvino_engine import OpenVinoEngine

if TYPE_CHECKING:
    from torch.nn import Module

ENGINE_GROUP = "ingot.engines"
log = logging.getLogger(__name__)
_BUILT_IN: tuple[Callable[[], Engine], ...] = (
    OnnxRuntimeEngine,
    OpenVinoEngine,
    NativeEngine,
)


def engines(factory: "Callable[[], Module] | None" = None) -> dict[str, Engine]:
    """Return every engine by name: built-in, torch if a factory is given, and plug-ins.

    A plug-in that cannot be loaded, or whose name is taken, is logged by name and left out.

    Args:
        factory: Builds the torch network of the model that will be run.
    """
    found = {engine.name: engine for engine in (make() for make in _BUILT_IN)}
    if factory is not None:
        from ingot.runtime.torch_engine import TorchEngine

        for compiled in (False, True):
            engine = TorchEngine(factory, compiled=compiled)
            found[engine.name] = engine
    for entry in entry_points(group=ENGINE_GROUP):
        plugin = _load(entry)
        if plugin is None or type(plugin) in _BUILT_IN:  # ours are announced as plug-ins too
            continue
        if found.setdefault(plugin.name, plugin) is not plugin:
            log.error("engine plug-in %s is left out: %r is taken", entry.name, plugin.name)
    return found


def get_engine(name: str, *, factory: "Callable[[], Module] | None" = None) -> Engine:
    """Return the engine called `name`.

    Raises:
        EngineError: There is none; the nearest is offered.
    """
    for make in _BUILT_IN:  # the entry points are read only for names that are not built in
        engine = make()
        if engine.name == name:
            return engine
    found = engines(factory)
    if name not in found:
        needs = " Torch engines need the model's factory." if name.startswith("torch") else ""
        raise EngineError(
            f"An engine must be installed under its name; got {name!r}.{needs} "
            + suggest(name, found)
        )
    return found[name]


def open_session(
    model: Model,
    config: EngineConfig | None = None,
    *,
    factory: "Callable[[], Module] | None" = None,
) -> Session:
    """Load a model into an engine, ready to answer; from its compiled form where there is one.

    Args:
        model: What to run.
        config: Engine, precision, threads and buckets. If not given: ONNX Runtime in fp32, or the
            first engine that can run the model.
        factory: Builds the torch network of `model`; needed by the torch engines only.

    Raises:
        EngineError: The engine is unknown, missing or cannot run the model; or none can.
    """
    if config is None:
        return _first_that_runs(model)
    engine, status = _ready(config, factory)
    session = open_form(engine, model, config, status) or engine.open(model, config)
    return BucketSession(session, config.buckets) if config.buckets else session


def compile_ahead(
    model: Model, config: EngineConfig, *, factory: "Callable[[], Module] | None" = None
) -> Form | None:
    """Compile for this machine and keep the form, so that later processes need not.

    Args:
        model: What to compile.
        config: How it will be opened; another configuration has another form.
        factory: Builds the torch network of `model`; needed by the torch engines only.

    Returns:
        The form, or None where the engine has none to keep.

    Raises:
        EngineError: The engine is missing or cannot run the model, or what it kept answers
            otherwise than what it compiled; nothing is kept then.
    """
    engine, status = _ready(config, factory)
    return keep_form(engine, model, config, status)


def _ready(
    config: EngineConfig, factory: "Callable[[], Module] | None"
) -> tuple[Engine, Availability]:
    """Return the engine that a configuration names, once it is known to work here."""
    engine = get_engine(config.engine, factory=factory)
    status = engine.available()
    if not status.ok:
        raise EngineError(f"Engine {config.engine!r} must be installed; it is not. {status.reason}")
    return engine, status


def _first_that_runs(model: Model) -> Session:
    reasons = []
    for name, engine in engines().items():
        status = engine.available()
        if not status.ok:
            reasons.append(f"{name}: {status.reason}")
            continue
        try:
            return engine.open(model, EngineConfig(name))
        except EngineError as error:
            reasons.append(f"{name}: {error}")
    raise EngineError("Some engine must run the model; none does. " + " ".join(reasons))


def _load(entry: object) -> Engine | None:
    try:
        found: Engine = entry.load()()  # type: ignore[attr-defined] # importlib.metadata.EntryPoint
    except Exception:  # a plug-in may fail in any way; the others must stay usable
        log.exception("engine plug-in %s cannot be loaded", getattr(entry, "name", entry))
        return None
    return found
