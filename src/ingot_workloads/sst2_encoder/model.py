"""A small encoder of BERT's shape: six layers over WordPiece tokens, mean pooling, two classes."""

import math

import torch
from torch import Tensor, nn

VOCABULARY = 8000  # rows of the embedding table; a tokenizer of fewer tokens leaves the rest unused
MAX_TOKENS = 64
_HIDDEN = -1e4  # added to the scores of padding: exp(-1e4) is zero in float32


class Layer(nn.Module):
    """Self-attention and a GELU feed-forward, each after a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map `(batch, tokens, width)` to the same shape; `bias` `(batch, 1, 1, tokens)`."""
        x = x + self.dropout(self._attend(self.norm1(x), bias))
        y = nn.functional.gelu(self.up(self.norm2(x)))
        return x + self.dropout(self.down(y))

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        size = width // self.heads
        q, k, v = (
            part(x).view(batch, tokens, self.heads, size).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(size) + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Sst2Encoder(nn.Module):
    """Token and place embeddings, six layers, mean over the tokens, linear head; 6.8 M parameters.

    The norms stand before the layers and not after them as in BERT, and the layers start by adding
    nothing: training from random weights begins with a bag of words and learns to read from there,
    which 6,654 sentences are enough for.
    """

    def __init__(
        self,
        layers: int = 6,
        width: int = 256,
        heads: int = 4,
        *,
        inner: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(MAX_TOKENS, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)
        for layer in self.layers:
            nn.init.zeros_(layer.out.weight)
            nn.init.zeros_(layer.down.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Map token ids and their mask, both int64 `(batch, tokens)`, to `logits` `(batch, 2)`."""
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.dropout(self.tokens(input_ids) + self.places(place))
        mask = attention_mask.to(x.dtype)
        bias = (1.0 - mask)[:, None, None, :] * _HIDDEN
        for layer in self.layers:
            x = layer(x, bias)
        mask = mask.unsqueeze(-1)
        mean = (x * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return {"logits": self.head(self.dropout(self.norm(mean)))}


def sst2_encoder() -> Sst2Encoder:
    """Build the network untrained: the factory that `ingot` is given."""
    return Sst2Encoder()


def example_inputs() -> dict[str, Tensor]:
    """Return inputs of the right shape, by name."""
    ids = torch.arange(1, 17).view(2, 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
