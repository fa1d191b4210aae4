from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from ingot.compress.method import Method
from ingot.compress.recipe import Recipe, make_method
from ingot.compress.run import Run
from ingot.core.errors import DataError, RecipeError
from ingot.data.data import Data, Split, Task
from ingot.models.store import open_model


@dataclass(frozen=True)
class Scale(Method):
    """Multiply one weight of the graph."""

    form: ClassVar = "onnx"
    weight: str = "w3"
    factor: float = 2.0
    skip: tuple[str, ...] = ()

    def __post_init__(self):
        if self.factor == 99:
            raise ValueError("too big")

    def apply(self, net, data, run):
        for tensor in net.proto.graph.initializer:
            if tensor.name == self.weight:
                value = numpy_helper.to_array(tensor) * np.float32(self.factor)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
                run.log(tensor.name, factor=self.factor)
        return net


@dataclass(frozen=True)
class Peek(Method):
    """Read a split that may not be declared."""

    form: ClassVar = "onnx"
    needs: ClassVar = frozenset({"calibration"})
    name_of_split: str = "test"

    def apply(self, net, data, run):
        split = data.split(self.name_of_split)
        run.log("seen", targets="none" if split.targets is None else "some")
        return net


@dataclass(frozen=True)
class Torchy(Method):
    """Edit a torch module."""

    def apply(self, net, data, run):
        return net


@pytest.fixture
def data(images):
    x, y = images
    splits = {"calibration": Split({"image": x[:8]}, y[:8]), "test": Split({"image": x[8:]}, y[8:])}
    return Data(splits, Task.CLASSIFICATION, "sha256:" + "0" * 64)


def weight_of(model, name):
    graph = onnx.load(model.onnx_path).graph
    return next(numpy_helper.to_array(t) for t in graph.initializer if t.name == name)


def test_apply_gives_a_new_model_and_leaves_the_old_one_alone(cnn, data, tmp_path):
    before = weight_of(cnn, "w3")
    changed = Recipe((Scale(),)).apply(cnn, data, root=tmp_path / "store")

    np.testing.assert_allclose(weight_of(changed, "w3"), 2 * before)
    np.testing.assert_array_equal(weight_of(cnn, "w3"), before)
    assert open_model(changed.path).digest == changed.digest != cnn.digest


def test_the_lineage_names_parent_recipe_and_data(cnn, data, tmp_path):
    recipe = Recipe((Scale(),))
    changed = recipe.apply(cnn, data, root=tmp_path / "store")

    assert changed.lineage.parent == cnn.digest
    assert changed.lineage.recipe == recipe.digest
    assert changed.lineage.data == data.digest


def test_methods_are_applied_in_order(cnn, data, tmp_path):
    run = Run()
    Recipe((Scale(factor=3.0), Scale(factor=5.0))).apply(cnn, data, root=tmp_path / "s", run=run)

    assert run.records == [("w3", {"factor": 3.0}), ("w3", {"factor": 5.0})]


def test_a_method_that_reads_an_undeclared_split_is_stopped(cnn, data):
    with pytest.raises(RecipeError, match="must list 'test' in `needs`"):
        Recipe((Peek(),)).apply(cnn, data)


def test_targets_are_hidden_from_a_method_that_does_not_declare_labels(cnn, data, tmp_path):
    run = Run()
    Recipe((Peek("calibration"),)).apply(cnn, data, root=tmp_path / "s", run=run)

    assert run.records == [("seen", {"targets": "none"})]


def test_torch_methods_after_onnx_methods_are_refused_before_any_work(cnn, data):
    with pytest.raises(RecipeError, match="no way back from ONNX"):
        Recipe((Scale(), Torchy())).apply(cnn, data)


def test_torch_methods_need_a_factory(cnn, data):
    with pytest.raises(RecipeError, match="must pass its factory; got no factory"):
        Recipe((Torchy(),)).apply(cnn, data)


def test_torch_methods_need_torch_weights(cnn, data):
    with pytest.raises(RecipeError, match="got an ONNX-only model"):
        Recipe((Torchy(),)).apply(cnn, data, factory=lambda: None)


def test_a_recipe_survives_the_trip_through_toml(tmp_path):
    recipe = Recipe((Scale(factor=0.25, skip=("a", "b")), Scale(weight='quo"te\\slash\nline')))
    again = Recipe.read(recipe.write(tmp_path / "recipe.toml"))

    assert again == recipe
    assert again.digest == recipe.digest


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
)
def test_any_setting_survives_the_trip_through_toml(factor, skip):
    import tomllib

    recipe = Recipe((Scale(factor=factor, skip=tuple(skip)),))
    table = tomllib.loads(recipe.to_toml())["method"][0]

    assert make_method(table.pop("name"), table) == recipe.methods[0]


def test_the_label_shows_what_differs_from_the_defaults():
    assert Recipe((Scale(), Scale(factor=3.0))).label == "Scale + Scale(factor=3.0)"
    assert Recipe().label == "unchanged"


def test_order_changes_the_digest():
    assert Recipe((Scale(), Torchy())).digest != Recipe((Torchy(), Scale())).digest


@pytest.mark.parametrize("text", ["[[method]\n", "\xff\xfe"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.toml").write_text(text, encoding="latin-1")

    with pytest.raises(RecipeError, match="must be a TOML file"):
        Recipe.read(tmp_path / "r.toml")


def test_an_unknown_method_gets_the_nearest_name():
    with pytest.raises(RecipeError, match="Did you mean 'quantize-static'"):
        make_method("quantize-statik", {})


def test_a_class_that_is_no_method_is_refused():
    with pytest.raises(RecipeError, match="must be 'package.module:Class'"):
        make_method("collections:OrderedDict", {})


@pytest.mark.parametrize("name", ["no_such_module:X", "collections:NoSuch", ":X"])
def test_a_method_that_cannot_be_imported_is_refused(name):
    with pytest.raises(RecipeError, match="importable|package.module:Class"):
        make_method(name, {})


def test_an_unknown_setting_gets_the_nearest_name():
    with pytest.raises(RecipeError, match="Did you mean 'factor'"):
        make_method(Scale().name, {"facter": 2.0})


def test_a_value_that_the_method_refuses_is_explained():
    with pytest.raises(RecipeError, match="valid settings.*too big"):
        make_method(Scale().name, {"factor": 99})


def test_a_check_refuses_what_apply_would_fail_at(cnn, data):
    bare = Data({"test": data.split("test")}, data.task, data.digest)
    small = Split({"image": data.split("calibration").inputs["image"][..., :4]})
    wrong = Data({"calibration": small}, Task.NONE, data.digest)

    for rows, error, words in (
        (None, RecipeError, "must be given data"),
        (bare, DataError, "calibration"),
        (wrong, DataError, "image"),
    ):
        with pytest.raises(error, match=words):
            Recipe((Peek(),)).check(cnn, rows)
    with pytest.raises(RecipeError, match="factory"):
        Recipe((Torchy(),)).check(cnn, data)
    Recipe((Peek(), Scale())).check(cnn, data)


def test_a_check_reads_only_the_splits_that_the_methods_need(encoder, tokens):
    strange = tokens | {"input_ids": tokens["input_ids"] + 10_000}
    splits = {"calibration": Split(strange), "test": Split(tokens)}
    texts = Data(splits, Task.NONE, "sha256:" + "0" * 64)

    Recipe((Scale(),)).check(encoder, texts)
    with pytest.raises(DataError, match="another tokenizer"):
        Recipe((Peek(),)).check(encoder, texts)
