"""Images for networks that were never trained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pictures(count: int, size: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """`[count, 3, size, size]`: coarse coloured blocks under noise. Of noise alone every picture has the same averages."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(count, 3, 7, 7)).astype(np.float32)
    index = np.arange(size) * 7 // size
    noise = rng.normal(scale=16.0, size=(count, 3, size, size)).astype(np.float32)
    return (coarse[:, :, index][:, :, :, index] + noise).clip(0, 255).astype(np.uint8)
