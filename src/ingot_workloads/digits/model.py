"""A residual CNN for 8 x 8 grey digits."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, width, h, w)` to the same shape."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class DigitsNet(nn.Module):
    """Stem, two residual blocks with pooling between, linear head; about 0.4 M parameters."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = Block(width)
        self.wide = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.block2 = Block(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(batch, 1, 8, 8)` in 0 to 1 to logits `(batch, 10)`."""
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.wide(self.block1(x)))
        return self.head(self.block2(x).mean(dim=(2, 3)))


def digits_cnn() -> DigitsNet:
    """Build the network untrained: the factory that `ingot` is given."""
    return DigitsNet()


def example_inputs() -> dict[str, Tensor]:
    """Return inputs of the right shape, by name."""
    return {"image": torch.zeros(2, 1, 8, 8)}
