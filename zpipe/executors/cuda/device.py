"""A topology's `device`, where the executor runs on a GPU: which one, what its engines compute in, and whether it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.executors.cuda.presence import Gpus, Missing, gpus


def parse_device(text: str, *, executor: str, precisions: Sequence[str]) -> tuple[int, str]:
    """(ordinal, precision) of `1`, `cuda:1`, `fp16`, `cuda:0/fp16`; GPU 0 and the first precision where it doesn't say.

    Args:
        text: the topology's.
        executor: its name, for the message.
        precisions: what its engines compute in.

    Raises:
        ConfigError: it says neither.
    """
    match = re.fullmatch(rf"(?:cuda|(?:cuda:)?(\d{{1,3}}))?(?:(?:^|/)({'|'.join(precisions)}))?", text)
    if match is None:
        raise ConfigError(
            f"executor {executor}: device: found {text!r}, expected a GPU, what it computes in ({', '.join(precisions)}), or both, "
            f"as in cuda:0/{precisions[-1]}; correct `device`"
        )
    return int(match[1] or 0), match[2] or precisions[0]


def require_device(device: int) -> Gpus:
    """What the CUDA driver shows, this ordinal among it.

    Raises:
        BackendUnavailable: it shows nothing, or less.
    """
    there = gpus()
    if isinstance(there, Missing):
        raise BackendUnavailable(f"GPU {device}: {there}")
    if not 0 <= device < len(there.devices):
        raise BackendUnavailable(
            f"GPU {device}: found {there}, expected a device 0..{len(there.devices) - 1}; correct `device`, or CUDA_VISIBLE_DEVICES"
        )
    return there
