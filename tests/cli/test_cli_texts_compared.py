"""`ingot compare` and `predict` of language models that take no mask, and what is served then."""

import pytest

from ingot.runtime.native_engine import NativeEngine

STATUS = NativeEngine().available()
needs_native = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")


@pytest.fixture(scope="module")
def texts(folder):
    rows = ["text", *(chr(65 + at % 26) + chr(97 + at % 17) + "AB"[: at % 3] for at in range(40))]
    (folder / "texts.csv").write_text("\n".join(rows))
    return folder / "texts.csv"


@pytest.fixture
def small(run, folder, tmp_path):
    words = ("--tokenizer", folder / "tokenizer.json", "--method", "quantize-weights")
    done = run("compress", folder / "decoder.onnx", *words, "--out", tmp_path / "small")
    assert done.code == 0, done.err
    return tmp_path / "small"


@pytest.fixture
def compare(run, folder, texts, small):
    def call(*words):
        models = (folder / "decoder.onnx", small, "--tokenizer", folder / "tokenizer.json")
        given = ("--data", texts, "--threads", 1, "--shape", "1x8", "--out", small)
        given += ("--require", "cosine >= 0.5")
        done = run("compare", *models, *given, *words)
        assert done.code == 0, done.err
        return done

    return call


def test_texts_are_answered_by_a_model_that_takes_no_mask(run, folder, texts):
    words = ("--tokenizer", folder / "tokenizer.json", "--data", texts, "--json")

    done = run("predict", folder / "decoder.onnx", *words)

    assert done.code == 0, done.err
    assert len(done.json["outputs"]["logits"]) == 10  # the first rows


@needs_native
def test_a_language_model_is_judged_on_the_engine_that_would_write_its_texts(compare, run, small):
    done = compare()
    run("release", "writer", small, "--stage", "prod")
    served = run("serve", "writer@prod", "--generate", "--dry-run")

    assert "The baseline runs on onnxruntime, the candidate on native" in done.err
    assert "on native fp32" in served.err
    assert "warning" not in served.err


def test_an_engine_without_a_cache_is_warned_of_before_a_start(compare, run, small, caplog):
    compare("--engine", "onnxruntime")
    run("release", "writer", small, "--stage", "prod")

    run("serve", "writer@prod", "--generate", "--dry-run")

    assert "every token reads its whole text again" in caplog.text
    assert "--engine native" in caplog.text
    assert "ingot release writer small" in caplog.text


def test_nodes_are_shown_of_a_model_that_runs_on_an_engine_without_any(compare):
    assert "Where the answers part" in compare("--why").out


def test_a_model_of_images_is_judged_on_onnxruntime(run, files, best):
    words = ("--data", files / "data.npz", "--threads", 1)

    done = run("compare", files / "model.onnx", best, *words)

    assert "The baseline runs on onnxruntime, the candidate on onnxruntime" in done.err
