"""Triton's own client, an independent one, over both protocols."""

import queue
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from ingot.models.model import Signature, TensorSpec
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Rate
from ingot.serve.server import serve_in_thread

X = np.array([[1.5, -2.0]], np.float32)
MASK = np.array([1], np.int64)
BOTH = pytest.mark.parametrize("kind", ["http", "grpc"])


@pytest.fixture
def clients():
    """Give `clients(running, kind)`: the module and a client of it."""
    opened = []

    def connect(running, kind, **more):
        module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[kind]
        port = running.grpc_port if kind == "grpc" else int(running.url.rpartition(":")[2])
        client = module.InferenceServerClient(f"127.0.0.1:{port}", **more)
        opened.append(client)
        return module, client

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def served(endpoint, doubler):
    with serve_in_thread(replace(endpoint, grpc_port=0), doubler) as running:
        yield running


def tensors(module, x=X, **more):
    """Return both inputs of the doubler; `more` goes to `set_data_from_numpy`."""
    found = [
        module.InferInput("x", x.shape, "FP32"), module.InferInput("mask", MASK.shape, "INT64"),
    ]  # fmt: skip
    found[0].set_data_from_numpy(x, **more)
    found[1].set_data_from_numpy(MASK, **more)
    return found


@BOTH
def test_server_and_model_are_found_alive_ready_and_described(served, clients, kind):
    _, client = clients(served, kind)
    options = {"as_json": True} if kind == "grpc" else {}

    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    assert (client.is_model_ready("doubler"), client.is_model_ready("doubler", "3")) == (True, True)
    assert client.get_server_metadata(**options)["name"] == "ingot"
    model = client.get_model_metadata("doubler", **options)
    assert (model["name"], model["versions"]) == ("doubler", ["3"])
    rows = [(row["name"], row["datatype"], [int(n) for n in row["shape"]])
            for row in model["inputs"]]  # fmt: skip
    assert rows == [("x", "FP32", [-1, 2]), ("mask", "INT64", [-1])]


@BOTH
def test_a_draining_server_is_not_ready(served, clients, kind):
    _, client = clients(served, kind)
    served.state.is_draining = True

    ready = client.is_server_ready(), client.is_model_ready("doubler")
    served.state.is_draining = False

    assert ready == (False, False)


@BOTH
def test_an_inference_comes_back_with_its_id(served, clients, kind):
    module, client = clients(served, kind)

    answer = client.infer("doubler", tensors(module), model_version="3", request_id="a7")

    np.testing.assert_array_equal(answer.as_numpy("y"), X * 2)
    np.testing.assert_array_equal(answer.as_numpy("kept"), [True])
    head = answer.get_response(as_json=True) if kind == "grpc" else answer.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == ("doubler", "3", "a7")


@BOTH
def test_only_the_output_that_is_asked_for_comes_back(served, clients, kind):
    module, client = clients(served, kind)

    answer = client.infer("doubler", tensors(module), outputs=[module.InferRequestedOutput("y")])

    np.testing.assert_array_equal(answer.as_numpy("y"), X * 2)
    assert answer.as_numpy("kept") is None


@pytest.mark.parametrize(("sent", "asked"), [(False, False), (False, True), (True, False)])
def test_tensors_are_json_or_bytes_either_way(served, clients, sent, asked):
    module, client = clients(served, "http")
    outputs = [module.InferRequestedOutput(name, binary_data=asked) for name in ("y", "kept")]

    answer = client.infer("doubler", tensors(module, binary_data=sent), outputs=outputs)

    np.testing.assert_array_equal(answer.as_numpy("y"), X * 2)
    assert ("data" in answer.get_output("y")) is not asked


@BOTH
def test_several_inferences_may_be_under_way(served, clients, kind):
    module, client = clients(served, kind, **({"concurrency": 3} if kind == "http" else {}))
    rows = [np.full((1, 2), at + 1, np.float32) for at in range(6)]
    if kind == "http":
        waiting = [client.async_infer("doubler", tensors(module, x)) for x in rows]
        answers = [one.get_result() for one in waiting]
    else:
        done = [queue.Queue() for _ in rows]
        for x, place in zip(rows, done, strict=True):
            client.async_infer("doubler", tensors(module, x),
                               lambda result, error, put=place.put: put(result))  # fmt: skip
        answers = [place.get(timeout=20) for place in done]

    for x, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)


@BOTH
def test_large_tensors_go_and_come(endpoint, doubler, clients, kind):
    x = np.random.default_rng(0).normal(size=(1 << 20, 2)).astype(np.float32)
    mask = np.ones(len(x), np.int64)
    large = replace(endpoint, grpc_port=0, max_body_bytes=1 << 26)
    with serve_in_thread(large, doubler) as running:
        module, client = clients(running, kind)
        inputs = [
            module.InferInput("x", x.shape, "FP32"),
            module.InferInput("mask", mask.shape, "INT64"),
        ]
        inputs[0].set_data_from_numpy(x)
        inputs[1].set_data_from_numpy(mask)
        answer = client.infer("doubler", inputs)

    np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
    assert answer.as_numpy("kept").all()


REFUSALS = [
    (lambda m: ("doubler", tensors(m, np.ones((1, 3), np.float32))), "Shape of input 'x'",
     "400", "StatusCode.INVALID_ARGUMENT"),
    (lambda m: ("dubler", tensors(m)), "Did you mean 'doubler'", "404", "StatusCode.NOT_FOUND"),
    (lambda m: ("doubler", tensors(m)[:1]), "mask", "400", "StatusCode.INVALID_ARGUMENT"),
    (lambda m: ("doubler", tensors(m, np.array([[-1, 0]], np.float32))), "The engine failed",
     "500", "StatusCode.INTERNAL"),
    (lambda m: ("doubler", tensors(m, np.ones((2000, 2), np.float32))), "4,096|larger than max",
     "413", "StatusCode.RESOURCE_EXHAUSTED"),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("ask", "words", "status", "code"), REFUSALS)
