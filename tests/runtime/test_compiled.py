import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingot.core.errors import EngineError
from ingot.core.files import digest_file, home
from ingot.models.store import copy_folder, open_model
from ingot.runtime import compiled
from ingot.runtime.compiled import drop_forms
from ingot.runtime.engine import Availability, EngineConfig
from ingot.runtime.engines import compile_ahead, open_session
from ingot.runtime.openvino_engine import OpenVinoEngine, OpenVinoSession
from ingot.testing.tiny import tiny_cnn

pytest.importorskip("openvino")
ONE = EngineConfig("openvino", threads=1)
TEXT = replace(ONE, buckets=(4, 8))


@pytest.fixture
def compilations(monkeypatch):
    """Every shape for which the model itself is compiled, not a blob read."""
    seen = []
    whole = OpenVinoSession.__init__

    def watched(self, model, config, shapes, blob=None):
        if blob is None:
            seen.append(dict(shapes))
        whole(self, model, config, shapes, blob)

    monkeypatch.setattr(OpenVinoSession, "__init__", watched)
    return seen


def pieces() -> list[Path]:
    return [p for p in (home() / "compiled").rglob("*") if p.name in {"any", "1x4", "1x8"}]


def test_a_form_gives_the_answers_of_the_model_without_compiling_it(cnn, images, compilations):
    wanted = open_session(cnn, ONE).run({"image": images[0]})["logits"]
    form = compile_ahead(cnn, ONE)
    del compilations[:]

    found = open_session(cnn, ONE).run({"image": images[0]})["logits"]

    np.testing.assert_array_equal(found, wanted)
    assert compilations == []
    assert form.engine == "openvino"
    assert form.size_bytes > sum(p.stat().st_size for p in pieces()) > 0


def test_every_bucket_has_a_piece_of_its_own_and_other_shapes_are_compiled(
    encoder, tokens, compilations
):
    compile_ahead(encoder, TEXT)
    del compilations[:]
    session = open_session(encoder, TEXT)
    row = {name: array[:1, :8] for name, array in tokens.items()}
    session.run(row)

    assert sorted(p.name for p in pieces()) == ["1x4", "1x8"]
    assert compilations == []
    session.run(tokens)  # many rows: the graph for any shape
    assert compilations == [{}]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 5000])
def test_a_damaged_form_is_passed_over_and_said(cnn, images, caplog, damage):
    wanted = open_session(cnn, ONE).run({"image": images[0]})["logits"]
    compile_ahead(cnn, ONE)
    for path in pieces():
        path.write_bytes(damage)

    with caplog.at_level(logging.WARNING):
        found = open_session(cnn, ONE).run({"image": images[0]})["logits"]

    np.testing.assert_array_equal(found, wanted)
    assert "must be as it was written" in caplog.text


@pytest.mark.parametrize("name", ["form.json", "probes.npz"])
def test_a_form_with_a_file_missing_is_passed_over(cnn, images, caplog, name):
    wanted = open_session(cnn, ONE).run({"image": images[0]})["logits"]
    form = compile_ahead(cnn, ONE)
    (form.folder / name).unlink()

    with caplog.at_level(logging.WARNING):
        found = open_session(cnn, ONE).run({"image": images[0]})["logits"]

    np.testing.assert_array_equal(found, wanted)
    assert "passed over" in caplog.text


def test_a_form_of_another_network_in_its_place_is_found_out_by_its_answers(
    cnn, images, caplog, tmp_path
):
    other = other_than(cnn, tmp_path)
    form, wrong = compile_ahead(cnn, ONE), compile_ahead(other, ONE)
    wanted = OpenVinoEngine().open(cnn, ONE).run({"image": images[0]})["logits"]
    text = (form.folder / "form.json").read_text()
    here, there = (digest_file(f.folder / "any") for f in (form, wrong))
    (form.folder / "any").write_bytes((wrong.folder / "any").read_bytes())
    (form.folder / "form.json").write_text(text.replace(here, there))

    with caplog.at_level(logging.WARNING):
        found = open_session(cnn, ONE).run({"image": images[0]})["logits"]

    np.testing.assert_array_equal(found, wanted)
    assert "answers otherwise" in caplog.text


def test_a_model_changed_in_place_does_not_use_the_form_of_what_it_was(cnn, images, tmp_path):
    folder = copy_folder(cnn, tmp_path / "model")
    compile_ahead(open_model(folder), ONE)
    (folder / "model.onnx").write_bytes(tiny_cnn(seed=1).SerializeToString())
    changed = open_model(folder)
    wanted = OpenVinoEngine().open(changed, ONE).run({"image": images[0]})["logits"]

    np.testing.assert_array_equal(
        open_session(changed, ONE).run({"image": images[0]})["logits"], wanted
    )


@pytest.mark.parametrize("what", ["version", "processor", "config"])
def test_a_form_for_something_else_is_not_opened(cnn, monkeypatch, compilations, what):
    compile_ahead(cnn, ONE)
    del compilations[:]
    if what == "version":
        later = Availability(ok=True, version="9999.1")
        monkeypatch.setattr(OpenVinoEngine, "available", lambda self: later)
    if what == "processor":
        monkeypatch.setattr(compiled, "processor", lambda: "another one")

    open_session(cnn, replace(ONE, batch_sizes=(1,)) if what == "config" else ONE)

    assert len(compilations) == 1


def test_dropped_forms_are_gone(cnn, compilations):
    form = compile_ahead(cnn, ONE)
    drop_forms(cnn)
    del compilations[:]

    open_session(cnn, ONE)

    assert not form.folder.exists()
    assert len(compilations) == 1


def test_an_engine_that_keeps_nothing_has_no_form(cnn):
    assert compile_ahead(cnn, EngineConfig("onnxruntime", threads=1)) is None
    assert not (home() / "compiled").exists()


def test_a_form_that_answers_otherwise_is_not_kept(cnn, tmp_path, monkeypatch):
    other = other_than(cnn, tmp_path)
    whole = OpenVinoEngine.compile_ahead
    monkeypatch.setattr(
        OpenVinoEngine, "compile_ahead", lambda self, model, *rest: whole(self, other, *rest)
    )

    with pytest.raises(EngineError, match="must answer as the model does"):
        compile_ahead(cnn, ONE)
    assert pieces() == []


def other_than(cnn, tmp_path):
    """Return a network of the same shape with other weights."""
    folder = copy_folder(cnn, tmp_path / "other")
    (folder / "model.onnx").write_bytes(tiny_cnn(seed=1).SerializeToString())
    return open_model(folder)
