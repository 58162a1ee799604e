"""A library that does not work on this GPU or driver, told from an engine that does not fit: no engine built anew mends it.

`tensorrt_rtx` says so in the bits of `get_engine_validity`; both libraries say it in their log, in the words of CUDA.
"""

from __future__ import annotations

import re

from zpipe.errors import BackendUnavailable, one_line
from zpipe.executors.cuda import presence

#: Error 35 is cudaErrorInsufficientDriver, for a driver that is too old and for none at all.
_OLD_DRIVER = re.compile(r"old cuda driver|driver version is insufficient|\berror(?: code)?:? *\(?35\b", re.IGNORECASE)
_NO_GPU_OF_ITS = re.compile(r"unsupported (?:cc|sm)\b|(?:GPU|target).* SM ?\d+ is not supported", re.IGNORECASE)


def unavailable(library: str, *reasons: str, what: str = "") -> BackendUnavailable | None:
    """The error, with what does help, where the library works with no engine here; None where another engine may.

    Args:
        library: name and version.
        reasons: what it said, the shortest first; "" for nothing.
        what: was to be run, for the message.
    """
    there = presence.gpus()
    if not isinstance(there, presence.Gpus):
        return None
    said = one_line(" ".join(next(filter(None, reasons), "").split()))
    begin = f"{what}: found" if what else f"{library}: found"
    if any(map(_OLD_DRIVER.search, reasons)):
        return BackendUnavailable(
            f"{begin} an NVIDIA driver for CUDA {there.cuda} that is too old for {library} ({said}), expected a newer one; "
            f"update the driver, or take executor torch-cuda"
        )
    if any(map(_NO_GPU_OF_ITS.search, reasons)):
        return BackendUnavailable(
            f"{begin} that {library} does not run on this GPU ({said}), expected one it knows; "
            f"take executor torch-cuda, or another TensorRT"
        )
    return None
