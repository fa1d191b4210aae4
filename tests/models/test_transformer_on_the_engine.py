"""From a graph to the native engine's answers, family by family."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from nets_of_transformers import TINY, exported_by_tracing  # noqa: E402 # made of torch
from test_transformer_families import (  # noqa: E402 # made of torch
    DISTIL,
    GPT2,
    LLAMA,
    MODERN,
    encoder,
    headed,
)

from ingot.compress.quantize.weights import QuantizeWeights  # noqa: E402
from ingot.compress.recipe import Recipe  # noqa: E402
from ingot.models.model import Lineage  # noqa: E402
from ingot.models.store import store_model  # noqa: E402
from ingot.runtime.engine import EngineConfig  # noqa: E402
from ingot.runtime.engines import open_session  # noqa: E402
from ingot.runtime.native_engine import NativeEngine  # noqa: E402

STATUS = NativeEngine().available()
pytestmark = pytest.mark.skipif(not STATUS.ok, reason=f"needs ingot-native: {STATUS.reason}")
FAMILIES = {
    "Bert": lambda: encoder("Bert", TINY, pool="mean", normalize=True),
    "BertForSequenceClassification": lambda: headed("Bert", "SequenceClassification", TINY),
    "Roberta": lambda: encoder("Roberta", TINY),
    "DistilBert": lambda: encoder("DistilBert", DISTIL),
    "MPNet": lambda: encoder("MPNet", TINY),
    "ModernBert": lambda: encoder("ModernBert", MODERN),
    "GPT2": lambda: encoder("GPT2", GPT2),
    "Llama": lambda: encoder("Llama", LLAMA),
}


@pytest.mark.filterwarnings("ignore")  # the older exporter warns of itself and of what it traces
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_answers_like_onnx_runtime_from_the_same_file(family, tmp_path):
    proto = exported_by_tracing(FAMILIES[family](), tmp_path)
    model = store_model(proto, lineage=Lineage("onnx"), name=family, root=tmp_path / "store")
    small = Recipe((QuantizeWeights(),)).apply(model, root=tmp_path / "store")
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: np.ones((3, 12), spec.dtype)
        if "mask" in spec.name
        else rng.integers(5, 59, (3, 12)).astype(spec.dtype)
        for spec in model.signature.inputs
    }

    found = open_session(small, EngineConfig("native", threads=1)).run(feeds)
    wanted = open_session(small, EngineConfig("onnxruntime", threads=1)).run(feeds)

    for name, right in wanted.items():
        assert found[name].shape == right.shape
        left, right = found[name].ravel().astype(float), right.ravel().astype(float)
        assert left @ right >= 0.9995 * np.linalg.norm(left) * np.linalg.norm(right)
