"""Train the digits network on two cores in well under a minute, always to the same weights."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from ingot.evaluate.intervals import proportion
from ingot_workloads.digits.data import load
from ingot_workloads.digits.model import DigitsNet, digits_cnn


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that decides the result.

    Attributes:
        epochs: Passes over the training split.
        batch: Images per step.
        learning_rate: Peak of the one-cycle schedule.
        shift: Largest random shift of an image, pixels.
        seed: Weights, order and shifts.
        threads: Threads of torch; sums differ in the last bit with other counts.
    """

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 3e-3
    shift: int = 1
    seed: int = 0
    threads: int = 2


def train(config: Config) -> DigitsNet:
    """Return the trained network in evaluation mode."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    split = load(config.seed).split("training")
    images, labels = torch.from_numpy(split.inputs["image"]), torch.from_numpy(split.targets)
    net: DigitsNet = digits_cnn()
    steps = config.epochs * -(-len(images) // config.batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps
    )
    with click.progressbar(range(config.epochs), label="train", file=sys.stderr) as bar:
        for _ in bar:
            for index in torch.randperm(len(images)).split(config.batch):
                loss = torch.nn.functional.cross_entropy(
                    net(_shift(images[index], config.shift)), labels[index]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    net.eval()
    return net


def _shift(images: torch.Tensor, most: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(images, (most,) * 4)
    row, column = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return padded[:, :, row : row + images.shape[2], column : column + images.shape[3]]


def results(net: DigitsNet, config: Config) -> dict[str, object]:
    """Return what the README shows: accuracy on the test split, exact interval, and the size."""
    split = load(config.seed).split("test")
    with torch.inference_mode():
        said = net(torch.from_numpy(split.inputs["image"])).argmax(1).numpy()
    right, n = int((said == split.targets).sum()), len(split)
    found = proportion(right, n)
    parameters = sum(p.numel() for p in net.parameters())
    row = [f"{parameters:,}", f"{right} of {n}", f"{found.low:.4f} to {found.high:.4f}"]
    return {
        "command": "python -m ingot_workloads.digits.train --results results.json",
        "seed": config.seed,
        "torch": torch.__version__,
        "columns": ["parameters", "test scans right", "95 % interval of the accuracy"],
        "rows": [row],
    }


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("digits.safetensors"),
    show_default=True,
    help="Weights to write.",
)
@click.option(
    "--results", "results_path", type=click.Path(path_type=Path), help="Results to write, JSON."
)
@click.option("--seed", default=0, show_default=True, help="Every random choice.")
def main(out: Path, results_path: Path | None, seed: int) -> None:
    """Train and write the weights.

    Example:
      python -m ingot_workloads.digits.train --out digits.safetensors
    """
    config = Config(seed=seed)
    net = train(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), out)
    click.echo(str(out))
    if results_path is not None:
        results_path.write_text(json.dumps(results(net, config), indent=1) + "\n")


if __name__ == "__main__":
    main()
