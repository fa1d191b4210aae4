"""Options that belong to one way of serving: shown together, and refused without it."""

import re

import click
from click.core import ParameterSource

_TAG = re.compile(r" ?\[([a-z, ]+)\]$")
_FLAGS = {"async": "is_async", "generate": "generate", "canary": "canary", "split": "splits"}
_TEXTS = {"cache_tokens", "cache_bits", "end_tokens"}  # shared with `ingot generate`
_WITHOUT_JOBS = {
    "workers", "no_repeat", "max_batch", "max_wait_ms", "timeout_s", "max_waiting", "max_body_mb",
    "max_in_flight_mb", "grpc_port",
}  # fmt: skip


class WaysCommand(click.Command):
    """A command whose options may end their help with the ways they belong to: `[async]`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of every way below a heading of its own."""
        sections: dict[str, list[tuple[str, str]]] = {"": []}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                ways = _ways(option)
                words = _untagged(option, record[1])
                sections.setdefault(ways[-1] if ways else "", []).append((record[0], words))
        for way, records in sections.items():
            with formatter.section(f"Options with --{way}" if way else "Options"):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, and refuse options that would be passed over in silence.

        Raises:
            click.UsageError: One was given without its way, or does not go with the one given.
        """
        rest = super().parse_args(ctx, args)
        given = {option.name for option in self.params if _is_given(ctx, option)}
        for option in self.params:
            ways = _ways(option)
            if option.name in given and ways and not any(ctx.params[_FLAGS[w]] for w in ways):
                wanted = " or ".join(f"--{way}" for way in ways)
                raise click.UsageError(f"{option.opts[0]} goes with {wanted}; add it, or drop it.")
            if option.name in given & _WITHOUT_JOBS and ctx.params["is_async"]:
                raise click.UsageError(
                    f"{option.opts[0]} is about answers at once; it does not go with --async."
                )
        return rest


def _is_given(ctx: click.Context, option: click.Parameter) -> bool:
    return ctx.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE


def _ways(option: click.Parameter) -> list[str]:
    if option.name in _TEXTS:
        return ["generate"]
    found = _TAG.search(getattr(option, "help", None) or "")
    return found[1].split(", ") if found else []


def _untagged(option: click.Parameter, words: str) -> str:
    found = _TAG.search(getattr(option, "help", None) or "")
    return words.replace(found[0], "", 1) if found else words
