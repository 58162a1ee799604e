"""ZMTP 3.1 by hand (rfc.zeromq.org/spec/37): what a peer sends, byte for byte, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes = b"NULL") -> bytes:
    """The first 64 bytes of a connection."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(data: bytes, flags: int = 0) -> bytes:
    """One frame with its length."""
    if len(data) < 256:
        return bytes((flags, len(data))) + data
    return bytes((flags | LONG,)) + len(data).to_bytes(8, "big") + data


def claim(size: int, flags: int = 0) -> bytes:
    """The opening of a frame of any length, without its content."""
    return bytes((flags | LONG,)) + size.to_bytes(8, "big")


def ready(socket_type: bytes) -> bytes:
    """The READY command of the NULL mechanism."""
    properties = b"".join(
        bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
        for name, value in ((b"Socket-Type", socket_type), (b"Identity", b""))
    )
    return frame(b"\x05READY" + properties, COMMAND)


def message(frames: Sequence[bytes]) -> bytes:
    """A whole message."""
    last = len(frames) - 1
    return b"".join(frame(data, MORE if index < last else 0) for index, data in enumerate(frames))
