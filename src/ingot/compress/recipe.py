"""The noun Recipe: methods in order, and the verb that applies them to a model."""

import contextlib
import copy
import importlib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from ingot.compress.method import Method
from ingot.compress.run import Run
from ingot.core.digest import Json, digest_json, short
from ingot.core.errors import RecipeError
from ingot.core.files import write_atomic
from ingot.core.names import suggest
from ingot.core.progress import SILENT, Progress
from ingot.data.data import NOTHING, Data, Split
from ingot.models.model import DATA_FILE, Lineage, Model
from ingot.models.network import Network, OnnxNetwork, TorchNetwork
from ingot.models.store import INLINE_LIMIT, store_model, store_root

if TYPE_CHECKING:
    from torch.nn import Module

METHOD_GROUP = "ingot.methods"
Factory = Callable[[], "Module"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Methods in the order in which they change a model. Building one loads and computes nothing.

    Attributes:
        methods: The changes, first to last.
    """

    methods: tuple[Method, ...] = ()

    @property
    def digest(self) -> str:
        """Equal methods in equal order have equal digests."""
        return digest_json(self.to_json())

    @property
    def label(self) -> str:
        """Short text for tables: class names with the settings that differ from the defaults."""
        return " + ".join(_label(method) for method in self.methods) or "unchanged"

    def to_json(self) -> list[Json]:
        """Return names and settings."""
        return [{"name": m.name, "settings": dict(m.settings)} for m in self.methods]

    def to_toml(self) -> str:
        """Return the recipe as `recipe.toml`.

        Examples:
            >>> print(Recipe().to_toml())
            # Ingot recipe
            <BLANKLINE>
        """
        lines = ["# Ingot recipe", ""]
        for method in self.methods:
            lines += ["[[method]]", f"name = {json.dumps(method.name)}"]
            lines += [
                f"{key} = {_toml(value)}"
                for key, value in method.settings.items()
                if value is not None
            ]
            lines.append("")
        return "\n".join(lines)

    def write(self, path: Path) -> Path:
        """Write `recipe.toml`, whole or not at all."""
        return write_atomic(path, self.to_toml().encode())

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a `recipe.toml`.

        Raises:
            RecipeError: The file is not TOML, names an unknown method, or has an unknown setting.
        """
        try:
            tables = tomllib.loads(path.read_text()).get("method", [])
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(
                f"A recipe must be a TOML file with [[method]] tables; got {path.name!r}: {error}. "
                "Write one with recipe.write(path) to see the form."
            ) from error
        return cls(tuple(make_method(t.pop("name", ""), t) for t in tables))

    def apply(
        self,
        model: Model,
        data: Data | None = None,
        *,
        factory: Factory | None = None,
        seed: int = 0,
        progress: Progress = SILENT,
        root: Path | None = None,
        run: Run | None = None,
        after: Model | None = None,
    ) -> Model:
        """Return a new stored model; the one given is not touched.

        Args:
            model: What to change.
            data: Each method sees only the splits that it lists in `needs`, and targets only if it
                lists `labels`. May be left out if no method needs any.
            factory: Builds the torch network of `model`; needed if a method edits torch modules.
            seed: Every random choice of every method.
            progress: Where long work reports.
            root: Store folder; the default store if not given.
            run: Collects what the methods log; one is made if not given.
            after: What all methods but the last made of `model`, if that is stored already and the
                last one edits ONNX graphs: only the last one runs then.

        Raises:
            RecipeError: A method does not fit the model or asks for data it did not declare.
        """
        self._check_order(model, factory)
        self._check_data(data)
        run = run or Run(seed=seed, progress=progress)
        run.original = lambda: _read_graph(model)
        given = data if data is not None else NOTHING
        methods = self.methods if after is None else self.methods[-1:]
        with contextlib.ExitStack() as open_files:
            if after is None and self._starts_with_torch:
                net = _open_module(model, factory)
            else:
                net = _open_graph(after or model, methods, root, open_files)
            for method in methods:
                if method.form == "onnx" and isinstance(net, TorchNetwork):
                    net = _export(net, model)
                net = method.apply(net, restrict(given, method), run)
            return _store(net, model, self, data, root)

    def check(
        self, model: Model, data: Data | None = None, *, factory: Factory | None = None
    ) -> None:
        """Check all that can be checked before `apply` computes anything.

        Args:
            model: What would be changed.
            data: What the methods would read; every split that they need must fit the model.
            factory: Builds the torch network of `model`.

        Raises:
            RecipeError: The methods do not fit the model or one another, or need data.
            DataError: A split is missing, does not fit the model, or holds tokens that the model
                does not know.
        """
        from ingot.models.vocabulary import check_rows

        self._check_order(model, factory)
        self._check_data(data)
        needed = {name for method in self.methods for name in method.needs} - {"labels"}
        for name in sorted(needed if data is not None else ()):
            check_rows(model, (data or NOTHING).split(name))

    @property
    def _starts_with_torch(self) -> bool:
        return bool(self.methods) and self.methods[0].form == "torch"

    def _check_data(self, data: Data | None) -> None:
        reading = next((m for m in self.methods if m.needs), None)
        if data is None and reading is not None:
            raise RecipeError(
                f"{_label(reading)} must be given data: it reads {sorted(reading.needs)}; got "
                "none. Give it data (--data)."
            )

    def _check_order(self, model: Model, factory: Factory | None) -> None:
        forms = [method.form for method in self.methods]
        first_onnx = forms.index("onnx") if "onnx" in forms else len(forms)
        late = next((m for m in self.methods[first_onnx:] if m.form == "torch"), None)
        if late is not None:
            raise RecipeError(
                "Methods that edit torch modules must come before those that edit ONNX graphs; "
                f"got {_label(late)} after one. Move it to the front: "
                "there is no way back from ONNX."
            )
        if self._starts_with_torch and (factory is None or model.weights_path is None):
            got = "no factory" if factory is None else "an ONNX-only model"
            raise RecipeError(
                f"{_label(self.methods[0])} edits a torch network, so the model must have torch "
                f"weights and the caller must pass its factory; got {got}. Load the model with "
                "load_model('package.module:function', weights=...) and call "
                "recipe.apply(model, data, factory=function)."
            )


class _Declared(Mapping[str, Split]):
    """Splits of which only the declared ones are handed out."""

    def __init__(self, splits: Mapping[str, Split], method: Method) -> None:
        self._splits, self._method = splits, method

    def __getitem__(self, name: str) -> Split:
        split = self._splits[name]
        if name not in self._method.needs:
            raise RecipeError(
                f"{_label(self._method)} must list {name!r} in `needs` before it reads that split; "
                f"it lists {sorted(self._method.needs)}. Add it to the class."
            )
        if "labels" in self._method.needs:
            return split
        return Split(split.inputs, None, split.rows_per_example, split.labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


def restrict(data: Data, method: Method) -> Data:
    """Return `data` as `method` may see it: declared splits only, targets only with `labels`."""
    return Data(_Declared(data.splits, method), data.task, data.digest, data.classes, data.name)


def make_method(name: str, settings: Mapping[str, Json]) -> Method:
    """Return the method called `name` with these settings.

    Args:
        name: An entry point in the group `ingot.methods` (`quantize-static`) or
            `package.module:Class`.
        settings: Values by setting name; JSON lists become tuples.

    Raises:
        RecipeError: Unknown name or setting, or a value that the method refuses.
    """
    cls = _find_class(name)
    known = set(cls.__dataclass_fields__)  # type: ignore[attr-defined] # every Method is a dataclass
    unknown = sorted(set(settings) - known)
    if unknown:
        raise RecipeError(
            f"Settings of {cls.__name__} must be among its fields; got {unknown[0]!r}. "
            + suggest(unknown[0], known)
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"{cls.__name__} must be built from valid settings; got {dict(settings)}: {error}."
        ) from error


def method_names() -> dict[str, str]:
    """Return the short names of every installed method and where each lives."""
    return {e.name: e.value for e in entry_points(group=METHOD_GROUP)}


def _find_class(name: str) -> type[Method]:
    target = method_names().get(name, name)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"Method {name!r} must be importable; {error}. Check the spelling."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise RecipeError(
            f"A method must be 'package.module:Class' or an installed name; got {name!r}. "
            + suggest(name, method_names())
        )
    return found


def _toml(value: Json) -> str:
    # JSON's strings, numbers and lists are TOML's too, but for the one control character DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _label(method: Method) -> str:
    cls = type(method)
    changed = [
        f"{key}={getattr(method, key)}"
        for key, spec in cls.__dataclass_fields__.items()  # type: ignore[attr-defined] # a dataclass
        if getattr(method, key) != spec.default
    ]
    return f"{cls.__name__}({', '.join(changed)})" if changed else cls.__name__


def _open_module(model: Model, factory: Factory | None) -> Network:
    from ingot.models.torch_format import rebuild_module

    assert factory is not None
    return TorchNetwork(copy.deepcopy(rebuild_module(model, factory)))


def _open_graph(
    model: Model, methods: tuple[Method, ...], root: Path | None, open_files: contextlib.ExitStack
) -> Network:
    """Return the graph, its weights left on disk if they are many and every method can do so."""
    if not (model.path / DATA_FILE).is_file():
        return _read_graph(model)
    whole = next((method for method in methods if not method.streams), None)
    if whole is None:
        scratch = root or store_root()
        from ingot.models.onnx_format import open_onnx

        return open_files.enter_context(open_onnx(model.onnx_path, scratch=scratch))
    size = (model.path / DATA_FILE).stat().st_size
    if size >= INLINE_LIMIT:
        raise RecipeError(
            f"{_label(whole)} must have the whole model in one graph, so its weights must be less "
            f"than {INLINE_LIMIT:,} bytes; got {size:,}. Use QuantizeWeights: it reads one layer "
            "at a time."
        )
    return _read_graph(model)


def _read_graph(model: Model) -> OnnxNetwork:
    from ingot.models.onnx_format import read_onnx

    return OnnxNetwork(read_onnx(model.onnx_path))


def _export(net: TorchNetwork, model: Model) -> OnnxNetwork:
    from ingot.models.torch_format import example_for, export_module

    return OnnxNetwork(export_module(net.module, example_for(model.signature)))


def _store(
    net: Network, parent: Model, recipe: Recipe, data: Data | None, root: Path | None
) -> Model:
    from ingot.models.torch_format import weights_file

    lineage = Lineage(
        "recipe",
        builder=parent.lineage.builder if isinstance(net, TorchNetwork) else None,
        parent=parent.digest,
        recipe=recipe.digest,
        data=None if data is None else data.digest,
        notes={"methods": recipe.label},
    )
    extra = {p.name: p for p in (parent.tokenizer_path, parent.generation_path) if p}
    name = f"{parent.name}-{short(recipe.digest)[:6]}"
    if isinstance(net, TorchNetwork):
        graph = _export(net, parent)
        with weights_file(net.module) as path:
            return store_model(
                graph.proto, lineage=lineage, name=name, extra=extra | {path.name: path}, root=root
            )
    assert isinstance(net, OnnxNetwork)
    return store_model(
        net.proto, lineage=lineage, name=name, extra=extra, root=root, files=net.files
    )
