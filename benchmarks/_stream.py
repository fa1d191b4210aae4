"""Texts over HTTP: tokens per second and time to the first one, ours beside simple servers.

A decoder of GPT-2-small's shape with random weights, in eight bits, greedy. Ours is asked in the
OpenAI form with token ids. llama.cpp needs an interpreter of its own (see `_llama.py`) and is left
out without one; transformers runs the same shape in float32.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import _nets
import numpy as np
from _decoders import INTERPRETER, _llama, _why_missing
from _realtime import Server, _free_port
from _results import Claim, Section
from tokenizers import Tokenizer, models, pre_tokenizers

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.models.load import load_model
from ingot.runtime.machine import physical_cores

CALLERS = (1, 4, 8)
PROMPT, FOLLOW, EACH, ROUNDS = 64, 32, 2, 3  # tokens read and written, texts of a caller, rounds
START_S = 120


@dataclass(frozen=True)
class Heard:
    """What the callers of one server saw: tokens per second of all, seconds to each first token."""

    tokens_per_s: float
    first_s: tuple[float, ...]


class StreamServer(Server):
    """A server of `_stream_servers.py` in a process of its own."""

    def __init__(self, entry: dict) -> None:
        self.name, self.port, self.kind = entry["name"], _free_port(), entry["kind"]
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "entry.json")
        path.write_text(json.dumps(entry))
        script = str(Path(__file__).with_name("_stream_servers.py"))
        words = [entry.get("python", sys.executable), script, self.kind, str(self.port), str(path)]
        self._log = Path(self._folder.name, "server.log").open("wb")  # noqa: SIM115 # __exit__ closes it
        self.process = subprocess.Popen(
            words, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def ask(self, timeout_s: float = 10) -> int | None:
        """Return the status of a page that answers when it is ready."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def write(self, prompt: list[int], count: int) -> tuple[int, float]:
        """Let a text be written; return its tokens, and the seconds to the first."""
        asked = {"prompt": prompt, "max_tokens": count}
        if self.kind.startswith("ours"):
            asked |= {"model": "writer", "temperature": 0, "stream": True, "ignore_eos": True}
            asked |= {"stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            started = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(asked))
            response, first, tokens, last = connection.getresponse(), 0.0, 0, b""
            for line in response:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter() - started
                    tokens, last = tokens + 1, line
        usage = json.loads(last[6:]).get("usage")
        return (usage["completion_tokens"] if usage else tokens), first


def stream(shared: Path, work: Path, factory: str = "gpt2_scores") -> Section:
    """Let 1, 4 and 8 callers ask at once, everybody in turn, several times."""
    del shared
    entries, missing = _entries(work / "stream" / factory, factory)
    heard: dict[tuple[str, int], list[Heard]] = {}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(StreamServer(entry)) for entry in entries]
        order = np.random.default_rng(0)
        for server in servers:
            hear(server, 1, vocab=_vocab(factory), seed=99)  # what is done once is done now
        for at in range(ROUNDS):
            for callers in CALLERS:
                for place in order.permutation(len(servers)):
                    server = servers[place]
                    found = hear(server, callers, vocab=_vocab(factory), seed=at)
                    heard.setdefault((server.name, callers), []).append(found)
    return _section(entries, heard, missing)


