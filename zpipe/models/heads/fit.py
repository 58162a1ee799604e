"""Fitting exit heads: nothing but the heads is trained, each by itself, on features that were computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from zpipe.models.heads.graph import Front, Head
from zpipe.models.heads.shape import hidden_units
from zpipe.models.training import steps_per_epoch

#: Rows a step, AdamW's peak learning rate and weight decay. Not tuned beyond one try on the digits.
BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 3e-3, 1e-2

#: Steps a pass has at least, and rows a step has at least for it: a few hundred images must not mean a few steps.
LEAST_STEPS, LEAST_BATCH = 20, 8

#: Features that hardly vary stay as they are: of order 1 by their making, a smaller deviation is chance or rounding.
LEAST_DEVIATION = 1e-4

#: Called after each epoch: (epochs done, epochs in all, mean loss).
OnEpoch = Callable[[int, int, float], None]


def fit_head(
    front: Front,
    features: npt.NDArray[np.float32],
    target: npt.NDArray[np.generic],
    *,
    classes: int,
    epochs: int,
    seed: int,
    on_epoch: OnEpoch,
) -> Head:
    """Train one head; call it within `torch_settings`.

    Args:
        front: what made the features.
        features: `[samples, features]`.
        target: labels `[samples] int64`, or what a teacher thinks of each class, `[samples, classes] float32` that sum to 1.
        classes: of the head.
        epochs: passes over the features.
        seed: of the weights and the order.
        on_epoch: told after each pass.
    """
    torch.manual_seed(seed)
    samples = len(features)
    mean, deviation = _statistics(features)
    layers = nn.Linear(features.shape[1], hidden_units(classes)), nn.Linear(hidden_units(classes), classes)
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batch = min(samples, BATCH, max(LEAST_BATCH, samples // LEAST_STEPS))
    steps = steps_per_epoch(samples, batch)
    schedule = OneCycleLR(optimiser, max_lr=LEARNING_RATE, total_steps=epochs * steps + 1)
    rng = np.random.default_rng([seed, 13])
    for epoch in range(epochs):
        order, total = rng.permutation(samples), 0.0
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            x = (torch.from_numpy(features[rows]) - mean) / deviation
            # Of labels or of a teacher's distribution: the same cross-entropy.
            loss = functional.cross_entropy(network(x), torch.from_numpy(target[rows]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) / steps
        on_epoch(epoch + 1, epochs, total)
    return _folded(front, layers[0], layers[1], mean, deviation)


def _statistics(features: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature, a block of rows at a time: they may lie in a file larger than memory."""
    total, square = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for start in range(0, len(features), 4096):
        block = features[start : start + 4096].astype(np.float64)
        total += block.sum(0)
        square += (block**2).sum(0)
    mean = total / len(features)
    deviation = np.sqrt(np.maximum(square / len(features) - mean**2, 0.0))
    deviation[deviation < LEAST_DEVIATION] = 1.0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(deviation.astype(np.float32))


def _folded(front: Front, first: nn.Linear, last: nn.Linear, mean: Tensor, deviation: Tensor) -> Head:
    """The head without the scaling of its features, which goes into the first layer."""
    with torch.no_grad():
        hidden = first.weight.double() / deviation.double()
        hidden_bias = first.bias.double() - hidden @ mean.double()
        weights = (hidden, hidden_bias, last.weight, last.bias)
        return Head(front, *(value.float().numpy().copy() for value in weights))
