"""`ingot`: one command per verb of the library, each loaded only when it is called."""

import importlib
import json
import sys
from typing import Any, NoReturn

import click

from ingot import __version__
from ingot.core.errors import IngotError

VERBS = (
    "inspect",
    "compress",
    "compare",
    "optimize",
    "report",
    "release",
    "promote",
    "rollback",
    "compile",
    "serve",
    "traffic",
    "batch",
    "jobs",
    "log",
    "deploy",
    "keys",
    "predict",
    "generate",
    "ledger",
    "doctor",
    "completion",
)
FAILED, MISUSE, INTERRUPTED = 1, 2, 130


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the work, not of the alphabet."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"ingot.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest verb for an unknown one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from ingot.core.names import suggest

            ctx.fail(f"{args[0]!r} is no command. {suggest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="ingot")
def ingot() -> None:
    """Turn a trained model into a small, fast, proven service.

    \b
    Examples:
      ingot optimize model.onnx --data data.toml --require "accuracy drop <= 0.005" --out best
      ingot release digits best --stage prod
      ingot serve digits@prod
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit 0 when done, 1 when a claim or check failed, 2 on misuse."""
    arguments = sys.argv[1:] if arguments is None else arguments
    wants_json = "--json" in arguments
    try:
        result: Any = ingot.main(arguments, prog_name="ingot", standalone_mode=False)
    except click.ClickException as error:
        if wants_json:
            _fail(error.format_message(), MISUSE, wants_json=True)
        error.show()
        sys.exit(MISUSE)
    except (click.Abort, KeyboardInterrupt):
        words = "Interrupted. Run the same command again to go on where it stopped."
        _fail(words, INTERRUPTED, wants_json=wants_json)
    except IngotError as error:
        _fail(str(error) if wants_json else f"Error: {error}", MISUSE, wants_json=wants_json)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(words: str, code: int, *, wants_json: bool) -> NoReturn:
    click.echo(json.dumps({"error": words}) if wants_json else words, err=True)
    sys.exit(code)
