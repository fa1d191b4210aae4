"""`ingot report`: the page that shows what was tried and proved."""

from pathlib import Path

import click

from ingot.cli._options import json_option
from ingot.cli._print import print_json
from ingot.core.errors import EvidenceError


@click.command()
@click.argument("source", metavar="FOLDER|EVIDENCE", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out", type=click.Path(path_type=Path), help="HTML file; beside the evidence by default."
)
@json_option
def command(source: Path, out: Path | None, as_json: bool) -> None:
    """Write the HTML report of an optimize folder or of an evidence.json.

    \b
    Examples:
      ingot report best
      ingot report best/evidence.json --out proof.html
    """
    from ingot.evaluate.evidence import read_evidence
    from ingot.evaluate.report.content import read_report, report_of
    from ingot.evaluate.report.page import write_report

    folder = source if source.is_dir() else source.parent
    saved, evidence = folder / "report.json", folder / "evidence.json"
    if source.is_dir() and saved.is_file():
        report = read_report(saved)
    elif (evidence if source.is_dir() else source).is_file():
        found = read_evidence(evidence if source.is_dir() else source)
        report = report_of(found, title=f"Evidence in {folder.name}")
    else:
        raise EvidenceError(
            f"A report needs report.json or evidence.json; {source} holds neither. "
            "Run ingot optimize or ingot compare with --out first."
        )
    page = write_report(report, out or folder / "report.html")
    print_json({"report": str(page)}) if as_json else click.echo(str(page))
