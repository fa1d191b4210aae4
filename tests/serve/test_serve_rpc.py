"""The gRPC door: `grpc` alone, and Triton's own client where it is installed."""

import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ingot.core.errors import MissingExtraError, ServeError
from ingot.observe.log import ObservationLog
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Tracing
from ingot.serve.rpc.door import Answer
from ingot.serve.rpc.messages import SERVICE, messages
from ingot.serve.server import serve_in_thread

X = np.array([[1.5, -2.0]], np.float32)
MASK = np.array([1], np.int64)


@pytest.fixture
def grpc():
    return pytest.importorskip("grpc")


def stub_of(grpc, running, tls=None):
    """Return `ask(method, request, metadata=..., timeout=...)` on a channel, and the channel."""
    channel = grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}")

    def ask(method, request, **more):
        call = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages()[method + "Response"].FromString,
        )
        return call(request, timeout=more.pop("timeout", 20), **more)

    return ask, channel


@pytest.fixture
def served(grpc, endpoint, doubler):
    with serve_in_thread(replace(endpoint, grpc_port=0), doubler) as running:
        ask, channel = stub_of(grpc, running)
        yield SimpleNamespace(ask=ask, running=running)
        channel.close()


def infer_request(x=X, name="doubler", **more):
    request = messages()["ModelInferRequest"](model_name=name, **more)
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.inputs.add(name="mask", datatype="INT64", shape=MASK.shape)
    request.raw_input_contents.extend([x.tobytes(), MASK.tobytes()])
    return request


def test_an_inference_with_raw_contents_is_answered_in_raw_contents(served):
    answer = served.ask("ModelInfer", infer_request(id="a7", model_version="3"))

    assert (answer.model_name, answer.model_version, answer.id) == ("doubler", "3", "a7")
    assert [(t.name, t.datatype, list(t.shape)) for t in answer.outputs] == [
        ("y", "FP32", [1, 2]), ("kept", "BOOL", [1]),
    ]  # fmt: skip
    assert list(answer.raw_output_contents) == [(X * 2).tobytes(), b"\x01"]


def test_typed_contents_are_read_too_and_one_output_may_be_asked_for(served):
    request = messages()["ModelInferRequest"](model_name="doubler")
    request.inputs.add(
        name="x", datatype="FP32", shape=[1, 2], contents={"fp32_contents": [1.5, -2.0]}
    )
    request.inputs.add(name="mask", datatype="INT64", shape=[1], contents={"int64_contents": [1]})
    request.outputs.add(name="y")

    answer = served.ask("ModelInfer", request)

    assert list(answer.raw_output_contents) == [(X * 2).tobytes()]


def refusal(served, grpc, request, **more):
    with pytest.raises(grpc.RpcError) as caught:
        served.ask("ModelInfer", request, **more)
    return caught.value.code().name, caught.value.details()


def test_what_does_not_fit_is_an_invalid_argument_in_the_words_of_rest(served, grpc):
    code, words = refusal(served, grpc, infer_request(np.ones((1, 3), np.float32)))

    assert code == "INVALID_ARGUMENT"
    assert "Shape of input 'x'" in words


def test_an_unknown_model_is_not_found(served, grpc):
    code, words = refusal(served, grpc, infer_request(name="dubler"))

    assert code == "NOT_FOUND"
    assert "Did you mean 'doubler'" in words


def test_an_engine_that_breaks_is_internal_without_its_reason(served, grpc):
    code, words = refusal(served, grpc, infer_request(np.array([[-1, 0]], np.float32)))

    assert code == "INTERNAL"
    assert "secret" not in words


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.raw_input_contents.pop(), "all 2 inputs or for none"),
        (lambda r: r.ClearField("raw_input_contents"), "binary_data_size"),
        (lambda r: setattr(r.inputs[0], "datatype", "BYTES"), "Datatype of input"),
    ],
)
def test_contents_that_do_not_add_up_are_refused(served, grpc, change, complaint):
    request = infer_request()
    change(request)

    code, words = refusal(served, grpc, request)

    assert code == "INVALID_ARGUMENT"
    assert complaint in words


def test_typed_contents_beyond_their_type_are_refused(served, grpc):
    request = messages()["ModelInferRequest"](model_name="doubler")
    request.inputs.add(name="x", datatype="INT8", shape=[1], contents={"int_contents": [300]})

    assert "must fit INT8" in refusal(served, grpc, request)[1]


def test_server_and_model_say_how_they_are(served):
    live = served.ask("ServerLive", messages()["ServerLiveRequest"]())
    ready = served.ask("ServerReady", messages()["ServerReadyRequest"]())
    model = served.ask("ModelReady", messages()["ModelReadyRequest"](name="doubler"))
    served.running.state.is_draining = True
    draining = served.ask("ServerReady", messages()["ServerReadyRequest"]())
    served.running.state.is_draining = False

    assert (live.live, ready.ready, model.ready, draining.ready) == (True, True, True, False)


def test_metadata_are_those_of_rest(served):
    server = served.ask("ServerMetadata", messages()["ServerMetadataRequest"]())
    model = served.ask("ModelMetadata", messages()["ModelMetadataRequest"](name="doubler"))

    assert server.name == "ingot"
    assert (model.name, list(model.versions)) == ("doubler", ["3"])
    assert (model.inputs[0].name, list(model.inputs[0].shape)) == ("x", [-1, 2])


