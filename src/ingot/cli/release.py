"""`ingot release`: put a proven model into the registry."""

from pathlib import Path

import click

from ingot.cli._options import best_folder, json_option
from ingot.cli._print import print_json
from ingot.core.digest import short
from ingot.core.errors import EvidenceError


@click.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--evidence",
    "evidence_path",
    type=click.Path(path_type=Path, exists=True),
    help="evidence.json; the one in FOLDER by default.",
)
@click.option("--stage", help="Promote it to this stage at once.")
@json_option
def command(
    *, name: str, folder: Path, evidence_path: Path | None, stage: str | None, as_json: bool
) -> None:
    """Release the model in FOLDER as the next version of NAME. No evidence, no release.

    \b
    Examples:
      ingot release digits best --stage prod
      ingot release digits small --evidence proof/evidence.json
    """
    from ingot.evaluate.evidence import read_evidence
    from ingot.models.store import adopt_model, open_model
    from ingot.registry.registry import Registry

    path = evidence_path or folder / "evidence.json"
    if not path.is_file():
        raise EvidenceError(
            f"A release must come with evidence; {folder} holds no evidence.json. "
            f"Run: ingot compare MODEL {folder} --data DATA --require CLAIM --out {folder}"
            " (or name it with --evidence)."
        )
    model = adopt_model(open_model(best_folder(folder) or folder))
    with Registry.open() as registry:
        version = registry.release(name, model, read_evidence(path))
        if stage:
            registry.promote(name, version.number, stage)
    if as_json:
        print_json(
            {
                "name": name,
                "number": version.number,
                "version": version.digest,
                "model": version.model,
                "evidence": version.evidence,
                "entry": version.entry,
                "stage": stage,
            }
        )
    else:
        click.echo(
            f"Released {version.label} (version {short(version.digest)}, "
            f"ledger entry {version.entry})"
        )
        if stage:
            click.echo(f"{name}@{stage} is now {version.label}")
