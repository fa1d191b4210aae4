"""Servers that stream a decoder: `PYTHON _stream_servers.py KIND PORT ENTRY.json`.

`ours` is an endpoint; `ours_alone` the same with one text in a step. The others are a simple server
around a library: `llama` around llama.cpp, in an interpreter of its own (see `_llama.py`), and
`transformers` around `generate`. Like llama-cpp-python's own server, those write one text after the
other.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Write = Callable[[list[int], int], Iterator[int]]


def serve_ours(port: int, entry: dict, most_running: int) -> None:
    """Serve a stored model as an endpoint."""
    from ingot.models.store import open_model
    from ingot.registry.version import Version
    from ingot.runtime.engine import EngineConfig
    from ingot.serve.endpoint import Endpoint, Generation

    model = open_model(Path(entry["path"]))
    config = EngineConfig("native", threads=entry["threads"])
    version = Version("writer", 1, model.digest, model.digest, config, "t", 0)
    settings = Generation(most_running=most_running)
    Endpoint(version, model, port=port, generation=settings, timeout_s=600).run()


def llama(entry: dict) -> Write:
    """Return what writes with llama.cpp, the likeliest token each time."""
    import numpy as np
    from _llama import Llama

    decoder = Llama(Path(entry["path"]), entry["threads"])

    def write(prompt: list[int], count: int) -> Iterator[int]:
        decoder.start(1)
        tokens = np.array([prompt])
        for _ in range(count):
            token = int(decoder.read(tokens)[0].argmax())
            yield token
            tokens = np.array([[token]])

    return write


def transformers(entry: dict) -> Write:
    """Return what writes with transformers' `generate`, in float32."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(entry["threads"])
    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config(**entry["shape"], bos_token_id=0, eos_token_id=0)).eval()

    class Tokens(BaseStreamer):
        """Hands tokens from the thread that generates to the one that sends."""

        def __init__(self) -> None:
            self.found, self.more = [], threading.Condition()

        def put(self, value: torch.Tensor) -> None:
            with self.more:
                self.found.append(value.flatten().tolist())
                self.more.notify()

        def end(self) -> None:
            with self.more:
                self.found.append(None)
                self.more.notify()

        def __iter__(self) -> Iterator[int]:
            place = 1  # the first is the prompt
            while True:
                with self.more:
                    self.more.wait_for(lambda: len(self.found) > place)  # noqa: B023 # called here
                if self.found[place] is None:
                    return
                yield self.found[place][0]
                place += 1

    def write(prompt: list[int], count: int) -> Iterator[int]:
        streamer, ids = Tokens(), torch.tensor([prompt])
        how = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        how |= {"attention_mask": torch.ones_like(ids), "streamer": streamer, "pad_token_id": 0}
        thread = threading.Thread(target=net.generate, args=(ids,), kwargs=how)
        thread.start()
        yield from streamer
        thread.join()

    return write


def serve_simply(port: int, write: Write) -> None:
    """Serve `{"prompt": [...], "max_tokens": n}`, an event for each token, text after text."""
    turn = threading.Lock()

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # the end of the connection is the end of the text

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with turn:
                self.send_response(200)
                self.end_headers()
                for token in write(asked["prompt"], asked["max_tokens"]):
                    self.wfile.write(b'data: {"token": %d}\n\n' % token)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Page).serve_forever()


if __name__ == "__main__":
    kind, number, path = sys.argv[1:]
    facts = json.loads(Path(path).read_text())
    if kind.startswith("ours"):
        serve_ours(int(number), facts, 1 if kind == "ours_alone" else 16)
    else:
        serve_simply(int(number), {"llama": llama, "transformers": transformers}[kind](facts))
