import threading
from dataclasses import replace

import numpy as np
import pytest

from ingot.core.errors import EngineError
from ingot.models.model import Lineage, Signature, TensorSpec
from ingot.models.store import store_model
from ingot.runtime.buckets import BucketSession, longest, run_rows
from ingot.runtime.cpu import thread_count
from ingot.runtime.engine import EngineConfig, ExecutedNode
from ingot.runtime.engines import open_session
from ingot.testing.tiny import tiny_cnn, toy_tokens

ENGINES = ("onnxruntime", "openvino")
TWO = ("batch", "sequence")


class EchoSession:
    """Gives back its ids per token, and one row of 4 zeros per sentence; remembers shapes."""

    config = EngineConfig()
    signature = Signature(
        (TensorSpec("input_ids", "int64", TWO), TensorSpec("attention_mask", "int64", TWO)),
        (
            TensorSpec("tokens", "int64", (*TWO, 1)),
            TensorSpec("sentence", "float32", ("batch", 4)),
        ),
    )

    def __init__(self):
        self.widths, self.closed = [], False

    def run(self, feeds):
        ids = feeds["input_ids"]
        self.widths.append(ids.shape[1])
        return {"tokens": ids[:, :, None], "sentence": np.ones((len(ids), 4), np.float32)}

    def executed(self):
        return (ExecutedNode("echo", "Echo", is_integer=False),)

    def close(self):
        self.closed = True


