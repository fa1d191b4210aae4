"""A decoder of GPT-2-small's shape, generating: ours beside llama.cpp and OpenVINO.

All weights are the same random ones, in eight bits and in four. Every decoder has a process of its
own, because llama.cpp has an interpreter of its own (see `_llama.py`); they take turns in random
order, and the processes are made anew several times.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import _nets
import numpy as np
import torch
from _llama import LONGEST, MOST
from _results import Claim, Section
from _runners import Race
from scipy import stats

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.models.load import load_model
from ingot.runtime.machine import physical_cores
from ingot.runtime.native_engine import packed_decoder

HERE = Path(__file__).parent
PROMPT, FOLLOW = 128, 64
INTERPRETER = "INGOT_LLAMA_PYTHON"
FORMS = {8: "Q8_0", 4: "Q4_0"}
WHAT = "GPT-2-small shape"
FARTHEST = 0.9  # cosine of two decoders' scores below which they are not the same network
Net = torch.nn.Module


@dataclass(frozen=True)
class Plan:
    """How often everybody runs.

    Attributes:
        threads: Of every decoder.
        processes: Fresh ones for each decoder.
        rounds: In each of them, by number of sequences.
    """

    threads: int
    processes: int
    rounds: dict[int, int]


@dataclass
class Contest:
    """Milliseconds of reading prompts and of one step, by number of sequences."""

    prefill: dict[int, Race] = field(default_factory=dict)
    step: dict[int, Race] = field(default_factory=dict)


def decode(shared: Path, work: Path) -> Section:
    """Race prefill of 128 tokens and decoding of 64 after it, for one sequence and for four."""
    del shared
    section, cores = Section(), physical_cores()
    entries, missing = prepare(work / "decoders", _nets.gpt2_scores)
    tokens = _tokens(work / "decoders", vocab=50257)
    _closeness(section, entries, tokens, _nets.gpt2_scores().eval())
    plans = [Plan(cores, 4, {1: 4, MOST: 2}), Plan(1, 3, {1: 2, MOST: 1})]
    for plan in plans:
        found = contest(entries, plan, tokens, work / "decoders" / f"race{plan.threads}")
        _tabulate(section, found, plan, missing)
        if plan.threads == cores:
            section.claims += _claims(found, plan, missing)
    return section


def prepare(work: Path, factory: Callable[[], Net]) -> tuple[list[dict], dict]:
    """Write everybody's files, once; return the entries, and who is missing with the reason."""
    work.mkdir(parents=True, exist_ok=True)
    net = factory().eval()
    entries = [_ours(work, factory.__name__, bits) for bits in FORMS]
    missing = {}
    for bits, form in FORMS.items():
        try:
            entries.append(_llama(work, net, form))
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            missing[f"llama.cpp {form}"] = _why_missing(error)
        target = work / f"openvino_{bits}.xml"
        if not target.exists():
            from _stateful import write_stateful

            write_stateful(net, target, bits)
        entries.append({"name": f"openvino int{bits}", "kind": "openvino", "path": str(target)})
    return entries, missing


def _ours(work: Path, factory: str, bits: int) -> dict:
    from ingot_native import write_packed

    path = work / f"ours_{bits}.ingot"
    if not path.exists():
        example = {"input_ids": np.ones((2, 16), np.int64)}
        model = load_model(f"_nets:{factory}", example=example, name="gpt2", root=work / "store")
        method = QuantizeWeights(
            bits=bits, granularity="k:32" if bits == 4 else "row", embeddings=bits
        )
        small = Recipe((method,)).apply(model, root=work / "store")
        write_packed(packed_decoder(small), path)
    return {"name": f"ingot int{bits}", "kind": "ours", "path": str(path)}


