"""What a batch will do, settled and checked before anything runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

from ingot.core.digest import Json
from ingot.core.errors import DataError
from ingot.core.files import digest_file
from ingot.models.feeds import fixed_rows
from ingot.runtime.cpu import core_limit, thread_count
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import get_engine
from ingot.runtime.machine import processor
from ingot.serve.batch.answers import ROW, Table
from ingot.serve.batch.batch import SUFFIXES, Batch
from ingot.serve.batch.feeding import Roles, find_roles
from ingot.serve.batch.folder import Places
from ingot.serve.batch.rows import FILE, Scan, Source, columns_of, find_source, scan
from ingot.serve.batch.work import Work

_LIBRARIES = ("ingot", "numpy", "pillow", "pyarrow", "tokenizers")


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch that can start.

    Attributes:
        batch: What was asked for.
        places: Its files.
        work: What every process is told.
        processes: How many there are.
        scan: What the input was when the plan was made.
        stamps: Size and time of every file of it, then.
        facts: All that decides the bytes of the output.
    """

    batch: Batch
    places: Places
    work: Work
    processes: int
    scan: Scan
    stamps: tuple[tuple[int, int], ...]
    facts: dict[str, Json]


def plan_batch(batch: Batch) -> Plan:
    """Check everything that can be checked without running the model; read the input's digest.

    Raises:
        DataError: Input, output or settings do not fit each other or the model.
        EngineError: The engine is not installed.
        MissingExtraError: Parquet or images need the extra `data`.
    """
    source = find_source(batch.source)
    _check_target(batch)
    known = columns_of(source)
    keys, numbered = _keys(batch, source, known)
    signature = batch.model.signature
    tokenizer = batch.model.tokenizer_path or batch.reading.tokenizer
    reading = replace(batch.reading, tokenizer=tokenizer)
    roles = find_roles(signature, reading, list(known), list(keys), source.kind)
    form = SUFFIXES.get(batch.target.suffix.lower()) or batch.form or "parquet"
    table = Table(form, keys, signature.outputs)
    table.check()
    stamps = stamps_of(source)
    found = scan(source)
    processes, config = _share(batch, found)
    places = Places.of(batch)
    work = Work(
        batch.model,
        config,
        source,
        reading,
        roles,
        batch.truncate,
        table,
        numbered,
        places.parts,
        places.work,
        fixed_rows(signature) or batch.batch_rows,
    )
    return Plan(batch, places, work, processes, found, stamps, _facts(batch, work, found))


def stamps_of(source: Source) -> tuple[tuple[int, int], ...]:
    """Return size and time of every file, to see that none changes while it is read."""
    found = (path.stat() for path in source.paths)
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


def _check_target(batch: Batch) -> None:
    source, target = batch.source.resolve(), batch.target.resolve()
    if target == source or (source.is_dir() and target.is_relative_to(source)):
        raise DataError(
            f"The output must lie outside the input; got {batch.target.name!r} in "
            f"{batch.source.name!r}. Choose another place."
        )
    if target.exists() and target.is_dir() != batch.is_folder:
        kind = "folder" if batch.is_folder else "file"
        raise DataError(f"The output {target.name!r} must be a {kind}; it is not. Rename one.")


def _keys(batch: Batch, source: Source, known: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    names = batch.keys or ((FILE,) if source.kind == "images" else ())
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(
            f"Keys must be columns of the input; got {', '.join(missing)}. "
            f"It has: {', '.join(known)}."
        )
    return ({name: known[name] for name in names}, False) if names else ({ROW: int}, True)


def _share(batch: Batch, found: Scan) -> tuple[int, EngineConfig]:
    """Return how many processes there are, and how each runs the model."""
    parts = -(-max(1, found.rows) // batch.part_rows)
    processes = min(batch.processes or core_limit(), parts)
    config = batch.config
    threads = batch.threads or max(1, thread_count(config.threads) // processes)
    return processes, replace(config, threads=threads, streams=min(config.streams, threads))


def _facts(batch: Batch, work: Work, found: Scan) -> dict[str, Json]:
    version, reading = batch.version, work.reading
    engine = get_engine(work.config.engine)
    libraries = {name: metadata.version(name) for name in _LIBRARIES if _is_there(name)}
    named: Json = None
    if version is not None:
        named = {"name": version.name, "number": version.number, "digest": version.digest}
    settings: dict[str, Json] = {
        "columns": {role: list(names) for role, names in work.roles.columns.items()},
        "kind": work.roles.kind,
        "keys": [ROW] if work.numbered else list(work.table.keys),
        "form": work.table.form,
        "part_rows": batch.part_rows,
        "batch_rows": work.batch_rows,
    }
    facts: dict[str, Json] = {
        "version": named,
        "model": batch.model.digest,
        "engine": work.config.to_json(),
        "input": {
            "digest": found.digest,
            "bytes": found.size_bytes,
            "files": len(found.files),
        },
        "settings": settings | _reading_facts(batch, work.roles),
        "software": libraries | {engine.name: engine.available().version},
        "processor": processor(),
    }
    if work.roles.kind == "texts" and reading.tokenizer is not None:
        facts["tokenizer"] = digest_file(reading.tokenizer)
    return facts


def _reading_facts(batch: Batch, roles: Roles) -> dict[str, Json]:
    reading = batch.reading
    if roles.kind == "texts":
        return {"max_length": reading.max_length, "truncate": batch.truncate}
    if roles.kind == "images" and reading.image is not None:
        facts = asdict(reading.image)
        return {"image": {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}}
    return {}


def _is_there(library: str) -> bool:
    try:
        metadata.version(library)
    except metadata.PackageNotFoundError:
        return False
    return True
