"""Torch factories that the tests of this room name by label."""

import torch
from torch import nn


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def dense() -> Dense:
    torch.manual_seed(0)
    return Dense()


class Named(Dense):
    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return {"logits": self.head(hidden), "hidden": hidden}


def named() -> Named:
    torch.manual_seed(0)
    return Named()


def not_a_module() -> int:
    return 3


def example_inputs():
    return {"x": torch.zeros(1, 4)}
