"""What a receiver accepts: sizes known from the bundle, so that nothing is allocated because a peer said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from zpipe.model import NO_CODEC, TensorSpec

#: Room in `max_message_bytes` beside the tensors (design section 5).
MESSAGE_MARGIN_BYTES = 4096


class FrameSpec(NamedTuple):
    """One row of a Task's buffer, ready for the decoder: bytes, dtype, shape without the batch axis.

    Where `packed`, the rows share one run of bytes, of at most `bytes` each on average, and dtype is uint8.
    """

    bytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    packed: bool = False


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What the decoder accepts from any peer. Built once per node from its bundle.

    Attributes:
        stage_inputs: {stage: one sample at its entrance}, every stage of the bundle, hosted here or not.
        codec_inputs: {(codec, stage): what one sample of that stage is on the wire}, for codecs other than `none`.
        packed_bytes: {(codec, stage): most bytes per sample}, for codecs whose buffers vary in length.
        classes: of the bundle; a label is below it.
        max_rows: tasks in one Task message.
        max_batch: of these, so many of any size; 0: `max_rows`.
        frame_bytes: tensors of a message of more than `max_batch` tasks.
        max_entries: rows in Lost and Results, numbers in Credit.
        max_header_bytes: a header frame, Hello with its topology included.
        max_document_bytes: the topology of a Hello, the body of a Stats, the padding of a Ping.
        max_text_bytes: any other string (UTF-8). Senders cut causes and reasons to 240 characters.
    """

    stage_inputs: Mapping[int, TensorSpec]
    codec_inputs: Mapping[tuple[str, int], TensorSpec] = field(default_factory=dict)
    packed_bytes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    classes: int = 2**31
    max_rows: int = 64
    max_batch: int = 0
    frame_bytes: int = 0
    max_entries: int = 1024
    max_header_bytes: int = 65536
    max_document_bytes: int = 49152
    max_text_bytes: int = 1024
    #: {(codec, stage): FrameSpec}, derived.
    frames: dict[tuple[str, int], FrameSpec] = field(init=False, repr=False, compare=False)
    #: The longest array a header may hold, derived.
    max_list: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        specs = {(NO_CODEC, stage): spec for stage, spec in self.stage_inputs.items()} | dict(self.codec_inputs)
        frames = {key: FrameSpec(spec.bytes, np.dtype(spec.dtype), spec.shape) for key, spec in specs.items()}
        frames |= {key: FrameSpec(most, np.dtype(np.uint8), (), packed=True) for key, most in self.packed_bytes.items()}
        object.__setattr__(self, "frames", frames)
        # 16: a header's own fields and pairs per stage, where the other limits are tiny.
        object.__setattr__(
            self,
            "max_list",
            max(16, self.max_rows, self.max_entries, 2 * len(self.stage_inputs)),
        )

    @property
    def max_message_bytes(self) -> int:
        """Upper bound of one frame in bytes, for ZMQ's MAXMSGSIZE: the largest stage's `max_batch`, or `frame_bytes`, and 4 KiB."""
        tensors = (self.max_batch or self.max_rows) * max((frame.bytes for frame in self.frames.values()), default=0)
        return max(tensors, self.frame_bytes, self.max_header_bytes) + MESSAGE_MARGIN_BYTES
