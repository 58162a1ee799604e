"""The Python this runs in: what it finds, and the pip that adds to it. Needs nothing but the standard library."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

#: The release of NVIDIA's software on a Jetson, which brings TensorRT along.
JETSON = Path("/etc/nv_tegra_release")


def installed(module: str) -> bool:
    """Whether Python would find it; nothing is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a half-removed package
        return False


def pip() -> str:
    """The pip of this very Python, short where that is the one on the path."""
    return "pip" if sys.prefix != sys.base_prefix else f"{Path(sys.executable).name} -m pip"
