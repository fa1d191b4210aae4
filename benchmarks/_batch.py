"""Batches: `ingot batch` beside plain loops over ONNX Runtime; its memory; what a kill loses."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import _nets
import numpy as np
from _results import Claim, Section

from ingot.models.load import load_model
from ingot.models.model import Model
from ingot.runtime.machine import physical_cores

COLUMNS = {"batch": ["runner", "sentences per second", "peak memory, MiB"]}
BATCH_ROWS = 32
PART_ROWS = 512
LOOPS = ("loop", "sorted-loop")


def batch(
    shared: Path, work: Path, *, sentences: int = 4000, rounds: int = 5, kills: int = 10
) -> Section:
    """Embed STS-B sentences with MiniLM in fp32: whole commands, from process start to the file.

    The loops read the same CSV, encode and run 32 texts at a time on every physical core, and
    write the same Parquet; `loop` takes them as they come, `sorted-loop` sorts all by length, which
    needs all of them in memory. Rounds are interleaved.

    Args:
        shared: Folder of the shared data.
        work: Folder to write into.
        sentences: Rows of the input.
        rounds: Runs of each contestant.
        kills: How often the batch is killed in the test of what is lost.
    """
    model = load_model(_nets.minilm_folder(), name="minilm", root=work / "store")
    folder = work / "batch"
    folder.mkdir(parents=True, exist_ok=True)
    source = _write_input(shared, folder / f"{sentences}.csv", sentences)
    seconds, memory = _race(model, source, folder, rounds)
    _check_same(folder, source)
    section = Section()
    for name in ("ingot", *LOOPS):
        rate = sentences / float(np.median(seconds[name]))
        row = [name, round(rate), round(max(memory[name]) / 2**20)]
        section.rows.setdefault("batch", []).append(row)
    for name in LOOPS:
        section.claims.append(_ratio(name, seconds, sentences))
    section.claims.append(_memory(model, source, folder, memory["ingot"]))
    section.claims.append(_killed(model, source, folder, kills))
    return section


def _write_input(shared: Path, path: Path, count: int) -> Path:
    found: list[str] = []
    for name in ("train.csv", "dev.csv"):
        with (shared / "stsb" / name).open(newline="", encoding="utf-8") as stream:
            found += [row[k] for row in csv.DictReader(stream) for k in ("sentence1", "sentence2")]
    texts = (found * (1 + count // len(found)))[:count]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
    return path


def _command(name: str, model: Model, source: Path, target: Path) -> list[str]:
    if name == "ingot":
        words = ["batch", str(model.path), str(source), str(target), "--key", "id", "--fresh"]
        return [sys.executable, "-m", "ingot.cli", *words, "--part-rows", str(PART_ROWS)]
    return [sys.executable, __file__, name, str(model.path), str(source), str(target)]


def _run(command: list[str]) -> tuple[float, int]:
    """Return seconds of a command, and peak memory of all its processes together, in bytes."""
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _memory_of(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begin, peak


def _memory_of(pid: int) -> int:
    """Return the proportional set size of a process and all below it."""
    place, total = Path("/proc") / str(pid), 0
    try:
        lines = (place / "smaps_rollup").read_text().splitlines()
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        children = [c for task in (place / "task").iterdir()
                    for c in (task / "children").read_text().split()]  # fmt: skip
    except (OSError, StopIteration):  # it ended meanwhile
        return total
    return total + sum(_memory_of(int(child)) for child in children)


def _race(
    model: Model, source: Path, folder: Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    names = ["ingot", *LOOPS]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[int]] = {name: [] for name in names}
    for index in range(rounds + 1):
        for name in random.Random(index).sample(names, len(names)):
            took, peak = _run(_command(name, model, source, folder / f"{name}.parquet"))
            if index:  # the first round fills the page cache
                seconds[name].append(took)
                memory[name].append(peak)
    return seconds, memory


def _check_same(folder: Path, source: Path) -> None:
    import pyarrow.parquet as parquet

    ours = parquet.read_table(folder / "ingot.parquet")
    with source.open(newline="", encoding="utf-8") as stream:
        ids = [row["id"] for row in csv.DictReader(stream)]
    if ours["id"].to_pylist() != ids:
        raise RuntimeError("The answers must be in the order of the input; they are not.")
    name = ours.column_names[1]
    found = np.array(ours[name].to_pylist(), np.float32)
    for loop in LOOPS:
        wanted = parquet.read_table(folder / f"{loop}.parquet")[name].to_pylist()
        worst = float(np.abs(found - np.array(wanted, np.float32)).max())
        if worst > 1e-4:
            raise RuntimeError(f"The answers must agree with {loop}; they differ by {worst:g}.")


def _ratio(name: str, seconds: dict[str, list[float]], sentences: int) -> Claim:
    pairs = zip(seconds[name], seconds["ingot"], strict=True)
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    rates = {k: round(sentences / float(np.median(v)), 1) for k, v in seconds.items()}
    return Claim(
        f"Batch of {sentences:,} STS-B sentences, MiniLM fp32: rows/s, ingot / {name}",
        *(float(np.median(ratios)), ratios[0], ratios[-1], "x", len(ratios)),
        target=">= 1",
        met=ratios[0] >= 1,
        peers=rates,
        note=f"whole commands; median and range of {len(ratios)} paired rounds; peers in rows/s",
    )


def _memory(model: Model, source: Path, folder: Path, small: list[int]) -> Claim:
    """Run five times the rows and compare the peaks."""
    large, rows = folder / "large.csv", source.read_bytes().partition(b"\n")[2]
    large.write_bytes(b"id,text\n" + rows * 5)
    _, peak = _run(_command("ingot", model, large, folder / "large.parquet"))
    ratio = peak / max(small)
    return Claim(
        "Batch: peak memory of all its processes, input five times as long / once",
        *(ratio, ratio, ratio, "x", 1),
        target="<= 1.1",
        met=ratio <= 1.1,
        note=f"{peak / 2**20:.0f} MiB",
    )


def _killed(model: Model, source: Path, folder: Path, kills: int) -> Claim:
    """Kill the batch again and again, let it go on, and compare with the run that was let be."""
    target = folder / "killed.parquet"
    command = _command("ingot", model, source, target)
    _run([*command])  # whatever an earlier benchmark left is replaced; this run is the reference
    whole = target.read_bytes()
    for leftover in (target, target.with_name(f"{target.name}.manifest.json")):
        leftover.unlink()
    resume = [word for word in command if word != "--fresh"]
    rng, done = random.Random(0), 0
    for _ in range(kills):
        with subprocess.Popen(resume, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(1.0, 3.0))
            done += process.poll() is None
            process.send_signal(signal.SIGKILL)
    _run(resume)
    manifest = json.loads(target.with_name(f"{target.name}.manifest.json").read_text())
    lost = 0.0 if target.read_bytes() == whole else 1.0
    return Claim(
        f"Batch: bytes that differ after {done} SIGKILLs of its main process (0 none, 1 some)",
        *(lost, lost, lost, "", done),
        target="0",
        met=lost == 0 and done > 0,
        note=f"{manifest['rows']:,} rows in {manifest['parts']} parts",
    )


def _loop(kind: str, model: str, source: str, target: str) -> None:
    """Do by hand what `ingot batch` does, in the way most people write it."""
    import onnxruntime
    import pyarrow
    import pyarrow.parquet as parquet
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    session = onnxruntime.InferenceSession(f"{model}/model.onnx", options)
    wanted, output = {i.name for i in session.get_inputs()}, session.get_outputs()[0].name
    with Path(source).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    order = list(range(len(rows)))
    if kind == "sorted-loop":
        order.sort(key=lambda i: len(rows[i]["text"]))
    answers: list = [None] * len(rows)
    for start in range(0, len(order), BATCH_ROWS):
        index = order[start : start + BATCH_ROWS]
        encoded = tokenizer.encode_batch([rows[i]["text"] for i in index])
        feeds = {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
            "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
        }
        found = session.run([output], {k: v for k, v in feeds.items() if k in wanted})[0]
        for place, i in enumerate(index):
            answers[i] = found[place]
    flat = pyarrow.array(np.stack(answers).reshape(-1))
    column = pyarrow.FixedSizeListArray.from_arrays(flat, answers[0].shape[-1])
    ids = [row["id"] for row in rows]
    parquet.write_table(pyarrow.table({"id": ids, output: column}), target)


if __name__ == "__main__":
    _loop(*sys.argv[1:])
