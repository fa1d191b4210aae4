"""Options that several verbs share, and how their values become nouns."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ingot.core.errors import DataError, ModelError, RecipeError

if TYPE_CHECKING:
    from ingot.compress.recipe import Factory, Recipe
    from ingot.data.data import Data
    from ingot.models.model import Model

_THERE = click.Path(path_type=Path, exists=True)
F = TypeVar("F", bound=Callable[..., Any])
RELEASED = re.compile(r"[A-Za-z0-9][\w.-]*(@[A-Za-z][\w-]*|:\d+)$")
LABEL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*$")

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
key_option = click.option(
    "--key", envvar=["INGOT_KEY", "INGOT_TOKEN"], show_envvar=True,
    help="API key or token, where the server asks for one.",
)  # fmt: skip
seed_option = click.option("--seed", default=0, show_default=True, help="Every random choice.")


def model_options(function: F) -> F:
    """Add the argument MODEL and the options that loading it may need."""
    for option in reversed((
        click.argument("model", metavar="MODEL"),
        click.option(
            "--weights", type=_THERE,
            help="Weights for a torch factory: .safetensors, .npz or a state dict.",
        ),
        click.option(
            "--example", type=_THERE, help="Example inputs for a torch factory, .npz by input name."
        ),
        click.option("--tokenizer", type=_THERE, help="tokenizer.json of a text model."),
    )):  # fmt: skip
        function = option(function)
    return function


def data_options(function: F, *, required: bool = True) -> F:
    """Add --data and the options that reading it may need.

    Args:
        function: The command.
        required: Whether --data must be given.
    """
    for option in reversed((
        click.option(
            "--data", "data_path", required=required, metavar="D",
            help="data.toml, .npz, table, or folder of images.",
        ),
        click.option(
            "--task", type=click.Choice(["classification", "regression", "similarity", "none"]),
            help="What the targets mean; guessed from the data when left out.",
        ),
        click.option(
            "--column", "columns", multiple=True, metavar="ROLE=NAME",
            help="Which column is what, e.g. text=sentence, target=label. Repeatable.",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


def pairs(values: tuple[str, ...], what: str) -> dict[str, str]:
    """Read `key=value` options.

    Raises:
        RecipeError: A value has no `=`.
    """
    for value in values:
        if "=" not in value:
            raise RecipeError(f"{what} must be NAME=VALUE; got {value!r}. Put an = between them.")
    return dict(value.split("=", 1) for value in values)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What the user said about a model on the command line."""

    model: str
    weights: Path | None = None
    example: Path | None = None
    tokenizer: Path | None = None

    @property
    def is_label(self) -> bool:
        """Whether the model is a torch factory `package.module:function`."""
        return bool(LABEL.match(self.model)) and not Path(self.model).exists()

    def load(self) -> "Model":
        """Return the model: a file, a folder, a torch factory, or a released `name@stage`."""
        if RELEASED.match(self.model) and not Path(self.model).exists():
            from ingot.registry.registry import Registry

            with Registry.open() as registry:
                return registry.model_of(registry.resolve(self.model))
        from ingot.models.load import load_model

        if self.is_label:
            _import_from_here()
        result = best_folder(Path(self.model))
        return load_model(
            str(result or self.model),
            weights=self.weights,
            example=self._example(),
            tokenizer=self.tokenizer,
        )

    def factory(self) -> "Factory | None":
        """Return the torch factory the user named, if any."""
        if not self.is_label:
            return None
        _import_from_here()
        from ingot.models.torch_format import find_factory

        return find_factory(self.model)

    def _example(self) -> Mapping[str, Any] | None:
        if self.example is None:
            return None
        import numpy as np

        try:
            with np.load(self.example, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"--example must be an .npz of arrays by input name; got "
                f"{self.example.name!r}: {error}. Write one with numpy.savez(path, name=array)."
            ) from error


def best_folder(path: Path) -> Path | None:
    """Return the model folder inside a folder that `ingot optimize` or `ingot compress` wrote."""
    inner = path / "model"
    return inner if (inner / "model.onnx").is_file() else None


def load_data_option(
    path: str, task: str | None, columns: tuple[str, ...], model: "Model | None" = None
) -> "Data":
    """Return the data named by --data; texts use the model's own tokenizer.

    Raises:
        DataError: It is not there or not usable.
    """
    from ingot.data.load import load_data

    if not Path(path).exists():
        raise DataError(
            f"--data must be a file or folder that exists; got {path!r}. Check the path."
        )
    return load_data(
        Path(path),
        task=task,
        columns=pairs(columns, "--column") or None,
        tokenizer=model.tokenizer_path if model is not None else None,
    )


def recipe_of(methods: tuple[str, ...], settings: tuple[str, ...], path: Path | None) -> "Recipe":
    """Return the recipe of --recipe, or of --method with --set.

    Raises:
        RecipeError: Neither or both are given, or a setting is unknown.
    """
    from ingot.compress.recipe import Recipe, make_method, method_names

    if (path is None) == (not methods):
        raise RecipeError(
            "Give --recipe FILE or at least one --method NAME, not both and not neither. "
            f"Installed methods: {', '.join(sorted(method_names()))}."
        )
    if path is not None:
        return Recipe.read(path)
    values = {key: read_value(text) for key, text in pairs(settings, "--set").items()}
    if len(methods) > 1 and values:
        raise RecipeError(
            "--set must go with exactly one --method; got several. Write a recipe.toml."
        )
    return Recipe(tuple(make_method(name, values) for name in methods))


def read_value(text: str) -> Any:  # whatever TOML can say
    """Read a setting as TOML (`8`, `true`, `["a"]`), or as plain text if it is not TOML."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_shape(text: str) -> tuple[int, int | None]:
    """Read `BATCH` or `BATCHxSEQUENCE`.

    Raises:
        click.BadParameter: It is neither.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or match[1] == "0" or match[2] == "0":
        raise click.BadParameter(f"must be BATCH or BATCHxSEQUENCE, like 1x128; got {text!r}")
    return int(match[1]), int(match[2]) if match[2] else None


def parse_buckets(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Read `N,N,...`; click's callback of an option.

    Raises:
        click.BadParameter: It is something else.
    """
    del context, option
    if not text:
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise click.BadParameter(f"must be lengths like 32,64,128; got {text!r}")
    return tuple(int(part) for part in text.split(","))


def _import_from_here() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
