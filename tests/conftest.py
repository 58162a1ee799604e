"""What all tests share: one reproducible Hypothesis profile, and the skip for tests that need a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run: a failure in CI is a failure here. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

#: Device files of NVIDIA's drivers: a PC's card, a Jetson's.
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu")

#: Set where the CUDA driver is the tests' own stand-in (tests/executors/cuda/standin).
REHEARSAL = "STANDIN_KERNELS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(Path(device).exists() for device in GPU_DEVICES) or REHEARSAL in os.environ:
        return
    skip = pytest.mark.skip(reason=f"needs an NVIDIA GPU: none of {', '.join(GPU_DEVICES)} exists")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
