import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ingot.cli.main import main
from ingot.testing.tiny import tiny_cnn, tiny_decoder, toy_images


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(capsys):
    """Run the command line in this process; give exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return Done(int(stop.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Give a folder with `model.onnx` and `data.npz`, as a user brings them."""
    folder = tmp_path_factory.mktemp("files")
    onnx.save(tiny_cnn(), folder / "model.onnx")
    images, labels = toy_images(700)
    parts = {"calibration": slice(0, 60), "test": slice(60, None)}
    arrays = {f"{name}/image": images[rows] for name, rows in parts.items()}
    arrays |= {f"{name}/target": labels[rows] for name, rows in parts.items()}
    np.savez(folder / "data.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def best(files) -> Path:
    """Give the folder that one `ingot optimize` wrote; made once for all tests of a file."""
    before = os.environ.get("INGOT_HOME")
    os.environ["INGOT_HOME"] = str(files / "home")
    words = [
        "optimize",
        files / "model.onnx",
        "--data",
        files / "data.npz",
        "--out",
        files / "best",
    ]
    try:
        with pytest.raises(SystemExit) as stop:
            main([str(w) for w in [*words, "--threads", 1, "--require", "agreement >= 0.9"]])
    finally:
        os.environ.pop("INGOT_HOME")
        if before is not None:
            os.environ["INGOT_HOME"] = before
    assert stop.value.code == 0
    return files / "best"


@pytest.fixture
def released(run, best):
    """Release what `best` holds as `tiny:1` and promote it to prod."""
    assert run("release", "tiny", best, "--stage", "prod").code == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with `decoder.onnx` and a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("decoder")
    onnx.save(tiny_decoder(), folder / "decoder.onnx")
    letters = [chr(ord("A") + at) for at in range(50)]
    library = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    return folder
