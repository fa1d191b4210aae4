"""One decoder in one process: `PYTHON benchmarks/_decode_worker.py ENTRY.json`.

Reads a JSON order per line, answers with a JSON line. Only one process of a contest is at work at
a time; the others wait for their line. Needs nothing but numpy and the library of its own decoder,
so that llama.cpp may have an interpreter of its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

SETTLE_S = 0.02


class Decoder(Protocol):
    """What every decoder of the contest can do."""

    def start(self, batch: int) -> None:
        """Forget everything and start `batch` empty sequences."""

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read `(batch, count)` tokens and return the scores after the last, `(batch, vocab)`."""


class Ours:
    """The native engine, from its packed weights."""

    def __init__(self, path: Path, threads: int) -> None:
        from ingot_native import Decoder as Native

        self.decoder = Native(path, threads, cache_tokens=2048)
        self.sequences: list[int] = []

    def start(self, batch: int) -> None:
        for sequence in self.sequences:
            self.decoder.close_sequence(sequence)
        self.sequences = [self.decoder.open_sequence() for _ in range(batch)]

    def read(self, tokens: np.ndarray) -> np.ndarray:
        return self.decoder.step(list(zip(self.sequences, tokens, strict=True)))


class OpenVino:
    """OpenVINO with keys and values kept as state of the graph, in its default settings."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino as ov

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        compiled = ov.Core().compile_model(path, "CPU", settings)
        self.request = compiled.create_infer_request()

    def start(self, batch: int) -> None:
        self.request.reset_state()
        self.rows = np.arange(batch, dtype=np.int32)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        found = self.request.infer({"input_ids": tokens, "beam_idx": self.rows})
        return next(iter(found.values()))


def open_decoder(entry: dict) -> Decoder:
    """Open what an entry of the contest names."""
    kind, path, threads = entry["kind"], Path(entry["path"]), entry["threads"]
    if kind == "llama":
        from _llama import Llama

        return Llama(path, threads)
    return {"ours": Ours, "openvino": OpenVino}[kind](path, threads)


def timed(decoder: Decoder, prompts: np.ndarray, follow: np.ndarray) -> dict:
    """Read prompts, then one token of each sequence at a time; milliseconds of both."""
    _settle(lambda: _run(decoder, prompts[:, :8], follow[:, :2]))
    decoder.start(len(prompts))
    begin = time.perf_counter()
    decoder.read(prompts)
    prefill = time.perf_counter() - begin
    steps = []
    for at in range(follow.shape[1]):
        begin = time.perf_counter()
        decoder.read(follow[:, at : at + 1])
        steps.append(time.perf_counter() - begin)
    return {"prefill_ms": 1000 * prefill, "step_ms": 1000 * float(np.median(steps))}


def _run(decoder: Decoder, prompts: np.ndarray, follow: np.ndarray) -> np.ndarray:
    decoder.start(len(prompts))
    scores = decoder.read(prompts)
    for at in range(follow.shape[1]):
        scores = decoder.read(follow[:, at : at + 1])
    return scores


def _settle(call: Callable[[], object]) -> None:
    """Call until the caches are this decoder's again and the last one's threads are asleep."""
    begin = time.perf_counter()
    call()
    while time.perf_counter() - begin < SETTLE_S:
        call()


def main(arguments: Sequence[str]) -> None:
    """Open the decoder of the entry and answer orders until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print where they like; answers have a way of their own
    entry = json.loads(Path(arguments[0]).read_text())
    try:
        decoder = open_decoder(entry)
    except Exception as error:  # noqa: BLE001 # peers raise what they like; it is reported
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"[:300]}) + "\n")
        return
    answers.write("{}\n")
    known: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        with np.load(order["tokens"]) as arrays:
            prompts, follow = (arrays[name][: order["batch"]] for name in ("prompts", "follow"))
        if order["do"] == "scores":
            np.save(order["out"], np.asarray(_run(decoder, prompts, follow)))
            answers.write("{}\n")
            continue
        if order["batch"] not in known:  # libraries prepare themselves for every new shape
            known.add(order["batch"])
            _run(decoder, prompts, follow[:, :4])
        answers.write(json.dumps(timed(decoder, prompts, follow)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
