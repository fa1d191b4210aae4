"""`ingot inspect`: what a model is made of, and what can be compressed."""

from typing import Any

import click

from ingot.cli._options import ModelSource, json_option, model_options
from ingot.cli._print import print_facts, print_json, print_table
from ingot.core.digest import short
from ingot.core.units import show_bytes, show_count


@click.command()
@model_options
@click.option("--layers", "show_layers", is_flag=True, help="List every layer with weights.")
@json_option
def command(show_layers: bool, as_json: bool, **source: Any) -> None:
    """Show signature, parameters, bytes, MACs, operators, and what can be compressed and how.

    \b
    Examples:
      ingot inspect model.onnx
      ingot inspect mypackage.nets:resnet20 --weights resnet20.npz --layers
      ingot inspect digits@prod --json
    """
    from ingot.models.inspect import inspect_model

    model = ModelSource(**source).load()
    found = inspect_model(model)
    if as_json:
        print_json(found.to_json())
        return
    print_facts(
        [
            ("model", f"{model.name} ({short(model.digest)})"),
            ("from", model.lineage.source),
            *((f"input {i.name}", f"{i.dtype} {list(i.shape)}") for i in model.signature.inputs),
            *((f"output {o.name}", f"{o.dtype} {list(o.shape)}") for o in model.signature.outputs),
            ("parameters", show_count(found.parameters)),
            ("size", show_bytes(model.size_bytes)),
            (
                "MACs",
                show_count(found.macs) if found.macs is not None else "unknown (dynamic shapes)",
            ),
            ("operators", ", ".join(f"{op} {n}" for op, n in found.operators.items())),
        ]
    )
    print_table(
        "What can be compressed",
        ("method", "layers", "share of parameters", "the rest"),
        [
            (c.method, str(c.layers), f"{c.parameter_share:.1%}", c.reason)
            for c in found.compressible
        ],
    )
    if show_layers:
        print_table(
            "Layers",
            ("name", "operator", "parameters", "MACs"),
            [
                (
                    x.name,
                    x.operator,
                    show_count(x.parameters),
                    "" if x.macs is None else show_count(x.macs),
                )
                for x in found.layers
            ],
        )
