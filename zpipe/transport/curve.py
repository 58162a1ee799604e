"""CURVE keys as ZeroMQ takes them: Z85 text, 40 characters for 32 bytes. CurveZMQ is RFC 26."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import zmq

from zpipe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """One node's own keys, and whom it lets in.

    Attributes:
        public, secret: of this node.
        allowed: the public keys that may connect.
    """

    public: str
    secret: str = field(repr=False)
    allowed: Collection[str]


def is_supported() -> bool:
    """Whether the libzmq of this installation has CURVE."""
    return bool(zmq.has("curve"))


def check_curve() -> None:
    """Raises ConfigError where the libzmq of this installation has no CURVE."""
    if not is_supported():
        raise ConfigError(
            f"keys: found libzmq {zmq.zmq_version()} without CURVE, expected one with it; "
            "install pyzmq from its wheel (pip install --force-reinstall --only-binary pyzmq pyzmq), or build libzmq with libsodium"
        )


def new_keypair() -> tuple[str, str]:
    """(public, secret), fresh from the system's random source."""
    public, secret = zmq.curve_keypair()
    return public.decode("ascii"), secret.decode("ascii")


def public_key(secret: str) -> str:
    """The public key that belongs to a secret one."""
    return zmq.curve_public(secret.encode("ascii")).decode("ascii")
