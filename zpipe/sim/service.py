"""How long a batch takes and what it answers, in place of an executor."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.devices import Device, load_device, service_seconds
from zpipe.errors import ConfigError
from zpipe.model import NEVER_EXIT, GateSpec
from zpipe.service import Measured, blended
from zpipe.topology import NodeSpec, Topology

#: (rank, stage, rows) -> seconds: how long a batch keeps a node's executor busy.
Service: TypeAlias = Callable[[int, int, int], float]
#: (stage, indices into the evaluation set, gate) -> per row: whether it exits, its label, its confidence, and where the gate asks
#: for them its scores.
Answers: TypeAlias = Callable[[int, Sequence[int], GateSpec], tuple[list[bool], list[int], list[float], Sequence[bytes]]]


def device_service(topology: Topology, bundle: Bundle, *, device: str) -> Service:
    """Constant times from device profiles; nodes that name no device are a `device`.

    Raises:
        ConfigError: there is no such profile.
    """
    devices = [_device(topology, node, device) for node in topology.nodes]
    known: dict[tuple[int, int, int], float] = {}

    def seconds(rank: int, stage: int, rows: int) -> float:
        found = known.get((rank, stage, rows))
        if found is None:
            found = known[rank, stage, rows] = service_seconds(devices[rank], bundle.stages[stage], rows)
        return found

    return seconds


def _device(topology: Topology, node: NodeSpec, otherwise: str) -> Device:
    try:
        return load_device(node.device or otherwise)
    except ConfigError as exc:
        where = f"{topology.path or topology.name}: nodes[{node.rank}]." if node.device else "--"
        raise ConfigError(f"{where}{exc}") from exc


def measured_service(measured: Mapping[int, Measured], *, rng: random.Random) -> Service:
    """Times drawn from measured distributions.

    Args:
        measured: {rank: what was measured on its board}; every node that hosts a stage.
        rng: of the draws.
    """

    def seconds(rank: int, stage: int, rows: int) -> float:
        return blended(measured[rank].times[stage], rows, lambda spread: spread.draw(rng))

    return seconds


def replayed(bundle: Bundle, codec: str) -> Answers:
    """What every exit says about every evaluation sample, as the bundle recorded it (`replay.npz`) under a codec.

    The gate's decision is the executors' own: `confidence >= threshold` in float32 below NEVER_EXIT, and every row at the last
    stage (`zpipe.executors.gate`, rule 3); a test compares the two.

    Raises:
        BundleError: it has no replay, or none under this codec.
    """
    replay = bundle.replay(codec)
    # Plain lists by stage: one element of an array costs ten times as much as one of a list.
    all_labels: list[list[int]] = replay.labels.T.tolist()
    all_confidences: list[list[float]] = replay.confidences.T.tolist()
    all_scores = [] if replay.scores is None else [[row.tobytes() for row in each] for each in _by_stage(replay.scores)]
    rounded: dict[float, float] = {}  # {threshold: as float32, infinite where it means never}

    def least(threshold: float) -> float:
        value = rounded.get(threshold)
        if value is None:
            value = float(np.float32(threshold))
            value = rounded[threshold] = value if value < NEVER_EXIT else math.inf
        return value

    def answers(stage: int, rows: Sequence[int], gate: GateSpec) -> tuple[list[bool], list[int], list[float], Sequence[bytes]]:
        labels, recorded = all_labels[stage], all_confidences[stage]
        confidences = [recorded[row] for row in rows]
        if gate.last:
            exited = [True] * len(rows)
        else:
            exited = [value >= least(bound) for value, bound in zip(confidences, gate.thresholds, strict=True)]
        scores = [all_scores[stage][row] for row in rows] if gate.scores else ()
        return exited, [labels[row] for row in rows], confidences, scores

    return answers


def _by_stage(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`[stages, samples, classes]`, little endian as they travel."""
    return scores.astype("<f4", copy=False).transpose(1, 0, 2)