def hear(server: StreamServer, callers: int, *, vocab: int, seed: int) -> Heard:
    """Let so many callers ask for a few texts each; the same prompts for everybody."""
    prompts = np.random.default_rng(seed).integers(0, vocab, (callers, EACH, PROMPT)).tolist()
    found: list[tuple[int, float]] = []

    def call(rows: list[list[int]]) -> None:
        found.extend([server.write(row, FOLLOW) for row in rows])

    threads = [threading.Thread(target=call, args=(rows,)) for rows in prompts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    tokens = sum(count for count, _ in found)
    assert tokens == callers * EACH * FOLLOW, f"{server.name} wrote {tokens} tokens"
    return Heard(tokens / seconds, tuple(first for _, first in found))


def _entries(work: Path, factory: str) -> tuple[list[dict], dict[str, str]]:
    work.mkdir(parents=True, exist_ok=True)
    net, missing = getattr(_nets, factory)().eval(), {}
    ours = {"path": str(_model(work, factory)), "threads": physical_cores()}
    entries = [
        {"name": "ingot int8", "kind": "ours", **ours},
        {"name": "ingot int8, one text at a time", "kind": "ours_alone", **ours},
    ]
    try:
        found = _llama(work, net, "Q8_0")
        entries.append(found | {"name": "llama.cpp Q8_0, one text at a time"})
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        missing["llama.cpp"] = _why_missing(error) if INTERPRETER not in os.environ else str(error)
    vocab, width = net.tokens.weight.shape
    shape = {
        "vocab_size": vocab, "n_embd": width, "n_layer": len(net.layers),
        "n_head": net.layers[0].heads, "n_positions": len(net.places.weight),
    }  # fmt: skip
    name = "transformers float32, one text at a time"
    entries.append({"name": name, "kind": "transformers", "shape": shape})
    return [entry | {"threads": physical_cores()} for entry in entries], missing


def _model(work: Path, factory: str) -> Path:
    """Return the folder of our model with a tokenizer of as many words; made once."""
    kept = work / "model.txt"
    if not kept.exists():
        words = {f"w{at}": at for at in range(_vocab(factory))}
        library = Tokenizer(models.WordLevel(words, unk_token="w0"))
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        library.save(str(work / "tokenizer.json"))
        model = load_model(
            f"_nets:{factory}", example={"input_ids": np.ones((2, 16), np.int64)}, name="gpt2",
            tokenizer=work / "tokenizer.json", root=work / "store",
        )  # fmt: skip
        method = QuantizeWeights(bits=8, granularity="row", embeddings=8)
        kept.write_text(str(Recipe((method,)).apply(model, root=work / "store").path))
    return Path(kept.read_text())


def _vocab(factory: str) -> int:
    return 512 if "tiny" in factory else 50257


def _section(
    entries: list[dict], heard: dict[tuple[str, int], list[Heard]], missing: dict[str, str]
) -> Section:
    section = Section()
    for callers in CALLERS:
        for name in (entry["name"] for entry in entries):
            rows = heard[name, callers]
            rates = [row.tokens_per_s for row in rows]
            firsts = 1e3 * np.array([first for row in rows for first in row.first_s])
            section.rows.setdefault("stream", []).append([
                callers, name, f"{np.median(rates):.0f} [{min(rates):.0f}, {max(rates):.0f}]",
                f"{np.median(firsts):.0f}", f"{np.percentile(firsts, 95):.0f}",
            ])  # fmt: skip
    names = [entry["name"] for entry in entries]
    alone, peers = names[1], names[2:]
    most = CALLERS[-1]
    best = max(peers, key=lambda name: np.median([h.tokens_per_s for h in heard[name, most]]))
    lacks = "; ".join(f"{name} is missing: {why}" for name, why in missing.items())
    for other, words in ((alone, "one text at a time"), (best, "best peer")):
        section.claims.append(_claim(heard, names[0], other, words, lacks))
    return section


def _claim(
    heard: dict[tuple[str, int], list[Heard]], mine: str, other: str, words: str, lacks: str
) -> Claim:
    most = CALLERS[-1]
    pairs = zip(heard[mine, most], heard[other, most], strict=True)
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in pairs]
    rates = {
        name: round(float(np.median([h.tokens_per_s for h in heard[name, most]])), 1)
        for name in (mine, other)
    }
    note = f"least and most of {ROUNDS} rounds; {PROMPT} tokens read, {FOLLOW} written; {other}"
    return Claim(
        f"streamed tokens/s, {most} callers at once: ours / {words}", float(np.median(ratios)),
        min(ratios), max(ratios), "x", len(ratios), ">= 1", met=min(ratios) >= 1, peers=rates,
        note=f"{note}. {lacks}" if lacks else note,
    )  # fmt: skip
