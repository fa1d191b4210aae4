"""`ingot generate`: continue a text with a language model."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ingot.cli._generation_options import cache_options, end_token_option
from ingot.cli._options import RELEASED, ModelSource, json_option, key_option, seed_option
from ingot.cli._print import print_json, say
from ingot.core.units import show_ms

if TYPE_CHECKING:
    from ingot.runtime.engine import EngineConfig, Precision
    from ingot.runtime.generation.request import Piece
    from ingot.runtime.generation.sampling import Sampling

_ASKED = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed",
    "logprobs", "ignore_eos", "end_tokens",
)  # fmt: skip
_OTHERS = " (--engine and --precision choose others)"
F = TypeVar("F", bound=Callable[..., Any])
_SAMPLING = (
    click.option("--max-tokens", default=128, show_default=True, help="Tokens at most."),
    click.option("--temperature", default=0.0, show_default=True, help="0: the likeliest token."),
    click.option("--top-k", default=0, show_default=True, help="Likeliest tokens only; 0: all."),
    click.option("--top-p", default=1.0, show_default=True, help="Likeliest tokens of this share."),
    click.option("--min-p", default=0.0, show_default=True, help="Share of the likeliest token."),
    click.option("--repetition-penalty", default=1.0, show_default=True, help="1: none."),
    click.option("--stop", multiple=True, help="String that ends the text. Repeatable."),
    click.option("--ignore-eos", is_flag=True, help="Go on where the model would end the text."),
    end_token_option,
    click.option("--logprobs", type=int, help="Log-probabilities, and of how many others (JSON)."),
)
_ENGINE = (
    click.option(
        "--engine",
        help="Default: a version's own; else native if it runs the weights as they are, else "
        "onnxruntime.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        help="Of weights in float: with bf16 the native engine runs them.",
    ),
    click.option("--threads", default=0, show_default=True, help="0: every physical core."),
    *cache_options,
)


def _with(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command()
@click.argument("target", metavar="NAME@STAGE|MODEL|URL/NAME")
@click.option("--prompt", help="Text to continue; standard input if no prompt is given.")
@click.option("--prompt-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="File with the text to continue.")  # fmt: skip
@click.option("--tokens", metavar="N,N,...", help="Token ids to continue, in place of a text.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True), help="Of a model without one."
)
@key_option
@_with(_SAMPLING)
@seed_option
@_with(_ENGINE)
@json_option
def command(
    *,
    target: str,
    prompt: str | None,
    prompt_file: Path | None,
    tokens: str | None,
    key: str | None,
    as_json: bool,
    **options: Any,  # the fields of Sampling, and what a model is opened with
) -> None:
    """Continue a text; print it as it grows.

    \b
    Examples:
      ingot generate small --prompt "Once upon a time"
      ingot generate small --prompt-file note.txt --temperature 0.8 --top-p 0.95 --seed 1
      ingot generate large --prompt "Once upon a time" --precision bf16
      echo "Once upon a time" | ingot generate writer@prod --max-tokens 50 --json
      ingot generate http://127.0.0.1:8000/writer --prompt "Once upon a time"
    """
    asked = {name: options.pop(name) for name in _ASKED}
    _sampling(asked, None)  # a bad setting is refused before anything is read
    given = _prompt(prompt, prompt_file, tokens)
    run = _Run(as_json)
    if target.startswith(("http://", "https://")):
        _remote(run, target, given, asked, key)
    else:
        _local(run, target, given, asked, options)


def _local(
    run: "_Run",
    target: str,
    prompt: str | list[int],
    asked: dict[str, Any],
    options: dict[str, Any],
) -> None:
    from ingot.runtime.generation.drivers import open_decoding
    from ingot.runtime.generation.generate import generate
    from ingot.runtime.generation.text import end_tokens, tokenizer_of

    path, threads = options["tokenizer"], options["threads"]
    model = ModelSource(target, tokenizer=path).load()
    words = tokenizer_of(model, path)
    sampling = _sampling(asked, end_tokens(model, words, asked["end_tokens"]))
    config, reason = _config(target, options["engine"], options["precision"], threads)
    decoding = open_decoding(
        model,
        config,
        threads=threads,
        cache_tokens=options["cache_tokens"],
        cache_bits=int(options["cache_bits"]),
    )
    try:
        slow = f"; every token reads the whole text again: {decoding.why}" if decoding.why else ""
        say(f"On {decoding.config.label}, {reason}{slow}")
        run.go(generate(decoding, prompt, sampling, tokenizer=words), is_text=words is not None)
    finally:
        decoding.close()
    facts = {"model": model.digest, "config": decoding.config.to_json()}
    facts |= {"chosen_because": reason, "slow_because": decoding.why}
    run.report(f"tokens on {decoding.config.label}", facts, sampling)


def _remote(
    run: "_Run",
    target: str,
    prompt: str | list[int],
    asked: dict[str, Any],
    key: str | None,
) -> None:
    from ingot.serve.generation.client import generate

    url, _, name = target.rstrip("/").rpartition("/")
    ids = asked["end_tokens"]
    if not isinstance(prompt, str) or not all(token.isdigit() for token in ids):
        raise click.UsageError(
            "A server takes a text, and ids as --end-token; got tokens or names. Give a model, or "
            "change them."
        )
    parameters = {name: value for name, value in asked.items() if name != "end_tokens"}
    parameters |= {
        "stop": list(asked["stop"]),
        "stop_token_ids": [int(token) for token in ids],
        "ignore_eos": asked["ignore_eos"] or bool(ids),
        "details": run.as_json,
    }
    proof = {"authorization": f"Bearer {key}"} if key else {}
    run.go(generate(url, name, prompt, parameters, headers=proof), is_text=True)
    run.report(f"pieces from {target}", {"url": url, "name": name}, _sampling(asked, None))


def _sampling(asked: dict[str, Any], ends: "tuple[int, ...] | None") -> "Sampling":
    from ingot.runtime.generation.sampling import Sampling

    rest = {name: value for name, value in asked.items() if name in Sampling.__dataclass_fields__}
    return Sampling(**rest, stop_tokens=() if asked["ignore_eos"] else ends)


@dataclass
class _Run:
    """What was generated so far, and when."""

    as_json: bool
    pieces: "list[Piece]" = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def go(self, pieces: "Iterator[Piece]", *, is_text: bool) -> None:
        self.times.append(time.perf_counter())
        for piece in pieces:
            self.times.append(time.perf_counter())
            self.pieces.append(piece)
            if not self.as_json:
                click.echo(piece.text if is_text else f"{piece.token} ", nl=False)
        if not self.as_json:
            click.echo()

    @property
    def first_ms(self) -> float:
        """Milliseconds to the first piece."""
        return 1000 * (self.times[1] - self.times[0])

    @property
    def token_ms(self) -> float | None:
        """Milliseconds of each piece after the first."""
        count = len(self.times) - 2
        return 1000 * (self.times[-1] - self.times[1]) / count if count else None

    def report(self, what: str, facts: dict[str, Any], sampling: "Sampling") -> None:
        """Say how fast it was, or everything as JSON; a server may send several tokens a piece."""
        if not self.as_json:
            each = f", then {show_ms(self.token_ms)} a token" if self.token_ms else ""
            say(f"{len(self.pieces)} {what}: the first after {show_ms(self.first_ms)}{each}")
            return
        facts = {
            "text": "".join(piece.text for piece in self.pieces),
            "tokens": [piece.token for piece in self.pieces],
            "finish": self.pieces[-1].finish,
            **facts,
            "first_token_ms": self.first_ms,
            "token_ms": self.token_ms,
        }
        if sampling.logprobs is not None:
            facts["logprobs"] = [piece.logprob for piece in self.pieces]
            facts["top"] = [piece.top for piece in self.pieces]
        print_json(facts)


def _prompt(text: str | None, file: Path | None, tokens: str | None) -> str | list[int]:
    if sum(value is not None for value in (text, file, tokens)) > 1:
        raise click.UsageError("Give one of --prompt, --prompt-file and --tokens.")
    if tokens is not None:
        if not re.fullmatch(r"\d+(,\d+)*", tokens):
            raise click.UsageError(f"--tokens must be ids like 15,7,301; got {tokens!r}")
        return [int(part) for part in tokens.split(",")]
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"--prompt-file must be UTF-8; {error}") from error
    return text if text is not None else sys.stdin.read()


def _config(
    target: str, engine: str | None, precision: "Precision | None", threads: int
) -> "tuple[EngineConfig | None, str]":
    """Return the engine that was asked for, or that a released version was proved with; and why."""
    from ingot.runtime.engine import EngineConfig

    if engine is not None or precision is not None:
        return EngineConfig(engine or "native", precision or "fp32", threads), "as asked for"
    if RELEASED.match(target) and not Path(target).exists():
        from ingot.registry.registry import Registry

        with Registry.open() as registry:
            version = registry.resolve(target)
        return version.config, f"which {version.label} was proved with{_OTHERS}"
    return None, f"which rounds none of the model's weights{_OTHERS}"
