import numpy as np
import pytest

from ingot.core.errors import EngineError
from ingot.models.model import Signature, TensorSpec
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.joining import Joiner

PLAIN = Signature(
    (TensorSpec("x", "float32", ("batch", "n")),), (TensorSpec("y", "float32", ("batch",)),)
)
TEXT = Signature(
    tuple(TensorSpec(n, "int64", ("batch", "sequence")) for n in ("input_ids", "attention_mask")),
    (
        TensorSpec("hidden", "float32", ("batch", "sequence", 2)),
        TensorSpec("pooled", "float32", ("batch", 4)),
    ),
)


def text(length, width, rows=1):
    mask = np.zeros((rows, width), np.int64)
    mask[:, :length] = 1
    return {"input_ids": mask * 7, "attention_mask": mask}


def test_requests_that_differ_only_in_rows_share_a_call():
    joiner = Joiner(PLAIN, EngineConfig())
    a, b = {"x": np.zeros((1, 3), np.float32)}, {"x": np.ones((2, 3), np.float32)}

    joined = joiner.join([a, b])
    parts = joiner.part({"y": np.array([10.0, 11.0, 12.0])}, [a, b])

    assert joiner.key(a) == joiner.key(b)
    np.testing.assert_array_equal(joined["x"], [[0, 0, 0], [1, 1, 1], [1, 1, 1]])
    assert [part["y"].tolist() for part in parts] == [[10.0], [11.0, 12.0]]


def test_requests_of_other_widths_do_not():
    joiner = Joiner(PLAIN, EngineConfig())

    assert joiner.key({"x": np.zeros((1, 3))}) != joiner.key({"x": np.zeros((1, 4))})


def test_masked_text_shares_a_call_within_its_bucket_and_gets_its_own_width_back():
    joiner = Joiner(TEXT, EngineConfig(buckets=(4, 8)))
    short, padded, long = text(3, 3), text(2, 6), text(5, 5)

    joined = joiner.join([short, padded])
    hidden = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    first, second = joiner.part({"hidden": hidden, "pooled": np.ones((2, 4))}, [short, padded])

    assert joiner.key(short) == joiner.key(padded) != joiner.key(long)
    assert joined["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(first["hidden"], hidden[:1, :3])
    np.testing.assert_array_equal(second["hidden"][:, :4], hidden[1:])
    assert second["hidden"].shape == (1, 6, 2)
    assert not second["hidden"][:, 4:].any()
    assert second["pooled"].shape == (1, 4)


def test_text_without_buckets_shares_a_call_with_text_of_its_own_width_only():
    joiner = Joiner(TEXT, EngineConfig())

    assert joiner.key(text(3, 5)) == joiner.key(text(4, 5)) != joiner.key(text(3, 3))


def test_an_encoder_answers_joined_requests_as_it_answers_them_alone(encoder, tokens):
    config = EngineConfig(threads=1, buckets=(8, 16))
    joiner, session = Joiner(encoder.signature, config), open_session(encoder, config)
    requests = [{n: a[i : i + 1, :7] for n, a in tokens.items() if n != "target"} for i in range(3)]
    requests = [{n: r[n] for n in ("input_ids", "attention_mask")} for r in requests]

    parts = joiner.part(session.run(joiner.join(requests)), requests)

    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_allclose(
            part["embedding"], session.run(request)["embedding"], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("rows", "sizes", "count"),
    [
        ([1, 1, 1], (), 3),
        ([3, 3, 3], (), 2),
        ([9], (), 1),
        ([1] * 8, (6,), 6),
        ([1] * 8, (2,), 8),
        ([5, 4], (), 1),
    ],
)
def test_a_call_takes_what_fits_or_what_the_engine_has_a_graph_for(rows, sizes, count):
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "float32", ("batch",)),)
    )

    assert Joiner(signature, EngineConfig(batch_sizes=sizes)).choose(rows, 8) == count


@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_a_model_with_a_fixed_number_of_rows_cannot_share(shape):
    signature = Signature((TensorSpec("x", "float32", shape),), PLAIN.outputs)

    with pytest.raises(EngineError, match="without batching"):
        Joiner(signature, EngineConfig())


@pytest.mark.parametrize("output", [np.float32(1), np.zeros(5)])
def test_an_output_without_a_row_per_row_cannot_be_parted(output):
    request = {"x": np.zeros((1, 3), np.float32)}

    with pytest.raises(EngineError, match="must have a row per row"):
        Joiner(PLAIN, EngineConfig()).part({"y": np.asarray(output)}, [request, request])