def _llama(work: Path, net: _nets.Gpt2Scores, form: str) -> dict:
    python, path = os.environ[INTERPRETER], work / f"{form}.gguf"
    subprocess.run([python, "-c", "import llama_cpp, gguf"], check=True, capture_output=True)
    if not path.exists():
        weights, heads = work / "weights.npz", net.layers[0].heads
        tensors = {name: value.numpy() for name, value in net.state_dict().items()}
        np.savez(weights, allow_pickle=False, **tensors)
        command = [python, str(HERE / "_llama.py"), str(weights), str(path), form, str(heads)]
        subprocess.run(command, check=True)
        weights.unlink()
    name = f"llama.cpp {form}"
    return {"name": name, "kind": "llama", "path": str(path), "python": python}


def _why_missing(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{INTERPRETER} must name an interpreter with llama-cpp-python; see _llama.py"
    return f"{os.environ[INTERPRETER]} cannot write GGUF or load llama-cpp-python: {error}"[:200]


def _tokens(work: Path, vocab: int) -> Path:
    rng, path = np.random.default_rng(0), work / "tokens.npz"
    assert PROMPT + FOLLOW <= LONGEST
    prompts = rng.integers(0, vocab, (MOST, PROMPT))
    follow = rng.integers(0, vocab, (MOST, FOLLOW))
    np.savez(path, allow_pickle=False, prompts=prompts, follow=follow)
    return path


class Worker:
    """A decoder in a process of its own, which waits for orders."""

    def __init__(self, entry: dict, threads: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{entry['name'].replace(' ', '_')}.json"
        path.write_text(json.dumps(entry | {"threads": threads}))
        command = [entry.get("python", sys.executable), str(HERE / "_decode_worker.py"), str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self.failed = self._answer().get("failed", "")

    def ask(self, **order: object) -> dict:
        """Give an order and wait for the answer."""
        pipe: IO[str] = self.process.stdin
        pipe.write(json.dumps(order) + "\n")
        pipe.flush()
        return self._answer()

    def stop(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": "the process ended without an answer"}


def contest(entries: Sequence[dict], plan: Plan, tokens: Path, folder: Path) -> Contest:
    """Time everybody, in turn within every round, in several sets of fresh processes."""
    prefill: dict[int, dict[str, list]] = {batch: {} for batch in plan.rounds}
    step: dict[int, dict[str, list]] = {batch: {} for batch in plan.rounds}
    failed: dict[str, str] = {}
    for seed in range(plan.processes):
        workers = {entry["name"]: Worker(entry, plan.threads, folder) for entry in entries}
        failed |= {name: worker.failed for name, worker in workers.items() if worker.failed}
        order = np.random.default_rng(seed)
        for batch, rounds in plan.rounds.items():
            times = _rounds(workers, failed, order, (batch, rounds), tokens)
            for name, rows in times.items():
                prefill[batch].setdefault(name, []).append(np.array([r[0] for r in rows]))
                step[batch].setdefault(name, []).append(np.array([r[1] for r in rows]))
        for worker in workers.values():
            worker.stop()
    return Contest(*({b: _race(found, failed) for b, found in part.items()}
                     for part in (prefill, step)))  # fmt: skip


def _rounds(
    workers: dict[str, Worker],
    failed: dict[str, str],
    order: np.random.Generator,
    size: tuple[int, int],
    tokens: Path,
) -> dict[str, list[tuple[float, float]]]:
    batch, rounds = size
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name in order.permutation(list(workers)):
            if name in failed:
                continue
            found = workers[name].ask(do="time", tokens=str(tokens), batch=batch)
            if "failed" in found:
                failed[str(name)] = found["failed"]
                continue
            times.setdefault(str(name), []).append((found["prefill_ms"], found["step_ms"]))
    return times


def _race(found: dict[str, list], failed: dict[str, str]) -> Race:
    return Race({name: rows for name, rows in found.items() if name not in failed}, failed)


def _closeness(section: Section, entries: Sequence[dict], tokens: Path, net: Net) -> None:
    """Compare everybody's scores after the same tokens; another network is an error."""
    with np.load(tokens) as arrays, torch.no_grad():
        ids = np.concatenate([arrays["prompts"][:1], arrays["follow"][:1]], 1)
        exact = net(torch.from_numpy(ids))[0, -1].double().numpy()
    scores: dict[str, np.ndarray] = {}
    for entry in entries:
        folder, out = tokens.parent / "scores", tokens.parent / "scores.npy"
        worker = Worker(entry, physical_cores(), folder)
        order = {"do": "scores", "tokens": str(tokens), "batch": 1, "out": str(out)}
        if not (worker.failed or worker.ask(**order)):
            scores[entry["name"]] = np.load(out)[0].astype(np.float64)
            out.unlink()
        worker.stop()
    for bits, form in FORMS.items():
        mine = scores[f"ingot int{bits}"]
        for name in (f"ingot int{bits}", f"llama.cpp {form}", f"openvino int{bits}"):
            if name in scores:
                pair = _cosine(scores[name], exact), _cosine(scores[name], mine)
                assert min(pair) >= FARTHEST, f"{name} must be the same network; cosines {pair}"
                section.rows.setdefault("scores", []).append([name, *(f"{c:.5f}" for c in pair)])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _tabulate(section: Section, found: Contest, plan: Plan, missing: dict[str, str]) -> None:
    rows = section.rows.setdefault("decode", [])
    for batch, steps in found.step.items():
        prefill = found.prefill[batch]
        for name in steps.rounds:
            bits = "8" if "8" in name else "4"
            ratio = (
                "1" if name.startswith("ingot") else _shown(steps.ratio(name, f"ingot int{bits}"))
            )
            speed = 1000 * batch * PROMPT / prefill.typical(name)
            value, low, high = interval(steps, name)
            each = f"{value:.2f} [{low:.2f}, {high:.2f}]"
            rows.append([plan.threads, batch, name, f"{speed:.0f}", each, ratio])
        for name, reason in (missing | steps.failed).items():
            rows.append([plan.threads, batch, name, "does not run", reason, ""])


def _claims(found: Contest, plan: Plan, missing: dict[str, str]) -> list[Claim]:
    steps, where = found.step[1], f"one sequence, {plan.threads} threads"
    value, low, high = interval(steps, "ingot int4")
    claims = [Claim(
        f"{WHAT}, int4 (k:32), {where}: a token after a prompt of {PROMPT}", value, low, high,
        "ms/token", len(steps.rounds["ingot int4"]), "<= 5 ms/token", met=high <= 5.0,
        peers={name: round(steps.typical(name), 3) for name in steps.rounds},
    )]  # fmt: skip
    for bits, form in FORMS.items():
        pair = f"ingot int{bits}", f"llama.cpp {form}"
        for what, races in (("a token", found.step), (f"prompt of {PROMPT}", found.prefill)):
            name = f"{WHAT}, {where}, {what}: llama.cpp {form} / ours int{bits}"
            claims.append(_against(name, races[1], pair, missing))
    return claims


def _against(claim: str, run: Race, pair: tuple[str, str], missing: dict[str, str]) -> Claim:
    mine, theirs = pair
    reason = (missing | run.failed).get(theirs)
    if reason:
        return Claim(claim, 0.0, 0.0, 0.0, "x", 0, ">= 1.0", met=False, note=f"not run: {reason}")
    value, low, high = run.ratio(theirs, mine)
    return Claim(
        claim, value, low, high, "x", len(run.rounds[mine]), ">= 1.0", met=low >= 1.0,
        peers={name: round(run.typical(name), 3) for name in run.rounds},
        note=f"{theirs} {run.typical(theirs):.3g} ms, ours {run.typical(mine):.3g} ms",
    )  # fmt: skip


def interval(run: Race, name: str) -> tuple[float, float, float]:
    """Return a runner's milliseconds: geometric mean and 95 % t-interval over processes."""
    logs = np.array([np.log(np.median(times)) for times in run.rounds[name]])
    middle, n = float(logs.mean()), len(logs)
    half = float(stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / n**0.5) if n > 1 else np.inf
    value, low, high = (float(np.exp(v)) for v in (middle, middle - half, middle + half))
    return value, low, high


def _shown(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)
