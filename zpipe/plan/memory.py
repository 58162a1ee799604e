"""How much memory a node takes, before anybody has measured it."""

from __future__ import annotations

# As `zpipe profile` measured the digits bundles (x86-64, Python 3.11, ONNX Runtime 1.31); a profile of one's own overrides.
#: A node without stages: interpreter, libraries, sockets, an empty engine (64 MB before the first stage, 11 MB with it).
PROCESS_BYTES = 80e6
#: Memory per byte of a stage's file: 2.7 and 3.0 where weights dominate (they are read, and packed anew for the processor).
WEIGHTS_FACTOR = 3.0
#: What a row of a batch takes inside a stage, per byte of its two ends: 11 to 29, 70 for the first stage at 96 pixels, whose input
#: is uint8. A stage's manifest says nothing of its inside.
INNER_FACTOR = 30.0
#: Rows that wait or are on their way in a node, beside the batch that runs: the windows of two links.
WAITING_ROWS = 32


def slice_memory(weight_bytes: float, end_bytes: float, max_batch: int) -> float:
    """Bytes of a node that hosts one slice.

    Args:
        weight_bytes: of its files.
        end_bytes: of one sample where it enters and where it leaves.
        max_batch: rows of its largest batch.
    """
    return PROCESS_BYTES + stage_memory(weight_bytes, end_bytes, max_batch)


def stage_memory(weight_bytes: float, end_bytes: float, max_batch: int) -> float:
    """What one stage adds to its node; arguments as of `slice_memory`."""
    return WEIGHTS_FACTOR * weight_bytes + end_bytes * (INNER_FACTOR * max_batch + WAITING_ROWS)
