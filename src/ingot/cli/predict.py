"""`ingot predict`: answers for a data file, from an endpoint or from a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingot.cli._options import ModelSource, json_option, key_option, load_data_option
from ingot.cli._print import print_json, print_table, say

if TYPE_CHECKING:
    from ingot.data.data import Array, Split
    from ingot.models.model import Signature


@click.command()
@click.argument("target", metavar="URL/NAME|NAME@STAGE|MODEL")
@click.option(
    "--data", "data_path", required=True, metavar="D", help="data.toml, .npz, table or folder."
)
@click.option(
    "--task",
    type=click.Choice(["classification", "regression", "similarity", "none"]),
    help="What the targets mean, if the data do not say.",
)
@click.option(
    "--column", "columns", multiple=True, metavar="ROLE=NAME", help="Which column is what."
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True), help="For texts sent to a URL."
)
@key_option
@click.option("--split", default="test", show_default=True, help="Split to answer.")
@click.option("--rows", default=10, show_default=True, help="First rows only; 0 is all.")
@click.option("--out", type=click.Path(path_type=Path), help="Write every output to this .npz.")
@json_option
def command(
    *,
    target: str,
    data_path: str,
    task: str | None,
    columns: tuple[str, ...],
    tokenizer: Path | None,
    key: str | None,
    split: str,
    rows: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Answer the rows of a data file.

    \b
    Examples:
      ingot predict http://127.0.0.1:8000/digits --data digits.npz
      ingot predict digits@prod --data digits.npz --rows 0 --out answers.npz
    """
    remote = target.startswith(("http://", "https://"))
    model = None if remote else ModelSource(target, tokenizer=tokenizer).load()
    data = load_data_option(data_path, task, columns, model)
    part = data.split(split)
    part = part.take(range(min(rows, len(part)))) if rows else part
    outputs, facts = _remote(target, part, key) if remote else _local(target, model, part)
    if out is not None:
        import numpy as np

        np.savez(out, **outputs)  # type: ignore[arg-type] # names to arrays
        say(f"Wrote {out}")
    if as_json:
        print_json({"outputs": {n: v.tolist() for n, v in outputs.items()}, **facts})
    else:
        _print(outputs, part, facts)


def _remote(
    target: str, part: "Split", key: str | None
) -> tuple[dict[str, "Array"], dict[str, str]]:
    from ingot.models.feeds import feeds_for
    from ingot.serve.client import fetch_signature, predict

    url, _, name = target.rstrip("/").rpartition("/")
    proof = {"authorization": f"Bearer {key}"} if key else {}
    signature: Signature = fetch_signature(url, name, headers=proof)
    feeds = feeds_for(signature, part.inputs)
    outputs, headers = predict(url, name, feeds, headers=proof)
    return outputs, {"version": headers.get("ingot-version", "")}


def _local(target: str, model: Any, part: "Split") -> tuple[dict[str, "Array"], dict[str, str]]:
    from ingot.models.feeds import feeds_for
    from ingot.runtime.buckets import run_rows
    from ingot.runtime.engines import open_session

    config, facts = None, {"model": model.digest}
    if "@" in target or ":" in target:
        from ingot.registry.registry import Registry

        with Registry.open() as registry:
            version = registry.resolve(target)
        config, facts = version.config, {"version": version.digest}
    session = open_session(model, config)
    try:
        return run_rows(session, feeds_for(model.signature, part.inputs)), facts
    finally:
        session.close()


def _print(outputs: dict[str, "Array"], part: "Split", facts: dict[str, str]) -> None:
    name, first = next(iter(outputs.items()))
    rows = []
    for index in range(len(first)):
        label = part.labels[index // part.rows_per_example] if part.labels else ""
        values = first[index].reshape(-1)
        shown = ", ".join(f"{v:.4g}" for v in values[:6]) + (", ..." if len(values) > 6 else "")
        rows.append((str(index), label, shown))
    print_table(
        f"{name} ({', '.join(f'{k} {v}' for k, v in facts.items())})", ("row", "input", name), rows
    )
