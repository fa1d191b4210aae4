"""Fill the generated parts of README and docs: measured tables, pictures, commands.

`python docs/render.py` writes them; `python docs/render.py --check` fails if any is out of date.
A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; a picture is a file.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
from charts import panels
from roofline import draw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    "README.md",
    "docs/reference/cli.md",
    "docs/evidence/first_light.md",
    "docs/evidence/post_training.md",
    "docs/evidence/native_engine.md",
    "docs/evidence/serving.md",
    "src/ingot_workloads/digits/README.md",
    "src/ingot_workloads/sst2_encoder/README.md",
)


def main() -> None:
    """Render every page; exit 1 if `--check` finds one out of date."""
    stale = []
    for name in (*PAGES, *PICTURES):
        path = ROOT / name
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        after = PICTURES[name]() if name in PICTURES else render(before)
        if before != after:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(after, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"out of date: {', '.join(stale)}; run: python docs/render.py")


def render(text: str) -> str:
    """Return the page with every generated part made anew."""

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        kind, _, argument = name.partition(":")
        return f"<!-- begin {name} -->\n{PARTS[kind](argument)}\n<!-- end {name} -->"

    pattern = r"<!-- begin (?P<name>[\w:-]+) -->\n.*?<!-- end (?P=name) -->"
    return re.sub(pattern, part, text, flags=re.DOTALL)


def claims_table(benchmark: str) -> str:
    """Return one row per claim: asked for, measured with interval, met or not, and why."""
    found = json.loads((RESULTS / f"{benchmark}.json").read_text())
    lines = ["| claim | asked | measured | met |", "|---|---|---|---|"]
    for row in found["claims"]:
        unit = "" if row["unit"] in {"", "fraction"} else f" {row['unit']}"
        value = f"{row['value']:.4g}{unit}"
        if row["low"] != row["high"]:
            value += f" [{row['low']:.4g}, {row['high']:.4g}]"
        note = f"<br>{row['note']}" if row["note"] else ""
        met = "yes" if row["met"] else "**no**"
        lines.append(f"| {row['claim']} | {row['target']} | {value}{note} | {met} |")
    return "\n".join([*lines, "", _conditions(found)])


def result_table(argument: str) -> str:
    """Return one named table of a results file."""
    benchmark, _, table = argument.partition(":")
    return _table(json.loads((RESULTS / f"{benchmark}.json").read_text())["tables"][table])


def workload_table(name: str) -> str:
    """Return the results of a workload."""
    folder = ROOT / "src" / "ingot_workloads" / name
    return _table(json.loads((folder / "results.json").read_text()))


def roofline() -> str:
    """Return the picture of how much of the machine each network uses."""
    found = json.loads((RESULTS / "post_training.json").read_text())
    return draw(found["tables"]["roofline"]["rows"])


def native_roofline() -> str:
    """Return the picture of how much of the machine each matrix of an encoder uses."""
    found = json.loads((RESULTS / "native_engine.json").read_text())
    *rows, peak = found["tables"]["layers"]["rows"]
    bars = [
        [f"{network}, {batch}: {part}", work, ms, rate, share]
        for network, batch, part, threads, work, ms, rate, share in rows
        if threads == 1 and share
    ]
    return draw([*bars, [*peak[:1], *peak[4:]]], by_size=False, left=290)


def serving_trace() -> str:
    """Return the charts of ten thousand requests at an endpoint that scales from zero."""
    tables = json.loads((RESULTS / "serving.json").read_text())["tables"]
    title = "Backlog, backlog per instance and instances while ten thousand requests are answered"
    lines = {"measured": tables["trace_live"]["rows"], "simulated": tables["trace"]["rows"]}
    return panels(title, tables["trace"]["columns"], lines)


def _table(found: dict) -> str:
    lines = [f"| {' | '.join(found['columns'])} |", "|" + "---|" * len(found["columns"])]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in found["rows"]]
    return "\n".join(lines)


def _conditions(found: dict) -> str:
    machine = found["hardware"]
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, on {found['date']} by "
        f"`{found['command']}`; square brackets are 95 % intervals where a row does not say "
        "otherwise."
    )


def cli_reference(_: str) -> str:
    """Return help of every command."""
    from ingot.cli.main import VERBS, ingot

    context = click.Context(ingot, info_name="ingot", max_content_width=96, terminal_width=96)
    parts = []
    for verb in VERBS:
        command = ingot.get_command(context, verb)
        parts += _command_help(command, verb, context, level=2)
    return "\n".join(parts)


def _command_help(
    command: click.Command, name: str, parent: click.Context, *, level: int
) -> list[str]:
    context = click.Context(
        command, info_name=name, parent=parent, max_content_width=96, terminal_width=96
    )
    title = context.command_path
    parts = [f"{'#' * level} {title}", "", "```text", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            parts += _command_help(found, child, context, level=level + 1)
    return parts


PARTS: dict[str, Callable[[str], str]] = {
    "claims": claims_table,
    "table": result_table,
    "workload": workload_table,
    "cli": cli_reference,
}
PICTURES: dict[str, Callable[[], str]] = {
    "docs/images/native_engine_layers.svg": native_roofline,
    "docs/images/post_training_roofline.svg": roofline,
    "docs/images/serving_trace.svg": serving_trace,
}

if __name__ == "__main__":
    main()
