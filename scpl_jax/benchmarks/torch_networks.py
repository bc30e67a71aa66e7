"""The networks and training steps of the speed comparison, written the way one would in PyTorch.

Same blocks, cut, heads, losses and optimizer as here, in plain eager PyTorch: each stage in turn runs forward, its
local loss backward, and its own Adam step, so no more than one stage's activations are kept. Batches of texts have no
padding, which is why nothing is masked. Only the ``torch`` extra of the package installs PyTorch.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scpl_jax.models.layers import scaled
from scpl_jax.models.vgg import VGG8_LAYERS


@dataclasses.dataclass(frozen=True)
class Message:
    """What a block of a text network hands on: sequence (N, L, D), summary (N, S), final (h, c) of an LSTM."""

    sequence: Tensor
    summary: Tensor
    state: tuple[Tensor, Tensor] | None = None


def summary_of(message: Any) -> Tensor:
    """What local losses and the classifier see of a message."""
    return message.summary if isinstance(message, Message) else message


def detached(message: Any) -> Any:
    """The message without its history."""
    if not isinstance(message, Message):
        return message.detach()
    state = None if message.state is None else (message.state[0].detach(), message.state[1].detach())
    return Message(message.sequence.detach(), message.summary.detach(), state)


class Residual(nn.Module):
    """A basic unit of ResNet-18: two 3 x 3 convolutions, and a 1 x 1 one on the shortcut where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        changes = stride != 1 or channels != out
        layers = [nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)] if changes else []
        self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        return functional.leaky_relu(self.body(x) + self.shortcut(x), 0.01, inplace=True)


class Embedding(nn.Module):
    """Tokens (N, L) to vectors, with sines and cosines of the positions added where asked for, and dropout."""

    def __init__(self, vocabulary: int, size: int, length: int, *, positions: bool, dropout: float):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        frequency = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
        angles = torch.arange(length)[:, None] * frequency
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(length, -1)[:, :size]
        self.register_buffer("positions", table if positions else None)

    def forward(self, tokens: Tensor) -> Message:
        """To a message whose summary is the mean over the words."""
        x = self.vectors(tokens)
        if self.positions is not None:
            x = x * math.sqrt(x.shape[-1]) + self.positions
        x = self.dropout(x)
        return Message(x, x.mean(dim=1))


