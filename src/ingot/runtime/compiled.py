"""Compiled forms: what an engine makes of a model before it can answer, kept for the next process.

A form is a cache. It stands in the user's own folder, not in the artefact: what is in an artefact
is covered by its digest, and a graph in an engine's private format is not what was proved. It is
used only where the model, the configuration, the engine's version and the processor are those it
was made for, its files are whole, and it still gives the answers that the model itself gave.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ingot.core.digest import Json, canonical_json, digest_json, hex_of
from ingot.core.errors import EngineError
from ingot.core.files import digest_file, home, new_folder
from ingot.data.data import Array
from ingot.models.feeds import fixed_rows
from ingot.models.model import Model
from ingot.runtime.cpu import thread_count
from ingot.runtime.engine import Availability, Engine, EngineConfig, Session
from ingot.runtime.feeds import feeds_at
from ingot.runtime.machine import processor
from ingot.runtime.openvino_shapes import known_shapes

FACTS_FILE, PROBES_FILE = "form.json", "probes.npz"
_SEQUENCE = 16  # of a probe where nothing names a length
log = logging.getLogger(__name__)


@runtime_checkable
class CompilesAhead(Protocol):
    """An engine that can keep what it compiled. Optional: others compile on every opening."""

    def compile_ahead(self, model: Model, config: EngineConfig, folder: Path) -> None:
        """Write what was compiled into a folder that is empty."""
        ...

    def open_compiled(self, model: Model, config: EngineConfig, folder: Path) -> Session:
        """Open from what was written.

        Raises:
            EngineError: It is not of this engine and version.
        """
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """A compiled form on disk.

    Attributes:
        folder: Where it is; may be deleted at any time.
        engine: Whose it is.
        size_bytes: All of its files.
    """

    folder: Path
    engine: str
    size_bytes: int


def keep_form(
    engine: Engine, model: Model, config: EngineConfig, status: Availability
) -> Form | None:
    """Compile for this machine, check the answers, and keep the form for later processes.

    Returns:
        The form, or None where the engine has none to keep.

    Raises:
        EngineError: The engine cannot run the model, or what it kept answers otherwise than what
            it compiled; nothing is kept then.
    """
    if not isinstance(engine, CompilesAhead):
        return None
    final = _folder(model, config, status)
    shutil.rmtree(final, ignore_errors=True)
    with new_folder(final) as folder:
        engine.compile_ahead(model, config, folder)
        files = sorted(path.name for path in folder.iterdir())
        probes = _answers(engine.open(model, config), _inputs(model, config))
        kept = engine.open_compiled(model, config, folder)
        holds = _still_holds(kept, probes)
        kept.close()
        if not holds:
            raise EngineError(
                f"What {engine.name} keeps of a model must answer as the model does; it does not. "
                "Nothing was kept: the model is compiled when it is opened."
            )
        np.savez(folder / PROBES_FILE, allow_pickle=False, **probes)
        facts: Json = {
            "engine": config.engine,
            "files": {name: digest_file(folder / name) for name in (*files, PROBES_FILE)},
        }
        (folder / FACTS_FILE).write_bytes(canonical_json(facts))
        folder.chmod(0o700)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return Form(final, config.engine, size)


def open_form(
    engine: Engine, model: Model, config: EngineConfig, status: Availability
) -> Session | None:
    """Open the form of a model, if there is one that fits and still holds.

    Returns:
        The session, or None: then the model itself is to be opened. Why a form that is there was
        passed over is logged.
    """
    folder = _folder(model, config, status)
    if not isinstance(engine, CompilesAhead) or not folder.is_dir():
        return None
    try:
        _check_files(folder)
        with np.load(folder / PROBES_FILE, allow_pickle=False) as archive:
            probes = {name: archive[name] for name in archive.files}
        session = engine.open_compiled(model, config, folder)
        holds = False
        try:
            holds = _still_holds(session, probes)
        finally:
            if not holds:
                session.close()
        if holds:
            return session
        why = "it answers otherwise than the model did"
    except (EngineError, OSError, ValueError, KeyError, TypeError) as error:
        why = str(error)
    log.warning("a compiled form of %s is passed over, the model is compiled: %s", model.name, why)
    return None


def kept_file(model: Model, config: EngineConfig, status: Availability, name: str) -> Path | None:
    """Return a file of the compiled form of a model, or None where there is no form that is whole.

    Args:
        model: What was compiled.
        config: How it was compiled.
        status: Of the engine; another version has another form.
        name: Of the file.
    """
    folder = _folder(model, config, status)
    try:
        _check_files(folder)
    except (EngineError, OSError, ValueError, KeyError, TypeError) as error:
        if folder.is_dir():
            log.warning("a compiled form of %s is passed over: %s", model.name, error)
        return None
    return folder / name


def drop_forms(model: Model) -> None:
    """Delete every compiled form of a model."""
    shutil.rmtree(_forms(model), ignore_errors=True)


def _forms(model: Model) -> Path:
    return home() / "compiled" / hex_of(model.digest)


def _folder(model: Model, config: EngineConfig, status: Availability) -> Path:
    facts: dict[str, Json] = {
        "config": config.to_json(),
        "threads": thread_count(config.threads),
        "version": status.version,
        "processor": processor(),
    }
    return _forms(model) / hex_of(digest_json(facts))


def _inputs(model: Model, config: EngineConfig) -> list[dict[str, Array]]:
    """Return one request per shape that is known ahead."""
    rows = fixed_rows(model.signature) or 1
    sizes = list(known_shapes(model.signature, config)) or [(rows,)]
    return [feeds_at(model, size[0], size[1] if len(size) > 1 else _SEQUENCE) for size in sizes]


def _answers(session: Session, inputs: list[dict[str, Array]]) -> dict[str, Array]:
    """Return requests and answers in one flat mapping: `0/in/NAME`, `0/out/NAME`, ..."""
    found: dict[str, Array] = {}
    for index, feeds in enumerate(inputs):
        found |= {f"{index}/in/{name}": array for name, array in feeds.items()}
        found |= {f"{index}/out/{name}": value.copy() for name, value in session.run(feeds).items()}
    session.close()
    return found


def _still_holds(session: Session, probes: Mapping[str, Array]) -> bool:
    """Say whether a session gives the very answers that were kept, bit for bit."""
    for index in sorted({name.split("/", 1)[0] for name in probes}):
        wanted = {n.split("/", 2)[2]: a for n, a in probes.items() if n.startswith(f"{index}/out/")}
        feeds = {n.split("/", 2)[2]: a for n, a in probes.items() if n.startswith(f"{index}/in/")}
        found = session.run(feeds)
        if set(found) != set(wanted):
            return False
        if any(not np.array_equal(found[n], wanted[n], equal_nan=True) for n in wanted):
            return False
    return True


def _check_files(folder: Path) -> None:
    facts = json.loads((folder / FACTS_FILE).read_bytes())
    for name, digest in facts["files"].items():
        if digest_file(folder / name) != digest:
            raise EngineError(f"Its file {name} must be as it was written; it was changed.")
