"""Models, inputs and doubles for the tests of batches; processes import this by name."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer, models, pre_tokenizers

from ingot.models.load import load_model
from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.serve.batch.batch import Batch
from ingot.serve.batch.run import run_batch
from ingot.serve.batch.work import Part, Worker
from ingot.testing.tiny import tiny_cnn, tiny_transformer

WORDS = ("[PAD]", "[UNK]", "a", "b", "c", "good", "bad", "film", "cat", "dog")


def text_model(folder: Path) -> Model:
    """An encoder of ten words that carries its tokenizer."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    onnx.save(tiny_transformer(), folder / "encoder.onnx")
    return load_model(
        folder / "encoder.onnx", tokenizer=folder / "tokenizer.json", root=folder / "store"
    )


def image_model(folder: Path, *, batch: int | None = None) -> Model:
    """A CNN for grey images of 8 x 8; `batch` fixes the rows of every call."""
    proto = tiny_cnn()
    if batch:
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "cnn.onnx")
    return load_model(folder / "cnn.onnx", root=folder / "store")


def number_model(folder: Path, *, dtype: int = onnx.TensorProto.FLOAT) -> Model:
    """y = 2 x for rows of three numbers."""
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(n, dtype, ["batch", 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "double.onnx")
    return load_model(folder / "double.onnx", root=folder / "store")


def sentences(count: int, *, seed: int = 0, longest: int = 20) -> list[str]:
    """Texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[2:], rng.integers(1, longest + 1))) for _ in range(count)]


def write_csv(path: Path, texts: list[str]) -> Path:
    """Write `id,text`; the ids do not sort like the rows."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows([f"k{(7 * i) % 10007}", text] for i, text in enumerate(texts))
    return path


def write_jsonl(path: Path, rows: list[object]) -> Path:
    """Write one JSON value per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    """Read one JSON value per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def embeddings_one_by_one(model: Model, texts: list[str]) -> np.ndarray:
    """What the engine says to each text alone, without a batch or padding."""
    session = open_session(model, EngineConfig())
    rows = []
    for text in texts:
        ids = np.array([[WORDS.index(word) for word in text.split()]], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        rows.append(session.run(feeds)["embedding"][0])
    session.close()
    return np.array(rows)


def small(model: Model, source: Path, target: Path, **fields) -> Batch:
    """A batch of parts of 16 rows, in this process unless said."""
    given = {"part_rows": 16, "batch_rows": 4, "processes": 1, "threads": 1, **fields}
    return Batch(model, source, target, **given)


class DiesOnce(Worker):
    """Is killed at the first sight of part 2, by whichever process gets there first."""

    def answer(self, part: Part):
        marker = self._work.errors / "killed"
        if part.index == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(part)


class DiesAlways(Worker):
    """Is killed by every part that holds row 40."""

    def answer(self, part: Part):
        if any(row.number == 40 for row in part.rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(part)


class Raises(Worker):
    """Has a bug that part 1 shows."""

    def answer(self, part: Part):
        if part.index == 1:
            raise KeyError("no such thing")
        return super().answer(part)


def main(model: str, source: str, target: str) -> None:
    """Run a batch in two processes; a test kills this one."""
    batch = small(load_model(model), Path(source), Path(target), processes=2, keys=("id",))
    run_batch(batch)