class BiLSTM(nn.Module):
    """A bidirectional LSTM layer that takes the final state of the layer before over."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(size, hidden, batch_first=True, bidirectional=True)

    def forward(self, message: Message) -> Message:
        """Sequence of D to one of 2H."""
        sequence, (h, c) = self.lstm(message.sequence, message.state)
        return Message(sequence, (h[0] + h[1]) / 2, (h, c))


class Encoder(nn.Module):
    """A pre-norm Transformer encoder layer and a norm behind it."""

    def __init__(self, size: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.first, self.second = nn.Linear(size, hidden), nn.Linear(hidden, size)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))

    def forward(self, message: Message) -> Message:
        """Sequence of D to the same; the summary is the mean over the words."""
        x = message.sequence
        drop: Callable[[Tensor], Tensor] = lambda y: functional.dropout(y, self.dropout, self.training)  # noqa: E731
        x = x + drop(self._attention(self.norms[0](x)))
        x = x + drop(self.second(drop(functional.relu(self.first(self.norms[1](x))))))
        x = self.norms[2](x)
        return Message(x, x.mean(dim=1))

    def _attention(self, x: Tensor) -> Tensor:
        n, length, size = x.shape
        q, k, v = (
            layer(x).view(n, length, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(n, length, size))


def vgg8(width: float, image_size: int, classes: int) -> list[nn.Module]:
    """The blocks of VGG8, the classifier last; see :func:`scpl_jax.models.vgg8`."""
    blocks: list[nn.Module] = []
    channels, pools = 3, 0
    for index, layer in enumerate(VGG8_LAYERS):
        if layer == "M":
            continue
        out = scaled(layer, width)
        parts = [nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        if VGG8_LAYERS[index + 1 : index + 2] == ("M",):
            parts.append(nn.MaxPool2d(2))
            pools += 1
        blocks.append(nn.Sequential(*parts))
        channels = out
    side, hidden = image_size >> pools, scaled(2500, width)
    flat = nn.Linear(side * side * channels, hidden)
    return [*blocks, nn.Sequential(nn.Flatten(), flat, nn.Sigmoid(), nn.Linear(hidden, classes))]


def resnet18(width: float, classes: int) -> list[nn.Module]:
    """The blocks of ResNet-18 with CIFAR stem, the classifier last; see :func:`scpl_jax.models.resnet18`."""
    channels = scaled(64, width)
    stem = nn.Sequential(
        nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(0.01, inplace=True)
    )
    blocks: list[nn.Module] = [stem]
    for group in range(4):
        out = scaled(64 * 2**group, width)
        for unit in range(2):
            blocks.append(Residual(channels, out, 2 if group and not unit else 1))
            channels = out
    return [*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))]


def text_network(
    kind: str, *, vocabulary: int, layers: int, size: int, heads: int, width: float, length: int, classes: int
) -> list[nn.Module]:
    """The blocks of the "lstm" or the "transformer", the classifier last, with the dropout that those have here."""
    hidden = scaled(300, width)
    if kind == "lstm":
        blocks: list[nn.Module] = [Embedding(vocabulary, size, length, positions=False, dropout=0.0)]
        blocks += [BiLSTM(2 * hidden if index else size, hidden) for index in range(layers - 1)]
        summary = hidden
    else:
        blocks = [Embedding(vocabulary, size, length, positions=True, dropout=0.1)]
        blocks += [Encoder(size, heads, hidden, 0.1) for _ in range(layers - 1)]
        summary = size
    return [*blocks, nn.Sequential(nn.Linear(summary, hidden), nn.Tanh(), nn.Linear(hidden, classes))]


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The loss of :func:`scpl_jax.losses.supervised_contrastive`, in float32."""
    unit = functional.normalize(features.float())
    similarity = unit @ unit.T / temperature
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positives = (labels[:, None] == labels[None, :]) & others
    log_prob = similarity - similarity.masked_fill(~others, -math.inf).logsumexp(dim=1, keepdim=True)
    return -(torch.where(positives, log_prob, 0).sum(dim=1) / positives.sum(dim=1).clamp(min=1)).mean()


class Stage(nn.Module):
    """Blocks, head, and for the last stage the classifier.

    Args:
      blocks: of the network.
      features: of one example's summary as the head takes it, after pooling and flattening; None: no local loss.
      pool: side that feature maps are averaged to, in pixels; 0 for none.
      classifier: the network's, for the last stage.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], features: int | None, pool: int, classifier: nn.Module | None = None
    ):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(pool)] if pool else []
        if features is not None:
            layers += [nn.Flatten(), nn.Linear(features, 512), nn.ReLU(inplace=True), nn.Linear(512, 1024)]
        self.head = None if features is None else nn.Sequential(*layers)
        self.classifier = classifier


def adam(module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that all are compared with."""
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def scpl_step(
    stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer], inputs: Tensor, labels: Tensor
) -> list[Tensor]:
    """One training step of every stage by its own losses; the losses."""
    message: Any = inputs
    losses = []
    for stage, optimizer in zip(stages, optimizers, strict=True):
        message = stage.blocks(detached(message))
        assert stage.head is not None
        loss = supervised_contrastive(stage.head(summary_of(message)), labels, 0.1)
        losses.append(loss.detach())
        if stage.classifier is not None:
            loss = loss + functional.cross_entropy(stage.classifier(summary_of(message).detach()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def bp_step(
    stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer], inputs: Tensor, labels: Tensor
) -> list[Tensor]:
    """One training step of the whole network by the classifier's cross-entropy; the loss."""
    message: Any = inputs
    for stage in stages:
        message = stage.blocks(message)
    classifier = stages[-1].classifier
    assert classifier is not None
    loss = functional.cross_entropy(classifier(summary_of(message)), labels)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return [loss.detach()]
