"""`ingot compare`: prove what changed between two models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import (
    ModelSource,
    data_options,
    json_option,
    load_data_option,
    model_options,
    parse_shape,
    seed_option,
)
from ingot.cli._print import print_json, print_table, say
from ingot.core.digest import short

if TYPE_CHECKING:
    from ingot.data.data import Split
    from ingot.evaluate.diagnose import NodeError
    from ingot.evaluate.evidence import Comparison, Evidence, Interval
    from ingot.models.model import Model
    from ingot.runtime.engine import EngineConfig, Precision


@click.command()
@model_options
@click.argument("candidate", metavar="CANDIDATE")
@data_options
@click.option(
    "--require", multiple=True, metavar="CLAIM", help='E.g. "accuracy drop <= 0.01". Repeatable.'
)
@click.option("--split", default="test", show_default=True, help="Split to judge on.")
@click.option(
    "--engine",
    help="Engine of the candidate. Default: onnxruntime; native for a language model that it runs "
    "as it is, since it would write the texts.",
)
@click.option("--baseline-engine", help="Engine of MODEL. Default: --engine, else chosen alike.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic of what is float in either model.",
)
@click.option("--threads", default=0, help="Threads per call; 0 is every physical core.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    default=["1"],
    show_default=True,
    metavar="BxS",
    help="Batch, or batch x sequence, to time. Repeatable.",
)
@click.option("--why", is_flag=True, help="Also name the nodes at which the answers part.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for evidence.json and report.html."
)
@seed_option
@json_option
def command(
    *,
    candidate: str,
    data_path: str,
    task: str | None,
    columns: tuple[str, ...],
    require: tuple[str, ...],
    split: str,
    engine: str | None,
    baseline_engine: str | None,
    precision: "Precision",
    threads: int,
    shapes: tuple[str, ...],
    why: bool,
    out: Path | None,
    seed: int,
    as_json: bool,
    **source: Any,
) -> int:
    """Compare CANDIDATE with MODEL on data, with paired intervals; exit 1 if a claim fails.

    \b
    Examples:
      ingot compare model.onnx small --data data.toml --require "accuracy drop <= 0.01" --out proof
      ingot compare model.onnx broken.onnx --data data.toml --why
      ingot compare gpt2/ small --data texts.csv --out proof
      ingot compare gpt2/ small --data texts.csv --engine native --baseline-engine onnxruntime
    """
    from ingot.core.progress import progress_bar
    from ingot.evaluate.compare import compare

    baseline, small = ModelSource(**source).load(), ModelSource(candidate).load()
    data = load_data_option(data_path, task, columns, baseline)
    named = baseline_engine, engine
    trusted, config = _configs((baseline, small), named, precision, threads)
    with progress_bar("compare") as progress:
        evidence = compare(
            baseline,
            small,
            data,
            require=require,
            split=split,
            config=config,
            baseline_config=trusted,
            shapes=tuple(parse_shape(s) for s in shapes),
            seed=seed,
            progress=progress,
        )
    if out is not None:
        write_comparison(evidence, out, f"{small.name} against {baseline.name}")
    nodes = _worst_nodes(baseline, small, config, data.split(split)) if why else ()
    if as_json:
        found = evidence.to_statement()
        print_json({**found, "nodes": [node.to_json() for node in nodes]} if why else found)
    else:
        print_evidence(evidence)
        _print_nodes(nodes)
        if out is not None:
            say(f"Wrote {out / 'evidence.json'} and {out / 'report.html'}")
    return 0 if evidence.passed or not require else 1


def _configs(
    models: "tuple[Model, Model]",
    named: tuple[str | None, str | None],
    precision: "Precision",
    threads: int,
) -> "tuple[EngineConfig, EngineConfig]":
    """Return how baseline and candidate run, and say it.

    A language model runs on the engine that would write its texts: native, if it can as it is.
    """
    from ingot.runtime.engine import EngineConfig
    from ingot.runtime.native_engine import writes_texts

    engines = [
        own or named[1] or ("native" if writes_texts(model, precision) else "onnxruntime")
        for model, own in zip(models, named, strict=True)
    ]
    say(f"The baseline runs on {engines[0]}, the candidate on {engines[1]}")
    one, two = (EngineConfig(engine, precision, threads) for engine in engines)
    return one, two


def _worst_nodes(
    baseline: "Model", small: "Model", config: "EngineConfig", split: "Split"
) -> "tuple[NodeError, ...]":
    from ingot.evaluate.diagnose import node_errors, worst_nodes
    from ingot.runtime.measure import Candidate

    trusted = replace(config, engine="onnxruntime", precision="fp32")
    shown = trusted if config.engine == "native" else config  # which has no nodes to look into
    sides = Candidate("baseline", baseline, trusted), Candidate("candidate", small, shown)
    return worst_nodes(node_errors(*sides, split), 10)


def _print_nodes(nodes: "Sequence[NodeError]") -> None:
    if nodes:
        print_table(
            "Where the answers part",
            ("node", "operator", "error of its inputs", "error of its output"),
            [(n.node, n.operator, f"{n.before:.3g}", f"{n.after:.3g}") for n in nodes],
        )


def print_evidence(evidence: "Evidence") -> None:
    """Print comparisons and verdicts."""
    print_table(
        f"Evidence {short(evidence.digest)}",
        ("metric", "baseline", "candidate", "worse by", "ratio"),
        [_row(row) for row in evidence.comparisons],
    )
    if evidence.verdicts:
        print_table(
            "Claims",
            ("claim", "verdict", "why"),
            [(v.claim, "holds" if v.passed else "FAILS", v.reason) for v in evidence.verdicts],
        )


def write_comparison(evidence: "Evidence", out: Path, title: str) -> None:
    """Write evidence.json, and report.html where the extra `report` is installed."""
    from ingot.evaluate.evidence import write_evidence
    from ingot.evaluate.report.content import report_of
    from ingot.evaluate.report.page import write_report

    write_evidence(evidence, out)
    write_report(report_of(evidence, title=title), out / "report.html")


def show_interval(interval: "Interval", unit: str = "") -> str:
    """Return `value [low, high] unit`; without brackets where the value is exact."""
    unit = "" if unit == "fraction" else f" {unit}"
    if interval.low == interval.high:
        return f"{interval.value:.4g}{unit}"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]{unit}"


def _row(row: "Comparison") -> tuple[str, ...]:
    name = f"{row.metric} {row.setting}".strip()
    if row.unit == "bytes":
        from ingot.core.units import show_bytes

        values = (show_bytes(row.baseline.value), show_bytes(row.candidate.value), "")
    else:
        values = (
            show_interval(row.baseline, row.unit),
            show_interval(row.candidate, row.unit),
            show_interval(row.drop, row.unit),
        )
    return (name, *values, show_interval(row.ratio))
