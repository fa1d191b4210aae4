"""`ingot completion`: completion for the shell."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      ingot completion bash > ~/.local/share/bash-completion/completions/ingot
    """
    from ingot.cli.main import ingot

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ingot, {}, "ingot", "_INGOT_COMPLETE").source())