def test_a_call_leaves_one_observation_like_any_other(served, endpoint):
    served.ask(
        "ModelInfer", infer_request(), metadata=[("x-request-id", "r1"), ("ingot-unit", "robot")]
    )
    served.running.stop()

    with ObservationLog(endpoint.log) as log:
        (seen,) = log.read()
    assert (seen.request_id, seen.unit_key, seen.status) == ("r1", "robot", 200)


def test_the_deadline_of_a_call_is_the_deadline_of_the_request(grpc, endpoint):
    class Slow:
        calls = 0

        def run(self, feeds):
            self.calls += 1
            if self.calls > 2:
                time.sleep(0.5)
            return {"y": feeds["x"], "kept": feeds["mask"] > 0}

        def close(self):
            return

    with serve_in_thread(replace(endpoint, grpc_port=0), Slow()) as running:
        running.state.inline_bytes = 0
        ask, channel = stub_of(grpc, running)
        with pytest.raises(grpc.RpcError) as caught:
            ask("ModelInfer", infer_request(), timeout=0.1)
        channel.close()

    assert caught.value.code().name == "DEADLINE_EXCEEDED"


def test_calls_need_a_key_where_requests_do(grpc, endpoint, doubler, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    text, _ = store.create("robot", ["infer:doubler"])
    access = Access(keys=tmp_path / "keys.sqlite")
    with serve_in_thread(replace(endpoint, grpc_port=0, access=access), doubler) as running:
        ask, channel = stub_of(grpc, running)
        served = SimpleNamespace(ask=ask)
        without, _ = refusal(served, grpc, infer_request())
        metadata = [("authorization", f"Bearer {text}")]
        answer = ask("ModelInfer", infer_request(), metadata=metadata)
        other, _ = refusal(served, grpc, infer_request(name="other"), metadata=metadata)
        channel.close()

    assert (without, other) == ("UNAUTHENTICATED", "PERMISSION_DENIED")
    assert len(answer.outputs) == 2


def test_a_taken_grpc_port_is_refused(grpc, endpoint, doubler):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        with pytest.raises(ServeError, match="--grpc-port"):
            serve_in_thread(replace(endpoint, grpc_port=other.getsockname()[1]), doubler)


def test_without_grpc_the_extra_is_named(endpoint, doubler, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "grpc", None)

    with pytest.raises(MissingExtraError, match=r"ingot\[grpc\]"):
        serve_in_thread(replace(endpoint, grpc_port=0), doubler)


def test_an_answer_that_is_no_problem_document_is_refused_in_words_all_the_same():
    answer = Answer()
    answer.body = b"Internal Server Error"

    assert "Its log says why" in answer.words


def stream_of(grpc, running, sent, **more):
    """Return the answers to requests that are sent in one call."""
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages()["ModelStreamInferResponse"].FromString,
        )
        return list(call(iter(sent), timeout=20, **more))


def test_a_stream_of_inferences_is_answered_once_each_in_order(grpc, endpoint):
    class Uneven:
        def run(self, feeds):
            time.sleep(0.2 if feeds["x"][0, 0] == 0 else 0)  # the first is the last to be ready
            return {"y": feeds["x"], "kept": feeds["mask"] > 0}

        def close(self):
            return

    with serve_in_thread(replace(endpoint, grpc_port=0), Uneven()) as running:
        running.state.inline_bytes = 0
        sent = [infer_request(np.full((1, 2), at, np.float32), id=str(at)) for at in range(4)]
        found = [answer.infer_response for answer in stream_of(grpc, running, sent)]

    assert [answer.id for answer in found] == ["0", "1", "2", "3"]
    assert [np.frombuffer(answer.raw_output_contents[0], np.float32)[0] for answer in found] == [
        0, 1, 2, 3
    ]  # fmt: skip
    assert all(answer.parameters["triton_final_response"].bool_param for answer in found)


def test_an_inference_in_a_stream_that_is_refused_says_so_and_the_next_is_answered(served, grpc):
    short = infer_request(id="b")
    short.raw_input_contents.pop()
    bad = infer_request(np.ones((1, 3), np.float32), id="a")

    found = stream_of(grpc, served.running, [bad, short, infer_request(id="c")])

    assert [answer.infer_response.id for answer in found] == ["a", "b", "c"]
    assert "Shape of input 'x'" in found[0].error_message
    assert "all 2 inputs or for none" in found[1].error_message
    assert found[2].error_message == ""
    assert len(found[2].infer_response.outputs) == 2


def test_every_inference_of_a_stream_is_an_observation_by_its_own_id(served, grpc, endpoint):
    metadata = [("x-request-id", "call"), ("ingot-unit", "robot")]
    stream_of(grpc, served.running, [infer_request(id="r1"), infer_request()], metadata=metadata)
    served.running.stop()

    with ObservationLog(endpoint.log) as log:
        named, unnamed = log.read()
    assert (named.request_id, named.unit_key, named.status) == ("r1", "robot", 200)
    assert unnamed.request_id not in {"r1", "call"}


def test_a_trace_that_a_grpc_caller_began_is_continued(grpc, endpoint, doubler, monkeypatch):
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    monkeypatch.setattr("ingot.serve.tracing.open_exporter", lambda _: exporter)
    traced = replace(endpoint, grpc_port=0, tracing=Tracing("http://127.0.0.1:1"))
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
    with serve_in_thread(traced, doubler) as running:
        ask, channel = stub_of(grpc, running)
        ask("ModelInfer", infer_request(), metadata=parent)
        channel.close()

    assert {f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans()} == {trace}
    assert len(exporter.get_finished_spans()) == 3
