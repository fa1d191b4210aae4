import threading

import numpy as np
import pytest

from ingot.core.errors import EngineError
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode
from ingot.runtime.onnxruntime_engine import OnnxRuntimeEngine
from ingot.testing.check_engine import check_engine
from ingot.testing.tiny import tiny_cnn


class Wrapped:
    """A good session whose one method a test replaces."""

    def __init__(self, session):
        self.inner, self.config, self.calls, self.kept = session, session.config, 0, None

    def run(self, feeds):
        self.calls += 1
        return self.inner.run(feeds)

    def executed(self):
        return (ExecutedNode("a", "A", is_integer=False),)

    def close(self):
        self.inner.close()


class Fake:
    """ONNX Runtime under another name, with a session of the test's choice."""

    name = "fake"

    def __init__(self, session=Wrapped):
        self.session = session

    def available(self):
        return Availability(ok=True, version="1.0")

    def precisions(self, model):
        return ("fp32",)

    def open(self, model, config):
        return self.session(OnnxRuntimeEngine().open(model, config))


def loose(exception_for):
    """Return a session that answers with zeros where `exception_for(words)` gives None."""

    class Loose(Wrapped):
        def run(self, feeds):
            try:
                return self.inner.run(feeds)
            except EngineError as error:
                other = exception_for(str(error))
                if other is not None:
                    raise other from error
                return {"logits": np.zeros((1, 4), np.float32)}

    return Loose


class WrongNames(Wrapped):
    def run(self, feeds):
        return {"answer": self.inner.run(feeds)["logits"]}


class WrongDtype(Wrapped):
    def run(self, feeds):
        return {n: v.astype(np.float64) for n, v in self.inner.run(feeds).items()}


class WrongRank(Wrapped):
    def run(self, feeds):
        return {n: v[None] for n, v in self.inner.run(feeds).items()}


class Lists(Wrapped):
    def run(self, feeds):
        return {n: v.tolist() for n, v in self.inner.run(feeds).items()}


class DependsOnBatch(Wrapped):
    def run(self, feeds):
        return {n: v - v.max(axis=0) for n, v in self.inner.run(feeds).items()}


class Drifting(Wrapped):
    def run(self, feeds):
        self.calls += 1
        return {n: v + np.float32(1e-5 * self.calls) for n, v in self.inner.run(feeds).items()}


class ReusesItsAnswer(Wrapped):
    def run(self, feeds):
        found = self.inner.run(feeds)["logits"]
        if self.kept is None or self.kept.shape != found.shape:
            self.kept = found
        self.kept[...] = found
        return {"logits": self.kept}


class NotForThreads(Wrapped):
    def run(self, feeds):
        found = self.inner.run(feeds)
        return (
            found
            if threading.current_thread() is threading.main_thread()
            else {n: v + 1 for n, v in found.items()}
        )


class SaysNothing(Wrapped):
    def executed(self):
        return ()


class NeverCloses(Wrapped):
    def close(self):
        self.calls = 0


class ClosesOnce(Wrapped):
    def close(self):
        if self.calls < 0:
            raise RuntimeError("closed twice")
        self.calls = -1
        self.inner.close()


class ForgetsItsConfig(Wrapped):
    def __init__(self, session):
        super().__init__(session)
        self.config = EngineConfig("another")


def test_a_good_engine_passes(cnn, images):
    check_engine(Fake(), cnn, {"image": images[0]})


def test_a_model_of_fixed_batch_is_not_run_with_another(images, tmp_path):
    proto = tiny_cnn()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    fixed = store_model(proto, lineage=Lineage("onnx"), root=tmp_path / "store")

    check_engine(Fake(), fixed, {"image": images[0][:4]})


@pytest.mark.parametrize(
    ("session", "rule"),
    [
        (WrongNames, "outputs must be"),
        (WrongDtype, "must be float32; got float64"),
        (WrongRank, r"output 'logits' must be \('batch', 4\)"),
        (Lists, "must be a numpy array"),
        (DependsOnBatch, "must not depend on the batch"),
        (Drifting, "must give the same bits"),
        (ReusesItsAnswer, "must not change an earlier answer"),
        (NotForThreads, "4 threads at once"),
        (SaysNothing, "must name at least one operation"),
        (NeverCloses, r"run\(\) after close\(\) must raise EngineError"),
        (ForgetsItsConfig, "must carry the config"),
        (loose(lambda words: None), "a wrong input name must raise EngineError; it was accepted"),
        (loose(ValueError), "a wrong input name must raise EngineError; got ValueError"),
        (loose(lambda words: EngineError("no")), "must name 'image_x'"),
        (loose(lambda words: EngineError("bad: image_x")), "must say what must hold"),
    ],
)
def test_a_broken_session_is_caught_by_its_rule(cnn, images, session, rule):
    with pytest.raises(AssertionError, match=rule):
        check_engine(Fake(session), cnn, {"image": images[0]})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("missing", "a missing input"),
        ("dtype", "a wrong dtype"),
        ("rank", "a wrong rank"),
        ("size", "a wrong fixed size"),
        ("extra", "an input too many"),
        ("order", "a wrong byte order"),
    ],
)
def test_each_kind_of_input_that_does_not_fit_is_tried(cnn, images, change, fault):
    def accepts(feeds):
        array = feeds.get("image")
        return {
            "missing": not feeds,
            "extra": len(feeds) == 2 and "image" in feeds,
            "dtype": array is not None and array.dtype == np.float64,
            "rank": array is not None and array.ndim == 5,
            "size": array is not None and array.ndim == 4 and array.shape[1] == 2,
            "order": array is not None and array.dtype == np.dtype(">f4"),
        }[change]

    class Accepts(Wrapped):
        def run(self, feeds):
            return {} if accepts(feeds) else self.inner.run(feeds)

    with pytest.raises(AssertionError, match=f"^{fault} must raise EngineError"):
        check_engine(Fake(Accepts), cnn, {"image": images[0]})


def test_closing_twice_must_be_fine(cnn, images):
    with pytest.raises(
        AssertionError, match=r"a second close\(\) must do nothing; got RuntimeError"
    ):
        check_engine(Fake(ClosesOnce), cnn, {"image": images[0]})


def test_an_engine_that_is_not_available_is_caught(cnn, images, monkeypatch):
    monkeypatch.setattr(Fake, "available", lambda self: Availability(ok=False, reason="no acme"))

    with pytest.raises(AssertionError, match="no acme"):
        check_engine(Fake(), cnn, {"image": images[0]})


def test_an_engine_without_a_version_is_caught(cnn, images, monkeypatch):
    monkeypatch.setattr(Fake, "available", lambda self: Availability(ok=True))

    with pytest.raises(AssertionError, match="must give a version"):
        check_engine(Fake(), cnn, {"image": images[0]})


def test_an_engine_that_does_not_list_the_precision_is_caught(cnn, images, monkeypatch):
    monkeypatch.setattr(Fake, "precisions", lambda self, model: ("bf16",))

    with pytest.raises(AssertionError, match="must list what is opened"):
        check_engine(Fake(), cnn, {"image": images[0]})


def test_an_engine_that_loads_before_it_checks_threads_is_caught(cnn, images, monkeypatch):
    def late(self, model, config):
        raise EngineError(f"the file must be there; got {model.path}. Look again.")

    monkeypatch.setattr(Fake, "open", late)

    with pytest.raises(AssertionError, match="must be refused before the model is read"):
        check_engine(Fake(), cnn, {"image": images[0]})
