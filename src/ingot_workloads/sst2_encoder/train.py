"""Train the encoder on SST-2 from random weights, in minutes on two cores."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import ingot
from ingot.evaluate.intervals import proportion
from ingot_workloads.sst2_encoder.data import load, parts, train_tokenizer
from ingot_workloads.sst2_encoder.model import Sst2Encoder, sst2_encoder

_UNKNOWN = 1  # id of [UNK]
_FIRST_WORD = 4  # ids below are special tokens


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that decides the result.

    Attributes:
        epochs: Passes over the training split.
        batch: Sentences per step.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        dropout: Share of activations set to zero while training.
        word_dropout: Share of words replaced by `[UNK]` while training.
        smoothing: Label smoothing.
        average: Weight of the past in the moving average of weights, step by step; the average is
            what training returns.
        bfloat16: Do the matrix products of training in bfloat16: 3 times faster where the CPU has
            it. Weights, and all figures in the results, are float32.
        seed: Weights, order, dropout and the choice of calibration sentences.
        threads: Threads of torch; sums differ in the last bit with other counts.
    """

    epochs: int = 5
    batch: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    dropout: float = 0.3
    word_dropout: float = 0.3
    smoothing: float = 0.1
    average: float = 0.99
    bfloat16: bool = True
    seed: int = 0
    threads: int = 2


DEFAULT = Config()


def train(split: "ingot.Split", config: Config) -> Sst2Encoder:
    """Return the trained network in evaluation mode."""
    assert split.targets is not None
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    ids, mask, labels = (
        torch.from_numpy(a)
        for a in (split.inputs["input_ids"], split.inputs["attention_mask"], split.targets)
    )
    net = set_dropout(sst2_encoder(), config.dropout)
    smooth = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * -(-len(ids) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=0.2
    )
    with click.progressbar(range(config.epochs), label="train", file=sys.stderr) as bar:
        for _ in bar:
            for index in batches(mask.sum(1), config.batch):
                longest = int(mask[index].sum(1).max())
                words = drop_words(ids[index, :longest], config.word_dropout)
                with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                    logits = net(words, mask[index, :longest])["logits"]
                loss = torch.nn.functional.cross_entropy(
                    logits.float(), labels[index], label_smoothing=config.smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                smooth.update_parameters(net)
    found: Sst2Encoder = smooth.module
    set_dropout(found, 0.0).eval()
    return found


def set_dropout(net: Sst2Encoder, share: float) -> Sst2Encoder:
    """Set every dropout of the network; the factory builds it without."""
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = share
    return net


def batches(lengths: Tensor, size: int) -> list[Tensor]:
    """Return random batches of indices of about equal length: padding is half of the work else."""
    near = (lengths + 6 * torch.rand(len(lengths))).argsort()
    parts_ = near.split(size)
    return [parts_[i] for i in torch.randperm(len(parts_)).tolist()]


def drop_words(ids: Tensor, share: float) -> Tensor:
    """Replace this share of the words by `[UNK]`, never a special token."""
    gone = (torch.rand(ids.shape) < share) & (ids >= _FIRST_WORD)
    return ids.masked_fill(gone, _UNKNOWN)


def predict(net: Sst2Encoder, split: "ingot.Split", batch: int = 64) -> np.ndarray:
    """Return logits `(rows, 2)` in float32."""
    found = []
    with torch.inference_mode():
        for feeds in split.batches(batch):
            longest = int(feeds["attention_mask"].sum(1).max())
            cut = {name: torch.from_numpy(a[:, :longest]) for name, a in feeds.items()}
            found.append(net(**cut)["logits"].numpy())
    return np.concatenate(found)


def results(net: Sst2Encoder, data: "ingot.Data", config: Config, seconds: float) -> dict[str, Any]:
    """Return what the README shows: accuracy on the test split with its exact interval."""
    split = data.split("test")
    assert split.targets is not None
    right, n = int((predict(net, split).argmax(1) == split.targets).sum()), len(split)
    found = proportion(right, n)
    parameters = sum(p.numel() for p in net.parameters())
    row = [
        f"{parameters:,}",
        f"{right:,} of {n:,}",
        f"{100 * found.value:.2f} %",
        f"{100 * found.low:.2f} to {100 * found.high:.2f} %",
        f"{len(data.split('training')):,}",
        f"{seconds / 60:.1f}",
    ]
    return {
        "command": "python -m ingot_workloads.sst2_encoder.train --data FOLDER --out FOLDER"
        f" --threads {config.threads}",
        "seed": config.seed,
        "torch": torch.__version__,
        "threads": config.threads,
        "epochs": config.epochs,
        "data": data.digest,
        "accuracy": {"value": found.value, "low": found.low, "high": found.high, "n": n,
                     "level": found.level, "interval": found.method},
        "columns": ["parameters", "test sentences right", "accuracy", "95 % interval",
                    "trained on", "minutes"],
        "rows": [row],
    }  # fmt: skip


@click.command()
@click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder with train.tsv, dev.tsv and test_a.tsv.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("sst2_encoder"),
    show_default=True,
    help="Folder to write weights, tokenizer and results to.",
)
@click.option("--epochs", default=DEFAULT.epochs, show_default=True, help="Passes over the data.")
@click.option("--threads", default=DEFAULT.threads, show_default=True, help="Threads of torch.")
@click.option("--seed", default=0, show_default=True, help="Every random choice.")
@click.option("--float32", is_flag=True, help="Train in float32: for a CPU without bfloat16.")
def main(folder: Path, out: Path, epochs: int, threads: int, seed: int, *, float32: bool) -> None:
    """Train; write weights.safetensors, tokenizer.json and results.json.

    Example:
      python -m ingot_workloads.sst2_encoder.train --data sst2 --out sst2_encoder
    """
    config = Config(epochs=epochs, threads=threads, seed=seed, bfloat16=not float32)
    tokenizer = train_tokenizer(parts(folder, seed)["training"][0])
    data = load(folder, tokenizer, seed)
    start = time.monotonic()
    net = train(data.split("training"), config)
    seconds = time.monotonic() - start
    out.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), out / "weights.safetensors")
    tokenizer.save(str(out / "tokenizer.json"))
    text = json.dumps(results(net, data, config, seconds), indent=1) + "\n"
    (out / "results.json").write_text(text)
    click.echo(str(out))


if __name__ == "__main__":
    main()
