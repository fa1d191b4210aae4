"""Silero's speech detector in plain torch: the published weights, with rows first everywhere."""

import torch
from torch import Tensor, nn

BINS = 129
WIDTH = 128


class Silero(nn.Module):
    """A learned spectrum, four convolutions, one step of an LSTM, one probability.

    The published ONNX file keeps its state as (layer, row, width) and chooses between ranks in
    branches; this network gives the same numbers without either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, WIDTH, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(WIDTH, WIDTH)
        self.final_conv = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, input: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Map sound `(rows, 576)` and `state` `(rows, 2, 128)` to speech and the next state."""
        parts = self.stft_conv(nn.functional.pad(input.unsqueeze(1), (0, 64), mode="reflect"))
        x = (parts[:, :BINS] ** 2 + parts[:, BINS:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(layer(x))
        hidden, cell = self.lstm_cell(x.squeeze(2), (state[:, 0], state[:, 1]))
        speech = torch.sigmoid(self.final_conv(torch.relu(hidden).unsqueeze(2)))
        return {"output": speech.mean(2), "stateN": torch.stack([hidden, cell], 1)}


def silero() -> Silero:
    """Build the network untrained."""
    return Silero()


def example_inputs() -> dict[str, Tensor]:
    """Return inputs of the right shape, by name."""
    return {"input": torch.zeros(2, 576), "state": torch.zeros(2, 2, WIDTH)}
