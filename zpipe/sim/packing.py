"""What a link's codec makes of a frame: its size, and which of the recorded answers hold for the rows that passed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from zpipe.bundle import Bundle, lossy_part
from zpipe.codecs import CodecChoice, make_codecs, measured_codecs
from zpipe.configure import seconds_per_task
from zpipe.emulation import is_emulated, replay_codec
from zpipe.model import AUTO_CODEC, NO_CODEC
from zpipe.policy import NodePolicy
from zpipe.topology import Topology


class Packed(NamedTuple):
    """A codec at one stage's entrance.

    Attributes:
        name: as the wire calls it.
        row_bytes: of one row, typically.
        raw_bytes: of one row without any codec.
        token: which table of answers holds for rows that passed it; 0 where it changes nothing.
        tell_size: whether the policy is told how long the frame was, since it cannot know beforehand.
    """

    name: str
    row_bytes: int
    raw_bytes: int
    token: int
    tell_size: bool


#: (the link's codec, sender, receiver's rank, stage, now) -> how a frame to that stage is packed.
Pack: TypeAlias = Callable[[str, NodePolicy, int, int, float], Packed]


class Packing:
    """The codecs of every link.

    A row that once passed a lossy codec has the answers recorded under it from then on. Emulated nodes know one table only,
    whatever way a row took, and so do theirs here.

    Args:
        topology: names each link's codec.
        bundle: its replay must know the lossy ones.

    Attributes:
        tables: the codecs whose replays are needed, by token.
    """

    def __init__(self, topology: Topology, bundle: Bundle) -> None:
        named = {link.codec for link in topology.links}
        names = {NO_CODEC, *named} - {AUTO_CODEC}
        if AUTO_CODEC in named:
            names.update(measured_codecs(bundle))
        codecs = make_codecs(bundle, sorted(names))
        lossy = sorted({lossy_part(name) for name in names} - {NO_CODEC})
        self.tables = (replay_codec(topology),) if is_emulated(topology) else (NO_CODEC, *lossy)
        tokens = {name: 0 if is_emulated(topology) else self.tables.index(lossy_part(name)) for name in names}
        varying = {name for (name, _), codec in codecs.items() if codec.packed}
        self._packed = {
            (name, stage): Packed(
                codec.name, codec.typical_row_bytes, codecs[NO_CODEC, stage].row_bytes, tokens[codec.name], name in varying
            )
            for (name, stage), codec in codecs.items()
        }
        self._choices = [CodecChoice(bundle, codecs) for _ in topology.nodes] if AUTO_CODEC in named else []

    def pack(self, codec: str, sender: NodePolicy, peer: int, stage: int, now: float) -> Packed:
        """How a frame to a stage of a neighbour is packed; on an `auto` link with the codec that a live node would choose."""
        if codec != AUTO_CODEC:
            return self._packed[codec, stage]
        choice = self._choices[sender.config.rank]
        if choice.is_due(peer, stage, now=now):
            outgoing = sender.neighbour(peer).outgoing
            assert outgoing is not None, "tasks are sent to neighbours that take them"
            seconds = seconds_per_task(sender, peer, stage)
            choice.review(peer, stage, bandwidth_bps=outgoing.bandwidth_bps, seconds_per_task=seconds, now=now)
        return self._packed[choice.current(peer, stage), stage]._replace(tell_size=True)
