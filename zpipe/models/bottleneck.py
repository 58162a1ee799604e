"""A learned bottleneck for every cut: a 1x1 convolution to a quarter of the channels before the link, and one back after it.

Trained after the network, which stays as it is: the loss is the Kullback-Leibler divergence from what each later exit says
without the bottleneck, so that it keeps what decides and not what is large. It starts at the principal components of the
activation's channels, which are the best linear code by squared error.

Source: the autoencoder on ResNet-50's first cut in MDI-Exit (arXiv:2408.05247), our reading. Differs: on every cut, all trained
together, since a line passes through all of them; and the code crosses as int8 (see `zpipe.codecs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from zpipe.models.frozen import FrozenStage
from zpipe.models.task import Task
from zpipe.models.training import steps_per_epoch

#: Channels of the code per channel of the activation. A quarter in int8 is a sixteenth of the float32 bytes.
CODE_SHARE = 0.25

#: Passes over the training set, images a step, and Adam's peak learning rate. Tried on the half-width digits, all four cuts at
#: once, accuracy on calibration at the default point: 96.3 % without, 93.2 % with the principal components alone, 95.1 % after 8
#: passes at 3e-3, 95.4 % after 20 at 1e-2.
EPOCHS, BATCH, LEARNING_RATE = 20, 64, 1e-2

#: Training images from which the principal components are taken.
START_IMAGES = 256

#: Called after each epoch: (epochs done, epochs in all, mean divergence in nats).
OnEpoch = Callable[[int, int, float], None]


class CutCode(nn.Module):
    """Encoder and decoder of one cut: `[batch, c, h, w]` in and out, `[batch, c_small, h, w]` between."""

    def __init__(self, channels: int, code_channels: int) -> None:
        super().__init__()
        self.encode = nn.Conv2d(channels, code_channels, 1)
        self.decode = nn.Conv2d(code_channels, channels, 1)

    def forward(self, activation: Tensor) -> Tensor:
        decoded: Tensor = self.decode(self.encode(activation))
        return decoded


def code_channels(channels: int) -> int:
    """Channels of the code for an activation of so many channels; at least one."""
    return max(1, round(channels * CODE_SHARE))


def train_bottleneck(
    stages: Sequence[FrozenStage], task: Task, *, epochs: int, seed: int, on_epoch: OnEpoch
) -> dict[str, npt.NDArray[np.float32]]:
    """Fit the codes of all cuts; call it within `torch_settings`.

    Returns:
        `cutK.encode [c_small, c]`, `cutK.encode_bias [c_small]`, `cutK.decode [c, c_small]`, `cutK.decode_bias [c]`, where
        stage K produces the activation.
    """
    rng = np.random.default_rng([seed, 11])
    images, labels = task.draw_epoch(rng)
    cuts = principal_codes(stages, images[:START_IMAGES])
    steps = steps_per_epoch(len(labels), BATCH)
    optimiser = torch.optim.Adam(cuts.parameters(), lr=LEARNING_RATE)
    schedule = OneCycleLR(optimiser, max_lr=LEARNING_RATE, total_steps=epochs * steps + 1)
    for epoch in range(epochs):
        divergence = 0.0
        for step in range(steps):
            loss = divergence_of(stages, cuts, torch.from_numpy(images[step * BATCH : (step + 1) * BATCH]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            divergence += float(loss.detach()) / steps
        on_epoch(epoch + 1, epochs, divergence)
        images, _ = task.draw_epoch(rng)
    return weights_of(cuts)


def principal_codes(stages: Sequence[FrozenStage], images: npt.NDArray[np.uint8]) -> nn.ModuleList:
    """Codes that keep the largest principal components of each cut's channels, taken over all pixels."""
    cuts = nn.ModuleList()
    x = torch.from_numpy(images)
    with torch.no_grad():
        for stage in stages[:-1]:
            activation, _ = stage(x)
            assert activation is not None  # only the last stage gives none
            cuts.append(principal_code(activation))
            x = activation
    return cuts


def principal_code(activation: Tensor) -> CutCode:
    """The code of one cut from activations `[samples, channels, height, width]`; call it without gradients."""
    pixels = activation.movedim(1, -1).flatten(0, -2).double()
    mean = pixels.mean(0)
    centred = pixels - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    cut = CutCode(len(mean), code_channels(len(mean)))
    basis = vectors[:, -cut.encode.out_channels :].T.float()
    cut.encode.weight.copy_(basis[:, :, None, None])
    cut.decode.weight.copy_(basis.T[:, :, None, None])
    cut.encode.bias.copy_(-basis @ mean.float())
    cut.decode.bias.copy_(mean.float())
    return cut


def divergence_of(stages: Sequence[FrozenStage], cuts: nn.ModuleList, images: Tensor) -> Tensor:
    """Mean over images and later exits of KL(without || with the bottleneck at every cut), in nats."""
    losses = []
    plain = coded = images
    for index, stage in enumerate(stages):
        with torch.no_grad():
            plain_activation, wanted = stage(plain)
        # Nothing precedes stage 0, so both ways agree there.
        coded_activation, found = stage(coded) if index else (plain_activation, wanted)
        if index:
            losses.append(functional.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True))
        if plain_activation is not None and coded_activation is not None:
            plain, coded = plain_activation, cuts[index](coded_activation)
    return torch.stack(losses).mean()


def weights_of(cuts: nn.ModuleList) -> dict[str, npt.NDArray[np.float32]]:
    """As `bottleneck.npz` holds them."""
    weights: dict[str, Any] = {}
    for index, cut in enumerate(cuts):
        for name, layer in (("encode", cut.encode), ("decode", cut.decode)):
            weights[f"cut{index}.{name}"] = layer.weight.detach().numpy()[:, :, 0, 0].copy()
            weights[f"cut{index}.{name}_bias"] = layer.bias.detach().numpy().copy()
    return weights
