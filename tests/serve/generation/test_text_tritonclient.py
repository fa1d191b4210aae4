"""Texts by Triton's own client, as the programs that people have write them."""

import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
from fake_decoder import FakeDecoding
from text_server import Gated, text_of, wait_until

FINAL = "triton_final_response"


class Client:
    """A client with one stream."""

    def __init__(self, port):
        self.found = queue.Queue()
        self.client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        self.client.start_stream(lambda result, error: self.found.put((result, error)))

    def ask(self, text="ABC", name="a", inputs=(), **more):
        given = triton.InferInput("text_input", [1], "BYTES")
        given.set_data_from_numpy(np.array([text.encode()], np.object_))
        parameters = {"temperature": 0.0, "max_tokens": 5, **more.pop("parameters", {})}
        self.client.async_stream_infer(
            "writer", [given, *inputs], request_id=name, parameters=parameters, **more
        )

    def pieces(self):
        """Give pieces until the final answer."""
        while True:
            result, error = self.found.get(timeout=20)
            if error is not None:
                raise error
            words = result.as_numpy("text_output")
            yield None if words is None else words[0].decode()
            if result.get_response().parameters[FINAL].bool_param:
                return


@pytest.fixture
def opened(serving):
    """Give `opened(decoding)`: a client, and the server."""
    left = []

    def start(decoding=None):
        stack = serving(decoding, grpc_port=0)
        _, running = stack.__enter__()
        client = Client(running.grpc_port)
        left.append((client, stack))
        return client, running

    yield start
    for client, stack in left:
        client.client.stop_stream(cancel_requests=True)
        client.client.close()
        stack.__exit__(None, None, None)


def test_a_text_comes_in_pieces_until_the_final_answer(opened):
    client, _ = opened()
    client.ask(outputs=[triton.InferRequestedOutput("text_output")])

    assert list(client.pieces()) == list(text_of("ABC", 5))


def test_the_end_is_apart_for_a_client_that_wants_it(opened):
    client, _ = opened()
    client.ask(enable_empty_final_response=True)

    assert list(client.pieces()) == [*text_of("ABC", 5), None]


def test_parameters_may_be_tensors(opened):
    client, _ = opened()
    most = triton.InferInput("max_tokens", [1], "INT32")
    most.set_data_from_numpy(np.array([2], np.int32))
    stream = triton.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([False]))
    client.ask(inputs=[most, stream], parameters={"max_tokens": 2})

    assert list(client.pieces()) == [text_of("ABC", 2)]


def test_a_text_that_breaks_is_an_error_and_the_stream_goes_on(opened):
    poison = ord(text_of("ABC", 1)) - ord("A")
    client, _ = opened(FakeDecoding(poison=[poison]))
    client.ask(name="bad")
    with pytest.raises(triton.InferenceServerException, match="poisoned"):
        list(client.pieces())
    client.ask(parameters={"max_tokens": 1})

    assert list(client.pieces()) == [text_of("ABC", 1)]


def test_what_is_unknown_is_refused_in_the_words_of_rest(opened):
    client, _ = opened()
    client.ask(parameters={"max_token": 5})

    with pytest.raises(triton.InferenceServerException, match="Did you mean 'max_tokens'"):
        list(client.pieces())


def test_cancelling_the_stream_ends_the_text(opened):
    decoding = Gated()
    client, running = opened(decoding)
    decoding.shut()
    decoding.gate.release(1)
    client.ask(parameters={"max_tokens": 90})
    next(client.pieces())
    client.client.stop_stream(cancel_requests=True)

    def goes_on():
        decoding.gate.release(1)
        return decoding.rows or running.state.in_flight

    wait_until(lambda: not goes_on())

    assert len(decoding.steps) < 80
