"""One small network per part of a network's features, and what joins their answers.

A *student* holds a few stages of a bundle and answers for one *part*: its scores are what its features add to the logits. The
classifier that joins them is linear, `logits = sum_p W_p f_p + b`, so `W_p` lies in the student, one float per class travels
back, and a part that is missing is a term left out. How sure the sum is depends on what is in it: each set of parts has its own
temperature.

A set of parts is a bit mask, bit p for part p; lists over sets of parts have `2 ** parts` entries, the one of no part unused.

Source: RoCoIn (arXiv:2406.14185), our reading; differs: scores come back in place of features, and a missing part is known as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

#: Bytes of one score, float32 little endian.
SCORE_BYTES = 4


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """The network for one part.

    Attributes:
        part: its number, from 0.
        stages: of the bundle, consecutive; the first takes the raw input, the last has an exit head and no output.
        filters: which of the teacher's last filters it stands for; no two students share one.
        parameters: how many.
        bytes: of its files.
    """

    part: int
    stages: tuple[int, ...]
    filters: tuple[int, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Join:
    """The classifier that makes one answer of the scores of whichever parts are there.

    Attributes:
        bias: b, one per class.
        temperatures: one per set of parts, from calibration with just these (arXiv:2010.16335).
        calibration, test: accuracy of each set of parts on either split, 0..1.
    """

    bias: tuple[float, ...]
    temperatures: tuple[float, ...]
    calibration: tuple[float, ...]
    test: tuple[float, ...]
    _bias: npt.NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_bias", np.array(self.bias, np.float32))

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self.temperatures).bit_length() - 1

    def answer(self, scores: Mapping[int, bytes]) -> tuple[int, float]:
        """Label and confidence from the parts that are in.

        Args:
            scores: {part: its scores}, at least one; each `[classes]` float32, little endian.
        """
        present = sorted(scores)
        rows = np.frombuffer(b"".join([scores[part] for part in present]), "<f4")
        labels, confidences = self.answers(rows.reshape(1, len(present), -1), present)
        return int(labels[0]), float(confidences[0])

    def answers(self, scores: npt.NDArray[Any], present: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The same for many samples, to the last bit.

        Args:
            scores: `[samples, len(present), classes] float32`.
            present: the parts they are of, rising.

        Returns:
            Labels `[samples]` and confidences `[samples]`: the largest probability; 0 where a sum is not finite.
        """
        # One part after the other and the bias last, as a source does it (`zpipe.policy.join`): float32 would tell another order.
        logits = scores[:, 0]
        with np.errstate(all="ignore"):
            for index in range(1, len(present)):
                logits = logits + scores[:, index]
            logits = logits + self._bias
            scaled = logits / np.float32(self.temperatures[mask_of(present)])
            exponential = np.exp(scaled - np.maximum.reduce(scaled, axis=1, keepdims=True))
            confidences = np.reciprocal(np.add.reduce(exponential, axis=1))
        return logits.argmax(axis=1), np.where(np.isfinite(confidences), confidences, np.float32(0.0))


def mask_of(parts: Sequence[int]) -> int:
    """The set of these parts."""
    return sum(1 << part for part in parts)


def parts_of(mask: int) -> tuple[int, ...]:
    """The parts in a set, rising."""
    return tuple(part for part in range(mask.bit_length()) if mask >> part & 1)
