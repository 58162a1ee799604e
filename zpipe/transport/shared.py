"""A ring in shared memory beside a data connection, for large frames between two processes of one host and one user.

The sender copies a frame into memory that both ends have mapped, and a reference of 32 bytes takes its place in the message; the
receiver copies it out into a buffer of its own. So messages keep their order, and what is checked is checked on that copy, which
nobody else can write. Where there is no ring, or no room in it, the frame travels in the message: never wrong, only slower.

1. **The memory** is a memfd (Linux): it has no name that could be left behind, and goes with the last process that has it. Its size
   is sealed before anybody else can see it, so that neither end can make the other fall off its end (SIGBUS). Its pages are
   allocated as they are first needed, by a call that can fail.

       0   16 bytes  a random token, by which each end shows that it has this very memory
      64   16 bytes  how far the receiver is, twice: what lies before that position it needs no more
    4096   capacity  frames, each in one piece, at multiples of 64

2. **How the ends meet.** The sender's Hello carries an invitation: process, descriptor, size, network namespace, and a digest of
   the token. The receiver opens `/proc/PID/fd/N`, which the kernel allows it for processes of its own user, and takes what it finds
   where all of this holds: a regular file without a name, of this user and that size, sealed, of ordinary pages, whose token has
   that digest. Its own Hello answers with another digest of the token. So both have proof before the first frame, no path is ever
   taken from a peer, and who names what is not its own learns no more than that it was not taken. A node in another network
   namespace is meant to be somewhere else (a container, a board of `zpipe.bench.lab`) and gets no ring.
3. **Room.** Positions rise for ever; a frame lies at its position modulo the capacity. The receiver takes frames in the order of
   their positions, whatever was lost between, and says how far it is. It says so twice, since a write may be seen half done, and by
   writing the file rather than its mapping: for that the kernel takes a reference to the page, which is a full barrier, so that on
   ARM too all of the frame has been read before its place is free. A receiver that lies damages only what it is itself sent, and
   the frame's checksum shows it. An empty ring begins again at its front: few pages, still in the cache, are used again and again.

Known limit: other processes of the same user can read what lies here, with CURVE or without, as they can read this process's memory
and its keys. A ring ends with its connection: nothing in it reaches a peer that was started again.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import stat
import struct
import sys
from collections.abc import Sequence
from hashlib import blake2b

from zpipe.transport.base import Buffer, Channel, Origin, TransportCounts

if sys.platform == "linux":
    import fcntl

#: From here on a frame goes through the ring. Its two copies hold the interpreter's lock, where those of TCP are made beside it by
#: ZeroMQ's threads: in a bare loop the ring pays from 64 KiB on (bench.experiments.one_host), but a line of four with frames of 128
#: to 768 KiB answers 5 % fewer samples a second with it (0.3 to 9.8; 20 rounds of bench.peers, digits at batch 8, z over z').
SHARE_FROM_BYTES = 2**20

#: Of each ring: a window of frames of 1 MiB. Only what was ever used takes memory.
RING_BYTES = 16 * 2**20

#: Pages are allocated so many bytes at a time.
STEP_BYTES = 2**20

#: [magic, ring, position, length]. What begins and ends so is a reference, and never handed on as a frame.
_REFERENCE = struct.Struct("<8s8sQQ")
_MAGIC = b"\xc1zpipe\x01\xff"

_HEAD_BYTES = 4096
_TOKEN_BYTES = 16
_TAKEN = struct.Struct("<QQ")
_TAKEN_AT = 64
_ALIGNMENT = 64
#: Process, descriptor, size in bytes, network namespace, digest of the token.
_INVITATION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,12})\.(\d{1,20})\.([0-9a-f]{32})", re.ASCII)


class Ring:
    """The sender's end.

    Attributes:
        invitation: for the receiver.
        joined: the receiver has shown that it has the memory.

    Raises:
        OSError: this system has no such memory, or none left.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._descriptor = _new_memory(_HEAD_BYTES + capacity)
        try:
            self._memory = mmap.mmap(self._descriptor, _HEAD_BYTES + capacity)
            self._allocated = 0
            if not self._allocate(_HEAD_BYTES):
                raise OSError("no memory left")
            where = f"{os.getpid()}.{self._descriptor}.{_HEAD_BYTES + capacity}.{_network()}"
        except OSError:
            os.close(self._descriptor)
            raise
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._memory[:_TOKEN_BYTES] = token
        self._name = _name(token)
        self._answer = _answer(token)
        self.invitation = f"{where}.{_digest(token, b'invitation').hex()}"
        self.joined = False
        #: 0 <= _taken <= _end: nothing before _taken is needed any more, and frames lie before _end
        self._taken = self._end = 0
        self._before = (0, 0)

    def join(self, answer: str) -> None:
        """Takes the receiver's answer to the invitation."""
        self.joined = secrets.compare_digest(answer.encode(), self._answer.encode())

    def place(self, frame: Buffer) -> bytes | None:
        """Copies a frame in and returns the reference to send; None where there is no room."""
        taken, again = _TAKEN.unpack_from(self._memory, _TAKEN_AT)
        if taken == again and self._taken < taken <= self._end:
            self._taken = taken
        size, begin, first = len(frame), self._end, self._taken
        offset = begin % self._capacity
        if offset and first == begin:
            first = begin = begin + self._capacity - offset  # empty: from the front again
        elif offset + size > self._capacity:
            begin += self._capacity - offset
        end, offset = begin + _padded(size), _HEAD_BYTES + begin % self._capacity
        if size > self._capacity or end - first > self._capacity or not self._allocate(offset + size):
            return None
        self._before = self._taken, self._end
        self._taken, self._end = first, end
        self._memory[offset : offset + size] = frame
        return _REFERENCE.pack(_MAGIC, self._name, begin, size)

    def take_back(self) -> None:
        """The frame placed last is not sent."""
        self._taken, self._end = self._before

    def _allocate(self, upto: int) -> bool:
        """Whether there are pages up to there. A page that is missing when it is written to would end this process."""
        if upto <= self._allocated:
            return True
        upto = min(-upto % STEP_BYTES + upto, _HEAD_BYTES + self._capacity)
        assert sys.platform == "linux"
        try:
            os.posix_fallocate(self._descriptor, self._allocated, upto - self._allocated)
        except OSError:  # no memory left for it
            return False
        self._allocated = upto
        return True

    def close(self) -> None:
        """Ends it at this end."""
        self._memory.close()
        os.close(self._descriptor)