def test_refusals_have_the_status_and_the_words(served, clients, kind, ask, words, status, code):
    module, client = clients(served, kind)
    name, inputs = ask(module)

    with pytest.raises(InferenceServerException, match=words) as caught:
        client.infer(name, inputs)

    assert caught.value.status() == (status if kind == "http" else code)


@BOTH
def test_strings_are_refused_by_a_model_of_numbers(served, clients, kind):
    module, client = clients(served, kind)
    inputs = tensors(module)
    inputs[0] = module.InferInput("x", [1, 2], "BYTES")
    inputs[0].set_data_from_numpy(np.array([[b"1.5", b"-2"]], np.object_))

    with pytest.raises(InferenceServerException, match="Datatype of input 'x'"):
        client.infer("doubler", inputs)


@BOTH
def test_an_unknown_model_is_not_ready_and_has_no_metadata(served, clients, kind):
    _, client = clients(served, kind)

    with pytest.raises(InferenceServerException, match="Did you mean 'doubler'"):
        client.get_model_metadata("dubler")


@pytest.fixture
def slow(endpoint):
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
        yield running


def test_the_deadline_of_the_client_is_kept(slow, clients):
    module, client = clients(slow, "grpc")

    with pytest.raises(InferenceServerException) as caught:
        client.infer("doubler", tensors(module), client_timeout=0.1)

    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_the_timeout_of_a_request_in_microseconds_is_kept(slow, clients):
    module, client = clients(slow, "grpc")

    with pytest.raises(InferenceServerException, match="within 0.1 s") as caught:
        client.infer("doubler", tensors(module), timeout=100_000, client_timeout=20)

    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_a_deadline_in_a_header_is_kept(slow, clients):
    module, client = clients(slow, "http")

    with pytest.raises(InferenceServerException, match="within 0.1 s") as caught:
        client.infer("doubler", tensors(module), headers={"ingot-timeout-ms": "100"})

    assert caught.value.status() == "504"


@BOTH
def test_keys_go_in_headers(endpoint, doubler, clients, tmp_path, kind):
    store = KeyStore(tmp_path / "keys.sqlite")
    key, _ = store.create("robot", ["infer:doubler", "read:doubler"])
    access = Access(keys=tmp_path / "keys.sqlite")
    with serve_in_thread(replace(endpoint, grpc_port=0, access=access), doubler) as running:
        module, client = clients(running, kind)
        proof = {"authorization": f"Bearer {key}"}
        with pytest.raises(InferenceServerException) as without:
            client.infer("doubler", tensors(module))
        with pytest.raises(InferenceServerException) as elsewhere:
            client.infer("other", tensors(module), headers=proof)
        answer = client.infer("doubler", tensors(module), headers=proof)

    np.testing.assert_array_equal(answer.as_numpy("y"), X * 2)
    assert [without.value.status(), elsewhere.value.status()] == (
        ["401", "403"]
        if kind == "http"
        else ["StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED"]
    )


@BOTH
def test_a_rate_is_kept(endpoint, doubler, clients, kind):
    limited = replace(endpoint, grpc_port=0, rate=Rate(0.001, 1))
    with serve_in_thread(limited, doubler) as running:
        module, client = clients(running, kind)
        client.infer("doubler", tensors(module))
        with pytest.raises(InferenceServerException) as caught:
            client.infer("doubler", tensors(module))

    assert caught.value.status() == ("429" if kind == "http" else "StatusCode.RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("dtype", "wire"),
    [("float16", "FP16"), ("float64", "FP64"), ("int8", "INT8"), ("uint16", "UINT16"),
     ("int32", "INT32"), ("uint64", "UINT64"), ("bool", "BOOL")],
)  # fmt: skip
@BOTH
def test_every_element_type_comes_back_as_it_went(endpoint, clients, kind, dtype, wire):
    class Echo:
        def run(self, feeds):
            return {"out": feeds["in"]}

        def close(self):
            return

    specs = tuple((TensorSpec(name, dtype, ("batch",)),) for name in ("in", "out"))
    model = replace(endpoint.model, signature=Signature(*specs))
    given = np.array([0, 1, 1], dtype)
    with serve_in_thread(replace(endpoint, model=model, grpc_port=0), Echo()) as running:
        module, client = clients(running, kind)
        tensor = module.InferInput("in", given.shape, wire)
        tensor.set_data_from_numpy(given)
        found = client.infer("doubler", [tensor]).as_numpy("out")

    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found, given)


def test_a_stream_of_inferences_is_answered_in_order(served, clients):
    module, client = clients(served, "grpc")
    found = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    for at in range(3):
        x = np.full((1, 2), at, np.float32)
        client.async_stream_infer("doubler", tensors(module, x), request_id=str(at))
    client.async_stream_infer("dubler", tensors(module), request_id="bad")
    client.stop_stream()

    rows = [found.get(timeout=20) for _ in range(4)]
    answers = [result for result, _ in rows[:3]]
    assert [answer.get_response().id for answer in answers] == ["0", "1", "2"]
    assert [answer.as_numpy("y")[0, 0] for answer in answers] == [0, 2, 4]
    assert "Did you mean 'doubler'" in rows[3][1].message()
    assert found.empty()


def test_its_stub_is_the_one_that_is_answered(served):
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        live = stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=20).live

    assert live
