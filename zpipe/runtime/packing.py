"""How one node packs what it sends to each neighbour and unpacks what it receives: by the link's codec, or by choice."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.codecs import Codec, CodecChoice, make_codecs, measured_codecs
from zpipe.configure import seconds_per_task
from zpipe.executors.base import Encoder, StageExecutor
from zpipe.model import AUTO_CODEC, FRAME_BYTES, FRAME_ROWS, NO_CODEC, TensorSpec
from zpipe.policy import NodePolicy
from zpipe.topology import Topology
from zpipe.wire import TaskBatch, WireLimits

log = logging.getLogger("zpipe.node")

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
    rows = max(node.max_batch for node in topology.nodes)
    return WireLimits(
        stage_inputs={spec.index: spec.input for spec in bundle.stages},
        codec_inputs={key: TensorSpec("uint8", (codec.row_bytes,)) for key, codec in coded.items() if not codec.packed},
        packed_bytes={key: codec.row_bytes for key, codec in coded.items() if codec.packed},
        classes=len(bundle.classes),
        max_rows=max(FRAME_ROWS, rows),
        max_batch=rows,
        frame_bytes=2 * FRAME_BYTES,  # no codec makes more than twice of a row
    )


def coded_by_executor(topology: Topology, codecs: Codecs, rank: int, executor: StageExecutor | None) -> dict[int, TensorSpec]:
    """{stage: one row of what it gives}, for stages of a node whose executor codes its activations for the links they leave by.

    That is where survivors can only leave, and all ways out have one codec.

    Args:
        topology: of the node.
        codecs: all that frames may name.
        rank: the node.
        executor: its; warm, with no batch under way. It is told.
    """
    if not isinstance(executor, Encoder):
        return {}
    coded = {}
    hosted = topology.node(rank).stages
    for stage in hosted:
        peers = [peer for peer in topology.neighbours(rank) if stage + 1 in topology.lanes(rank, peer)]
        names = {link.codec for peer in peers if (link := topology.link(rank, peer))}
        if stage + 1 in hosted or len(names) != 1 or AUTO_CODEC in names:
            continue
        codec = codecs[names.pop(), stage + 1]
        if codec.name != NO_CODEC and not codec.packed and executor.encode(stage, codec.name):
            coded[stage] = TensorSpec("uint8", (codec.row_bytes,))
    return coded


class Packing:
    """The codecs of one node's links.

    Args:
        topology: names each link's codec.
        bundle: tells what each costs in accuracy.
        codecs: all that frames may name (`codecs_of`).
        policy: knows bandwidths and service times, for `auto`; only read.
        coded: stages whose activations this node's executor codes (`coded_by_executor`).
    """

    def __init__(
        self, topology: Topology, bundle: Bundle, codecs: Codecs, policy: NodePolicy, *, coded: Collection[int] = ()
    ) -> None:
        self._codecs = codecs
        self._coded = frozenset(stage + 1 for stage in coded)  #: those they wait for
        self._policy = policy
        rank = policy.config.rank
        self._link_codec = {peer: link.codec for peer in topology.neighbours(rank) if (link := topology.link(rank, peer))}
        #: Neighbours to whom the policy cannot know beforehand how long a frame is.
        self.size_varies = frozenset(
            peer
            for peer, name in self._link_codec.items()
            if name == AUTO_CODEC or any(codec.packed for (each, _), codec in codecs.items() if each == name)
        )
        self._choice = CodecChoice(bundle, codecs) if AUTO_CODEC in self._link_codec.values() else None

    def pack(self, peer: int, stage: int, batch: Array, *, now: float) -> tuple[str, Array]:
        """The codec's name and the payload for `batch` `[rows, *shape]`, coded or not, on its way to a stage of that neighbour."""
        name = self._link_codec[peer]
        if stage in self._coded:
            return self._codecs[name, stage].name, batch
        if name != AUTO_CODEC:
            codec = self._codecs[name, stage]
            return codec.name, codec.encode(batch)
        assert self._choice is not None, "made where a link says auto"
        if self._choice.is_due(peer, stage, now=now):
            self._review(self._choice, peer, stage, now)
        codec = self._codecs[self._choice.current(peer, stage), stage]
        payload = codec.encode(batch)
        if codec.packed:
            self._choice.packed(codec.name, stage, payload.nbytes / len(batch))
        return codec.name, payload

    def unpack(self, message: TaskBatch) -> Array:
        """The stage's input `[rows, *shape]`.

        Raises:
            WireError: the payload is not what the codec makes.
        """
        if message.codec == NO_CODEC:
            return message.payload
        return self._codecs[message.codec, message.stage].decode(message.payload, len(message.tasks))

    def _review(self, choice: CodecChoice, peer: int, stage: int, now: float) -> None:
        outgoing, before = self._policy.neighbour(peer).outgoing, choice.current(peer, stage)
        assert outgoing is not None, "tasks are sent to neighbours that take them"
        bandwidth_bps, seconds = outgoing.bandwidth_bps, seconds_per_task(self._policy, peer, stage)
        after = choice.review(peer, stage, bandwidth_bps=bandwidth_bps, seconds_per_task=seconds, now=now)
        if after != before:
            lane = f"node {self._policy.config.rank} packs stage {stage} for node {peer}"
            why = f"{1e-6 * bandwidth_bps:.3g} Mbit/s, {1e3 * seconds:.3g} ms a task"
            log.info("%s by %s, no longer by %s: %s", lane, after, before, why)
