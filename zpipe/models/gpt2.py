"""A decoder in GPT-2's shape with exits that predict the next token.

Each exit reads the state through its own copy of the final normalisation and of the token embedding (the *logit lens*,
nostalgebraist, 2020); the copies cost 4 bytes x vocabulary x width a stage. Nothing is cached between samples: a sample is a window
of tokens, its answer one token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from zpipe.models.network import MultiExitNet, Multiplies, Stage
from zpipe.models.recipes import Gpt2

EPSILON = 1e-5

#: Standard deviation of fresh weights, as GPT-2's.
DEVIATION = 0.02


class CausalAttention(Multiplies):
    """Every token looks at itself and those before it; queries, keys and values `[batch, tokens, 3 x width]` in."""

    def __init__(self, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("mask", torch.full((tokens, tokens), -math.inf).triu(1), persistent=False)

    def forward(self, mixed: Tensor) -> Tensor:
        tokens, width = mixed.shape[1], mixed.shape[2] // 3
        # The batch is -1, so that the exported graph takes any.
        parts = mixed.reshape(-1, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts[0], parts[1], parts[2]
        scores = queries @ keys.transpose(-1, -2) * (1.0 / math.sqrt(width // self.heads)) + self.mask
        answer: Tensor = (scores.softmax(-1) @ values).transpose(1, 2).reshape(-1, tokens, width)
        return answer

    def macs(self, output: Tensor) -> int:
        """Scores, and the mean by them; all pairs are computed, the masked ones too."""
        tokens, width = output.shape[1:]
        return int(2 * tokens * tokens * width)


class Layer(nn.Module):
    """Attention and two linear layers, each behind a normalisation and added to what came in."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.mix, self.attention, self.project = (
            nn.Linear(width, 3 * width),
            CausalAttention(heads, tokens),
            nn.Linear(width, width),
        )
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.attention(self.mix(self.ln_1(x))))
        # GPT-2 approximates its GELU by a tanh.
        return x + self.narrow(functional.gelu(self.widen(self.ln_2(x)), approximate="tanh"))


class Embedding(nn.Module):
    """Tokens `[batch, tokens] int64` to states `[batch, tokens, width]`."""

    def __init__(self, network: Gpt2) -> None:
        super().__init__()
        self.token = nn.Embedding(network.vocabulary, network.width)
        # Of all positions a sample has the first ones; the others would only travel.
        self.position = nn.Parameter(torch.empty(network.tokens, network.width))

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.token(tokens) + self.position
        return states


class NextToken(nn.Module):
    """States to raw logits of the token that follows the last one."""

    def __init__(self, network: Gpt2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(network.width, EPSILON)
        self.linear = nn.Linear(network.width, network.vocabulary, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(states[:, -1]))
        return logits


def gpt2(network: Gpt2, split: tuple[int, ...]) -> MultiExitNet:
    """Fresh weights from torch's global generator; every exit shares them with the token embedding, as the last one does.

    Args:
        network: its sizes.
        split: layers of each stage.
    """
    embedding, stages = Embedding(network), []
    layers: list[nn.Module] = [embedding]
    for index, count in enumerate(split):
        layers += [Layer(network.width, network.heads, network.tokens) for _ in range(count)]
        stages.append(Stage(nn.Sequential(*layers), NextToken(network), last=index == len(split) - 1))
        layers = []
    made = MultiExitNet(stages)
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                layer.weight.normal_(std=DEVIATION)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.zero_()
            if isinstance(layer, Layer):
                # As many sums pile up as there are layers.
                for last in (layer.project, layer.narrow):
                    last.weight.div_(math.sqrt(2 * network.layers))
        embedding.position.normal_(std=DEVIATION / 2)
    for stage in made.stages:
        stage.head.linear.weight = embedding.token.weight
    return made
