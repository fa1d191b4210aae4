"""Train the digits network on two cores in well under a minute, always to the same weights."""

import sys
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from ingot_workloads.digits.data import load
from ingot_workloads.digits.model import DigitsNet, build


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
    net = build()
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
    return net.eval()


def _shift(images: torch.Tensor, most: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(images, (most,) * 4)
    row, column = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return padded[:, :, row : row + images.shape[2], column : column + images.shape[3]]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("digits.safetensors"))
@click.option("--seed", default=0)
def main(out: Path, seed: int) -> None:
    """Train and write the weights.

    Example:
      python -m ingot_workloads.digits.train --out digits.safetensors
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(train(Config(seed=seed)).state_dict(), out)
    click.echo(str(out))


if __name__ == "__main__":
    main()