class Mapped:
    """The receiver's end; owns the descriptor.

    Attributes:
        name: by which references name it.
        answer: for the sender.
    """

    def __init__(self, descriptor: int, size: int, token: bytes) -> None:
        self._memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        self._descriptor = descriptor
        self._capacity = size - _HEAD_BYTES
        self._end = 0
        self.name = _name(token)
        self.answer = _answer(token)

    def take(self, reference: Buffer) -> bytes | None:
        """A copy of the frame that a reference stands for; None where that cannot be."""
        _, _, position, size = _REFERENCE.unpack(reference)
        offset, end = position % self._capacity, position + _padded(size)
        if position < self._end or not 0 < size <= self._capacity - offset or end >= 2**63:
            return None
        frame = self._memory[_HEAD_BYTES + offset : _HEAD_BYTES + offset + size]
        self._end = end
        os.pwrite(self._descriptor, _TAKEN.pack(end, end), _TAKEN_AT)
        return frame

    def close(self) -> None:
        """Ends it at this end."""
        self._memory.close()
        os.close(self._descriptor)


def find(invitation: str) -> Mapped | None:
    """The memory that a sender speaks of; None where it is not here, or is not what it should be."""
    found = _INVITATION.fullmatch(invitation)
    if sys.platform != "linux" or found is None:
        return None
    size = int(found[3])
    try:
        if int(found[4]) != _network() or not _HEAD_BYTES < size <= _HEAD_BYTES + RING_BYTES:
            return None
        return _map(f"/proc/{int(found[1])}/fd/{int(found[2])}", size, found[5])
    except OSError:
        return None


