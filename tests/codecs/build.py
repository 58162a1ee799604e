"""Activations and autoencoders to code with, drawn from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.codecs import BottleneckWeights
from zpipe.model import TensorSpec

CUT = TensorSpec("float32", (6, 4, 4))
IMAGE = TensorSpec("uint8", (3, 8, 8))


def weights(channels: int = 6, small: int = 2) -> BottleneckWeights:
    """An autoencoder whose decoder undoes its encoder on the first `small` channels."""
    rng = np.random.default_rng(3)
    encode = rng.normal(size=(small, channels)).astype(np.float32)
    decode = np.linalg.pinv(encode).astype(np.float32)
    bias = rng.normal(size=small).astype(np.float32)
    return BottleneckWeights(encode, bias, decode, -decode @ bias)


def batch(spec: TensorSpec, rows: int, *, prefix: int = 0, seed: int = 0) -> npt.NDArray[Any]:
    """`rows` samples of this spec; with a prefix as the emulated executor has them, each led by its own bytes."""
    rng = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        values = np.sort(rng.integers(0, 256, (rows, *spec.shape)), axis=-1).astype(np.uint8)
    else:
        scale = np.exp(rng.normal(size=(rows, spec.shape[0], *[1] * (len(spec.shape) - 1))))
        values = (rng.normal(size=(rows, *spec.shape)) * scale).astype(spec.dtype)
    if not prefix:
        return values
    head = rng.integers(0, 256, (rows, prefix)).astype(np.uint8)
    return np.concatenate([head, values.reshape(rows, -1).view(np.uint8)], axis=1)
