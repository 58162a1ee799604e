"""How one node packs what it sends to each neighbour and unpacks what it receives: by the link's codec, or by choice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.codecs import Candidate, Codec, accuracy_lost, choose_codec, make_codecs, measured_codecs
from zpipe.model import AUTO_CODEC, NO_CODEC, TensorSpec
from zpipe.policy import NodePolicy
from zpipe.topology import Topology
from zpipe.wire import TaskBatch, WireLimits

log = logging.getLogger("zpipe.node")

#: A choice stands this long: several Reports and Credits, so that it rests on what the one before has changed.
REVIEW_SECONDS = 1.0
#: Weight of a new frame in the mean size of a packed codec's rows.
SIZE_GAIN = 0.1

Array = npt.NDArray[Any]
Codecs = Mapping[tuple[str, int], Codec]


def codecs_of(topology: Topology, bundle: Bundle) -> dict[tuple[str, int], Codec]:
    """{(codec, stage): how it is packed} for every codec that a frame in this mesh may name.

    Raises:
        BundleError: the weights of `bottleneck` are missing or damaged.
    """
    names = {NO_CODEC}
    for link in topology.links:
        names.update(measured_codecs(bundle) if link.codec == AUTO_CODEC else (link.codec,))
    return make_codecs(bundle, sorted(names))


def wire_limits(topology: Topology, bundle: Bundle, codecs: Codecs) -> WireLimits:
    """What this mesh's nodes may say to each other."""
    # A codec that changes nothing at some stage sends `none` there.
    coded = {(codec.name, stage): codec for (_, stage), codec in codecs.items() if codec.name != NO_CODEC}
    return WireLimits(
        stage_inputs={spec.index: spec.input for spec in bundle.stages},
        codec_inputs={key: TensorSpec("uint8", (codec.row_bytes,)) for key, codec in coded.items() if not codec.packed},
        packed_bytes={key: codec.row_bytes for key, codec in coded.items() if codec.packed},
        max_rows=max(node.max_batch for node in topology.nodes),
    )


class Packing:
    """The codecs of one node's links.

    Args:
        topology: names each link's codec.
        bundle: knows what each costs in accuracy.
        codecs: all that frames may name (`codecs_of`).
        policy: knows bandwidths and service times, for `auto`; only read.
    """

    def __init__(self, topology: Topology, bundle: Bundle, codecs: Codecs, policy: NodePolicy) -> None:
        self._bundle = bundle
        self._codecs = codecs
        self._policy = policy
        rank = policy.config.rank
        self._link_codec = {peer: link.codec for peer in topology.neighbours(rank) if (link := topology.link(rank, peer))}
        self._mean_bytes: dict[tuple[str, int], float] = {}  #: {(codec, stage): bytes per row}, where the length varies
        self._chosen: dict[tuple[int, int], str] = {}  #: {(peer, stage): codec}, where that is our choice
        self._review_at: dict[tuple[int, int], float] = {}

    def pack(self, peer: int, stage: int, batch: Array, *, now: float) -> tuple[str, Array]:
        """The codec's name and the payload for `batch` `[rows, *shape]`, on its way to a stage of that neighbour."""
        name = self._link_codec[peer]
        codec = self._codecs[self._choose(peer, stage, now) if name == AUTO_CODEC else name, stage]
        payload = codec.encode(batch)
        if codec.packed:
            mean = self._mean(codec, stage)
            self._mean_bytes[codec.name, stage] = mean + SIZE_GAIN * (payload.nbytes / len(batch) - mean)
        return codec.name, payload

    def unpack(self, message: TaskBatch) -> Array:
        """The stage's input `[rows, *shape]`.

        Raises:
            WireError: the payload is not what the codec makes.
        """
        if message.codec == NO_CODEC:
            return message.payload
        return self._codecs[message.codec, message.stage].decode(message.payload, len(message.tasks))

    def size_varies(self, peer: int) -> bool:
        """Whether the policy cannot know beforehand how long a frame to this neighbour is."""
        name = self._link_codec[peer]
        return name == AUTO_CODEC or any(codec.packed for (each, _), codec in self._codecs.items() if each == name)

    def _mean(self, codec: Codec, stage: int) -> float:
        return self._mean_bytes.get((codec.name, stage), float(codec.typical_row_bytes))

    # ---- codec: auto ---------------------------------------------------------------------------

    def _choose(self, peer: int, stage: int, now: float) -> str:
        key = peer, stage
        current = self._chosen.setdefault(key, NO_CODEC)
        if now < self._review_at.get(key, 0.0):
            return current
        self._review_at[key] = now + REVIEW_SECONDS
        outgoing = self._policy.neighbour(peer).outgoing
        assert outgoing is not None, "tasks are sent to neighbours that take them"
        chosen = choose_codec(
            self._candidates(stage),
            bandwidth_bps=outgoing.bandwidth_bps,
            seconds_per_task=self._seconds_per_task(peer, stage),
            current=current,
        )
        if chosen != current:
            self._chosen[key] = chosen
            mbit_s = 1e-6 * outgoing.bandwidth_bps
            rank = self._policy.config.rank
            log.info(
                "node %d sends stage %d to node %d as %s, no longer %s: %.1f Mbit/s", rank, stage, peer, chosen, current, mbit_s
            )
        return chosen

    def _candidates(self, stage: int) -> list[Candidate]:
        candidates = []
        for name in measured_codecs(self._bundle):
            codec = self._codecs[name, stage]
            # An image is coded without loss or not at all.
            lost = accuracy_lost(self._bundle, name) if stage else 0.0
            if codec.name == name:
                candidates.append(Candidate(name, self._mean(codec, stage), lost))
        return candidates

    def _seconds_per_task(self, peer: int, stage: int) -> float:
        """What a task costs the slower of the node that makes it and the node that takes it; 0 while neither is known."""
        report = self._policy.neighbour(peer).report
        taking = report.service_seconds.get(stage, 0.0) if report is not None else 0.0
        return max(taking, self._policy.service_seconds.get(stage - 1, 0.0))
