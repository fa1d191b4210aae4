"""`ingot generate`: continue a text with a language model."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ingot.cli._options import RELEASED, ModelSource, json_option, seed_option
from ingot.cli._print import print_json, say
from ingot.core.units import show_ms

if TYPE_CHECKING:
    from ingot.models.model import Model
    from ingot.runtime.engine import EngineConfig, Precision
    from ingot.runtime.generation.decoding import Decoding
    from ingot.runtime.generation.request import Piece
    from ingot.runtime.generation.sampling import Sampling
    from ingot.runtime.generation.text import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])
_SAMPLING = (
    click.option("--max-tokens", default=128, show_default=True, help="Tokens at most."),
    click.option("--temperature", default=0.0, show_default=True, help="0: the likeliest token."),
    click.option("--top-k", default=0, show_default=True, help="Likeliest tokens only; 0: all."),
    click.option("--top-p", default=1.0, show_default=True, help="Likeliest tokens of this share."),
    click.option("--min-p", default=0.0, show_default=True, help="Share of the likeliest token."),
    click.option("--repetition-penalty", default=1.0, show_default=True, help="1: none."),
    click.option("--stop", multiple=True, help="String that ends the text. Repeatable."),
    click.option("--logprobs", type=int, help="Log-probabilities, and of how many others (JSON)."),
)
_ENGINE = (
    click.option("--engine", help="Native where it can run the model, else onnxruntime."),
    click.option("--precision", type=click.Choice(["fp32", "bf16"]),
                 help="Of weights in float: with bf16 the native engine runs them."),
    click.option("--threads", default=0, show_default=True, help="0: every physical core."),
    click.option("--cache-tokens", default=4096, show_default=True, help="Room of the cache."),
    click.option("--cache-bits", type=click.Choice(["32", "8"]), default="32", show_default=True,
                 help="Bits of cached keys and values."),
)  # fmt: skip


def _with(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command()
@click.argument("target", metavar="NAME@STAGE|MODEL")
@click.option("--prompt", help="Text to continue; standard input if no prompt is given.")
@click.option("--prompt-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="File with the text to continue.")  # fmt: skip
@click.option("--tokens", metavar="N,N,...", help="Token ids to continue, in place of a text.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True), help="Of a model without one."
)
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
    tokenizer: Path | None,
    engine: str | None,
    precision: "Precision | None",
    threads: int,
    cache_tokens: int,
    cache_bits: str,
    as_json: bool,
    **sampling: Any,  # the fields of Sampling
) -> None:
    """Continue a text; print it as it grows.

    \b
    Examples:
      ingot generate small --prompt "Once upon a time"
      ingot generate small --prompt-file note.txt --temperature 0.8 --top-p 0.95 --seed 1
      ingot generate large --prompt "Once upon a time" --precision bf16
      echo "Once upon a time" | ingot generate writer@prod --max-tokens 50 --json
    """
    from ingot.runtime.generation.drivers import open_decoding
    from ingot.runtime.generation.sampling import Sampling
    from ingot.runtime.generation.text import Tokenizer, tokenizer_of

    settings = Sampling(**sampling)
    given = _prompt(prompt, prompt_file, tokens)
    model = ModelSource(target, tokenizer=tokenizer).load()
    config = _config(target, engine, precision, threads)
    decoding = open_decoding(
        model, config, threads=threads, cache_tokens=cache_tokens, cache_bits=int(cache_bits)
    )
    try:
        if decoding.why:
            say(f"Every token reads the whole text again: {decoding.why}")
        run = _Run(as_json)
        words = tokenizer_of(model) if tokenizer is None else Tokenizer(tokenizer)
        run.go(decoding, given, settings, words)
    finally:
        decoding.close()
    run.report(model, decoding, settings)


@dataclass
class _Run:
    """What was generated so far, and when."""

    as_json: bool
    pieces: "list[Piece]" = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def go(
        self,
        decoding: "Decoding",
        prompt: str | list[int],
        sampling: "Sampling",
        tokenizer: "Tokenizer | None",
    ) -> None:
        from ingot.runtime.generation.generate import generate

        self.times.append(time.perf_counter())
        for piece in generate(decoding, prompt, sampling, tokenizer=tokenizer):
            self.times.append(time.perf_counter())
            self.pieces.append(piece)
            if not self.as_json:
                text = piece.text if tokenizer is not None else f"{piece.token} "
                click.echo(text, nl=False)
        if not self.as_json:
            click.echo()

    @property
    def first_ms(self) -> float:
        """Milliseconds to the first token."""
        return 1000 * (self.times[1] - self.times[0])

    @property
    def token_ms(self) -> float | None:
        """Milliseconds of each token after the first."""
        count = len(self.times) - 2
        return 1000 * (self.times[-1] - self.times[1]) / count if count else None

    def report(self, model: "Model", decoding: "Decoding", sampling: "Sampling") -> None:
        if not self.as_json:
            each = f", then {show_ms(self.token_ms)} a token" if self.token_ms else ""
            say(
                f"{len(self.pieces)} tokens on {decoding.config.label}: the first after "
                f"{show_ms(self.first_ms)}{each}"
            )
            return
        facts: dict[str, Any] = {
            "text": "".join(piece.text for piece in self.pieces),
            "tokens": [piece.token for piece in self.pieces],
            "finish": self.pieces[-1].finish,
            "model": model.digest,
            "config": decoding.config.to_json(),
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
) -> "EngineConfig | None":
    """Return the engine that was asked for, or that a released version was proved with."""
    from ingot.runtime.engine import EngineConfig

    if engine is not None or precision is not None:
        return EngineConfig(engine or "native", precision or "fp32", threads)
    if RELEASED.match(target) and not Path(target).exists():
        from ingot.registry.registry import Registry

        with Registry.open() as registry:
            return registry.resolve(target).config
    return None
