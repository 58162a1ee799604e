"""What a relay does to bytes: bits flipped inside ZeroMQ messages, or anywhere in the stream. No clock, no IO.

A message is found by ZMTP 3's framing (rfc.zeromq.org/spec/23): after a greeting of 64 bytes come frames of a flags byte (1 MORE,
2 LONG, 4 COMMAND), a length of one byte or eight, and a body. Commands (READY, PING, PONG) are let alone. While `share` is 0 and no
flip is due every byte passes as it came, ZMTP or not.
"""

from __future__ import annotations

import random

GREETING_BYTES = 64
#: With what a greeting begins; a stream that begins otherwise is not looked into.
SIGNATURE = 0xFF
_MORE, _LONG, _COMMAND = 1, 2, 4
#: A chosen message is kept back until it is whole; one that is longer goes on as it came.
MOST_HELD_BYTES = 16 << 20


class Damage:
    """What happens to the streams of one link, and how often it did.

    Args:
        rng: its dice.

    Attributes:
        share: of the messages that get one bit of their body flipped, 0..1.
        flips: bits still to be flipped anywhere, in the next bytes that pass.
        messages, corrupted, flipped: counts since the start.
    """

    def __init__(self, rng: random.Random) -> None:
        self.share = 0.0
        self.flips = 0
        self.messages = self.corrupted = self.flipped = 0
        self._rng = rng

    def counts(self) -> dict[str, int]:
        """The three counts by name."""
        return {"messages": self.messages, "corrupted": self.corrupted, "flipped": self.flipped}

    def chooses(self) -> bool:
        """Whether the message that begins now is to be damaged."""
        return self.share > 0.0 and self._rng.random() < self.share

    def corrupt(self, message: bytearray, bodies: list[tuple[int, int]]) -> None:
        """Flips one bit within the given (start, end) parts of a message; one without any body stays as it is."""
        size = sum(end - start for start, end in bodies)
        if not size:
            return
        place = self._rng.randrange(size)
        for start, end in bodies:
            if place < end - start:
                message[start + place] ^= 1 << self._rng.randrange(8)
                break
            place -= end - start
        self.corrupted += 1

    def flip(self, data: bytes) -> bytes:
        """The bytes, with the flips that are due."""
        if not self.flips or not data:
            return data
        flipped = bytearray(data)
        while self.flips:
            self.flips -= 1
            flipped[self._rng.randrange(len(flipped))] ^= 1 << self._rng.randrange(8)
            self.flipped += 1
        return bytes(flipped)


class Stream:
    """One direction of one connection of a link: takes bytes as they come, gives them on, damaged where the link says so."""

    def __init__(self, damage: Damage) -> None:
        self._damage = damage
        self._zmtp: bool | None = None  #: None before the first byte
        self._left = GREETING_BYTES  #: bytes left of the greeting or of a frame's body
        self._in_frame = False  #: those are a frame's, not the greeting's
        self._header = bytearray()
        self._inside = False  #: a message has begun and not ended
        self._held: bytearray | None = None  #: the chosen message from its first body on
        self._bodies: list[tuple[int, int]] = []  #: (start, end) in `_held`, of the frames seen so far

    def feed(self, data: bytes) -> bytes:
        """What goes on now of these bytes and of those kept back."""
        if self._zmtp is None and data:
            self._zmtp = data[0] == SIGNATURE
        if not self._zmtp:
            return self._damage.flip(data)
        passed: list[bytes] = []
        mark = at = 0  # data[mark:at] has been looked at and gone nowhere yet
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                at += step
                self._left -= step
            else:
                self._header.append(data[at])
                at += 1
                if len(self._header) < self._header_bytes():
                    continue
                if self._frame_began(begins_at=at - mark):
                    passed.append(data[mark:at])
                    mark = at
            if not self._left and self._message_ended() and self._held is not None:
                self._held += data[mark:at]
                mark = at
                passed.append(self._release())
        if self._held is None:
            passed.append(data[mark:])
        else:
            self._held += data[mark:]
            if len(self._held) > MOST_HELD_BYTES:
                passed.append(self.flush())
        return self._damage.flip(passed[0] if len(passed) == 1 else b"".join(passed))

    def flush(self) -> bytes:
        """What was kept back, as it came: the stream ends, or the message is too long."""
        held, self._held = self._held or b"", None
        return bytes(held)

    def _header_bytes(self) -> int:
        return 9 if self._header[0] & _LONG else 2

    def _frame_began(self, *, begins_at: int) -> bool:
        """A header is complete; whether a chosen message begins with it. `begins_at`: where its body will, beyond what is held."""
        flags = self._header[0]
        self._left = int.from_bytes(self._header[1:], "big")
        self._in_frame = True
        if flags & _COMMAND:
            return False
        chosen = not self._inside and self._damage.chooses()
        self._inside = True
        if chosen:
            self._held, self._bodies = bytearray(), []
        if self._held is not None:
            start = 0 if chosen else len(self._held) + begins_at
            self._bodies.append((start, start + self._left))
        return chosen

    def _message_ended(self) -> bool:
        """The greeting or a frame is complete; whether a message is with it."""
        if not self._in_frame:
            return False
        flags, self._in_frame = self._header[0], False
        self._header.clear()
        if flags & (_COMMAND | _MORE):
            return False
        self._inside = False
        self._damage.messages += 1
        return True

    def _release(self) -> bytes:
        held, self._held = self._held, None
        assert held is not None
        self._damage.corrupt(held, self._bodies)
        return bytes(held)