def _map(path: str, size: int, digest: str) -> Mapped | None:
    """Rule 2. What can be seen without opening it comes first: to open a pipe or a device may have effects."""
    assert sys.platform == "linux"
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        about = os.fstat(seen)
        if not stat.S_ISREG(about.st_mode) or (about.st_nlink, about.st_uid, about.st_size) != (0, os.getuid(), size):
            return None
        descriptor = os.open(f"/proc/self/fd/{seen}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(seen)
    mapped = None
    try:
        token = os.pread(descriptor, _TOKEN_BYTES, 0)
        if _is_safe(descriptor) and secrets.compare_digest(_digest(token, b"invitation").hex(), digest):
            mapped = Mapped(descriptor, size, token)
    finally:
        if mapped is None:
            os.close(descriptor)
    return mapped


def _new_memory(size: int) -> int:
    """A descriptor of so many bytes, for good."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        raise OSError("no memfd_create on this system")
    descriptor = os.memfd_create("zpipe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_safe(descriptor: int) -> bool:
    """Nobody can cut it off, and its pages are not huge ones, of which there may be none left when one is looked at."""
    assert sys.platform == "linux"
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    return bool(seals & fcntl.F_SEAL_SHRINK) and os.fstatvfs(descriptor).f_bsize == mmap.PAGESIZE


def _padded(size: int) -> int:
    return -size % _ALIGNMENT + size


def _digest(token: bytes, purpose: bytes) -> bytes:
    return blake2b(token, digest_size=16, person=purpose).digest()


def _answer(token: bytes) -> str:
    return _digest(token, b"answer").hex()


def _name(token: bytes) -> bytes:
    return _digest(token, b"name")[:8]


def _network() -> int:
    """This process's network namespace."""
    return os.stat("/proc/self/ns/net").st_ino


# ---- all of one node ---------------------------------------------------------------------------


class Sharing:
    """The rings of one transport, by channel.

    Args:
        counts: what went through them is counted there.
        wanted: False makes and takes none.
    """

    def __init__(self, counts: TransportCounts, *, wanted: bool) -> None:
        self._counts = counts
        self._wanted = wanted
        #: of outgoing channels, for as long as their present connection
        self._rings: dict[Channel, Ring] = {}
        #: of incoming ones: {name: (memory, channel)}
        self._mapped: dict[bytes, tuple[Mapped, Channel]] = {}

    def __len__(self) -> int:
        return len(self._rings) + len(self._mapped)

    def invite(self, channel: Channel) -> str:
        """What our Hello on an outgoing channel tells its peer; "" where there is nothing to share."""
        self.close(channel)
        if not self._wanted or not channel.data:
            return ""
        try:
            ring = self._rings[channel] = Ring(RING_BYTES)
        except OSError:
            return ""
        return ring.invitation

    def accept(self, channel: Channel, invitation: str) -> str:
        """Takes the invitation of an incoming channel's Hello; returns the answer for ours, "" where it is of no use here."""
        self.close(channel)
        mapped = find(invitation) if self._wanted and invitation else None
        if mapped is None:
            return ""
        if mapped.name in self._mapped:  # by another of its channels: the first has it
            mapped.close()
            return ""
        self._mapped[mapped.name] = mapped, channel
        return mapped.answer

    def join(self, channel: Channel, answer: str) -> None:
        """Takes the answer to our invitation: from now on large frames of this connection may go through the ring."""
        ring = self._rings.get(channel)
        if ring is not None:
            ring.join(answer)
            if not ring.joined:
                self.close(channel)

    def close(self, channel: Channel) -> None:
        """The channel's connection ended."""
        ring = self._rings.pop(channel, None)
        if ring is not None:
            ring.close()
        for name in [name for name, (_, whose) in self._mapped.items() if whose is channel]:
            self._mapped.pop(name)[0].close()

    def ring_for(self, channel: Channel, frames: Sequence[Buffer]) -> Ring | None:
        """Where the last frame of a message on its way out may go."""
        if len(frames[-1]) < SHARE_FROM_BYTES:
            return None
        ring = self._rings.get(channel)
        return ring if ring is not None and ring.joined else None

    def take(self, frames: list[Buffer], origin: Origin) -> bool:
        """Puts the frame in place that the last one of a received message stands for, if it does.

        Returns:
            False where there is no such frame: the connection has ended, or its peer lies.
        """
        reference = frames[-1]
        if len(reference) != _REFERENCE.size or bytes(reference[: len(_MAGIC)]) != _MAGIC:
            return True
        mapped, channel = self._mapped.get(bytes(reference[len(_MAGIC) : 2 * len(_MAGIC)]), (None, None))
        frame = mapped.take(reference) if mapped is not None and channel is not None and channel.key == origin.key else None
        if frame is None:
            self._counts.shared_missing += 1
            return False
        self._counts.shared_received += 1
        frames[-1] = frame
        return True
