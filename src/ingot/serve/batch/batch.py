"""What a batch is: a version, an input, and where the answers go."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ingot.core.digest import Json
from ingot.core.errors import DataError
from ingot.data.reading import Reading
from ingot.models.model import Model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.batch.answers import FORMATS, Format

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Every row of an input, to be answered by one model. Building it reads nothing.

    Attributes:
        model: What answers.
        source: A table, or a folder of tables of one kind or of images.
        target: A `.parquet`, `.csv` or `.jsonl`, or a folder that gets one table per part.
        version: The released version that the model is of; its engine and settings are used.
        reading: How rows are read; the model's own tokenizer is used where it has one.
        keys: Columns of the input that go along; the row number if none.
        form: Of the parts of a folder; `parquet` unless said.
        truncate: Cut texts that are too long, as `load_data` does, instead of refusing the row.
        processes: How many work at a time; 0 is one per physical core, 1 is this process.
        on: Where they are: `processes` of this machine, or actors of `ray`.
        threads: Of each process; 0 is an equal share of those the version was proved with.
        part_rows: Rows of a part: what is written at once, and done again after a crash.
        batch_rows: Rows per call of the engine.
        max_errors: Rows that may be refused before the batch stops.
    """

    model: Model
    source: Path
    target: Path
    version: Version | None = None
    reading: Reading = field(default_factory=Reading)
    keys: tuple[str, ...] = ()
    form: Format | None = None
    truncate: bool = False
    processes: int = 0
    threads: int = 0
    part_rows: int = 1024
    batch_rows: int = 32
    max_errors: int = 0
    on: Literal["processes", "ray"] = "processes"

    def __post_init__(self) -> None:
        for name, least in (
            ("processes", 0),
            ("threads", 0),
            ("part_rows", 1),
            ("batch_rows", 1),
            ("max_errors", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise DataError(f"{name} must be at least {least}; got {value}. Raise it.")
        own = SUFFIXES.get(self.target.suffix.lower())
        if self.target.suffix and own is None:
            raise DataError(
                f"The output must end in {', '.join(SUFFIXES)}, or be a folder without a suffix; "
                f"got {self.target.name!r}. Rename it."
            )
        if self.form is not None and (self.form not in FORMATS or own not in {None, self.form}):
            raise DataError(
                f"The form must be one of {', '.join(FORMATS)} and that of the output's suffix; "
                f"got {self.form!r} for {self.target.name!r}. Leave it out."
            )

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder of parts."""
        return not self.target.suffix

    @property
    def config(self) -> EngineConfig:
        """What the version was proved with, or ONNX Runtime in fp32."""
        return EngineConfig() if self.version is None else self.version.config


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a batch did.

    Attributes:
        rows: Rows of the input.
        answered: Rows in the output.
        errors: Rows in the error file.
        parts: Parts in all.
        resumed: Parts that an earlier run had finished.
        seconds: Of this run.
        output: The table or folder.
        manifest: Says what ran.
        error_file: Rows that were refused, or None.
    """

    rows: int
    answered: int
    errors: int
    parts: int
    resumed: int
    seconds: float
    output: Path
    manifest: Path
    error_file: Path | None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        paths = {name: str(getattr(self, name)) for name in ("output", "manifest")}
        error_file = None if self.error_file is None else str(self.error_file)
        rate = self.answered / self.seconds if self.seconds and not self.resumed else None
        return asdict(self) | paths | {"error_file": error_file, "rows_per_s": rate}
