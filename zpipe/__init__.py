"""One deep network run over several small computers, with early exits."""

from __future__ import annotations

from zpipe.errors import (
    BackendUnavailable,
    BundleError,
    ConfigError,
    EngineMismatchError,
    ExecutorError,
    PeerLost,
    PipelineClosed,
    SampleError,
    SampleExpired,
    SampleFailed,
    SampleRejected,
    TopologyError,
    WireError,
    ZpipeError,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "BundleError",
    "ConfigError",
    "EngineMismatchError",
    "ExecutorError",
    "PeerLost",
    "PipelineClosed",
    "SampleError",
    "SampleExpired",
    "SampleFailed",
    "SampleRejected",
    "TopologyError",
    "WireError",
    "ZpipeError",
    "__version__",
]