def masked(*lengths, columns):
    mask = (np.arange(columns) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": mask * 7, "attention_mask": mask}


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_in_batches_get_the_answers_they_get_alone(encoder, engine):
    session = open_session(encoder, EngineConfig(engine, threads=1))
    tokens = toy_tokens(40, 40)
    alone = [session.run({n: a[i : i + 1] for n, a in tokens.items()}) for i in range(40)]

    found = run_rows(session, tokens, batch_rows=7)

    wanted = np.concatenate([row["embedding"] for row in alone])
    np.testing.assert_allclose(found["embedding"], wanted, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("buckets", [(8,), (16, 32), (32, 64)])
def test_buckets_do_not_change_answers(encoder, tokens, engine, buckets):
    config = EngineConfig(engine, threads=1)
    plain = open_session(encoder, config).run(tokens)["embedding"]

    found = open_session(encoder, replace(config, buckets=buckets)).run(tokens)["embedding"]

    np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["left padding", "holes"])
def test_masks_that_are_not_prefixes_do_not_change_answers(encoder, tokens, engine, kind):
    mask = tokens["attention_mask"].copy()
    if kind == "holes":
        mask[:, 1] = 0
    else:
        mask = mask[:, ::-1].copy()
    feeds = {"input_ids": np.maximum(tokens["input_ids"], 1), "attention_mask": mask}
    config = EngineConfig(engine, threads=1)
    plain = open_session(encoder, config).run(feeds)["embedding"]

    bucketed = open_session(encoder, replace(config, buckets=(8, 16))).run(feeds)["embedding"]
    batched = run_rows(open_session(encoder, config), feeds, batch_rows=5)["embedding"]

    np.testing.assert_allclose(bucketed, plain, atol=1e-5)
    np.testing.assert_allclose(batched, plain, atol=1e-5)


def test_a_bucket_session_pads_to_the_next_bucket():
    echo = EchoSession()

    BucketSession(echo, (4, 8)).run(masked(5, 2, columns=6))

    assert echo.widths == [8]


def test_a_bucket_session_cuts_needless_padding():
    echo = EchoSession()

    BucketSession(echo, (4, 8)).run(masked(3, 2, columns=20))

    assert echo.widths == [4]


def test_rows_beyond_the_last_bucket_run_at_their_own_length():
    echo = EchoSession()

    BucketSession(echo, (4, 8)).run(masked(11, columns=20))

    assert echo.widths == [11]


def test_outputs_per_token_come_back_with_the_columns_of_the_mask():
    found = BucketSession(EchoSession(), (4, 8)).run(masked(2, 6, columns=6))

    np.testing.assert_array_equal(found["tokens"][:, :, 0], masked(2, 6, columns=6)["input_ids"])


def test_an_output_as_wide_as_the_bucket_is_not_taken_for_a_sequence():
    found = BucketSession(EchoSession(), (4,)).run(masked(2, 3, columns=6))

    np.testing.assert_array_equal(found["sentence"], np.ones((2, 4)))


def test_an_output_as_wide_as_one_batch_is_not_taken_for_a_sequence():
    found = run_rows(EchoSession(), masked(2, 4, 6, columns=6), batch_rows=1)

    np.testing.assert_array_equal(found["sentence"], np.ones((3, 4)))


def test_outputs_per_token_of_batches_of_different_lengths_are_joined():
    feeds = masked(6, 2, 4, columns=9)

    found = run_rows(EchoSession(), feeds, batch_rows=1)

    np.testing.assert_array_equal(found["tokens"][:, :, 0], feeds["input_ids"])


def test_rows_are_batched_by_length():
    echo = EchoSession()

    run_rows(echo, masked(6, 1, 5, 2, columns=9), batch_rows=2)

    assert echo.widths == [2, 6]


def test_rows_keep_their_order_when_not_sorted():
    echo = EchoSession()

    run_rows(echo, masked(6, 1, 5, 2, columns=9), batch_rows=2, sort_by_length=False)

    assert echo.widths == [6, 5]


def test_inputs_without_a_mask_run_in_plain_batches(cnn, images):
    session = open_session(cnn, EngineConfig(threads=1))

    found = run_rows(session, {"image": images[0]}, batch_rows=30)["logits"]

    wanted = session.run({"image": images[0]})["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def fixed_at_one(tmp_path):
    proto = tiny_cnn()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return store_model(proto, lineage=Lineage("onnx"), root=tmp_path / "fixed")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_of_one_row_per_call_runs_row_by_row(cnn, images, tmp_path, engine):
    config = EngineConfig(engine, threads=1)
    wanted = run_rows(open_session(cnn, config), {"image": images[0][:5]})["logits"]

    found = run_rows(open_session(fixed_at_one(tmp_path), config), {"image": images[0][:5]})

    np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)


def test_a_bucket_session_passes_inputs_without_a_mask(cnn, images):
    session = open_session(cnn, EngineConfig(threads=1, buckets=(4,)))

    assert session.run({"image": images[0][:2]})["logits"].shape == (2, 4)


def test_without_a_signature_equal_lengths_decide_what_is_a_sequence():
    class Plain(EchoSession):
        signature = None

    found = BucketSession(Plain(), (8,)).run(masked(2, 6, columns=6))

    assert found["tokens"].shape == (2, 6, 1)
    assert found["sentence"].shape == (2, 4)


def test_a_mask_per_pair_of_tokens_is_left_alone():
    echo = EchoSession()
    square = {"input_ids": np.ones((3, 6), np.int64), "attention_mask": np.ones((3, 6, 6))}

    run_rows(echo, square, batch_rows=2)
    BucketSession(echo, (8,)).run(square)

    assert echo.widths == [6, 6, 6]


def test_a_bucket_session_executes_and_closes_what_it_wraps():
    echo = EchoSession()
    session = BucketSession(echo, (4,))

    session.close()

    assert echo.closed
    assert session.executed() == echo.executed()


@pytest.mark.parametrize("buckets", [(0, 4), (8, 4), (4, 4)])
def test_buckets_must_be_positive_and_ascending(buckets):
    with pytest.raises(EngineError, match="positive and ascending"):
        BucketSession(EchoSession(), buckets)


def test_no_rows_are_refused():
    with pytest.raises(EngineError, match="at least one row"):
        run_rows(EchoSession(), masked(columns=4))


def test_batches_of_no_rows_are_refused():
    with pytest.raises(EngineError, match="batch_rows must be at least 1; got 0"):
        run_rows(EchoSession(), masked(2, columns=4), batch_rows=0)


def test_a_mask_without_tokens_has_length_one():
    assert longest(np.zeros((2, 5), np.int64)) == 1


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_rows_that_run_in_streams_come_back_in_their_order(encoder, tokens, engine):
    if thread_count(0) < 2:
        pytest.skip("streams share the cores: this machine gives one")
    plain = open_session(encoder, EngineConfig(engine, threads=2))
    beside = open_session(encoder, EngineConfig(engine, threads=2, streams=2))

    found, truth = (run_rows(s, tokens, batch_rows=2) for s in (beside, plain))

    assert found.keys() == truth.keys()
    for name, value in truth.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_streams_run_at_the_same_time():
    meet = threading.Barrier(2, timeout=20)

    class Slow:
        config = EngineConfig("plug-in", streams=2)

        def run(self, feeds):
            meet.wait()  # passes only if two calls are here at once
            return {"y": feeds["x"] * 2}

    rows = np.arange(8.0)[:, None]

    assert np.array_equal(run_rows(Slow(), {"x": rows}, batch_rows=2)["y"], 2 * rows)


@pytest.mark.parametrize("streams", [0, 2])
def test_streams_must_fit_the_threads_they_share(encoder, streams):
    config = EngineConfig("onnxruntime", threads=1, streams=streams)

    with pytest.raises(EngineError, match=f"streams must be between 1 and 1.*got {streams}"):
        open_session(encoder, config)


def test_streams_are_written_down_and_read_again():
    config = EngineConfig("openvino", threads=2, streams=2)

    assert EngineConfig.from_json(config.to_json()) == config
    assert config.label == "openvino fp32 x2 in 2 streams"
    assert "streams" not in EngineConfig("openvino").to_json()
