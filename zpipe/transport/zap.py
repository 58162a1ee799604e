"""Who may connect: the answers to ZeroMQ's question about each new connection (ZAP, RFC 27), decided without IO.

libzmq asks before the first message of a connection is let through, with CURVE after the peer has proven its key. Only what is
answered here reaches a handler: an unknown key, a key or an address that comes too often, and a banned key do not.

Each connection let in is given a number, which ZeroMQ attaches to its every message beside the key (property `User-Id`). Other
properties can't tell connections apart: descriptors are used again while old messages wait, and a peer chooses its routing id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from itertools import count

from zmq.utils import z85

from zpipe.transport.base import TransportCounts

ENDPOINT = "inproc://zeromq.zap.01"
#: Asked about in every request; libzmq refuses to listen unasked where ZAP_ENFORCE_DOMAIN is set.
DOMAIN = b"zpipe"
#: Frames of a request at most.
MAX_REQUEST_FRAMES = 16

#: New connections of one key (without CURVE: one address): this many at once, and this many a second in the long run. A node makes
#: two for each neighbour and comes again after 0.1 s at the earliest; MAX_INCOMING of them on one host is the largest burst.
CONNECTIONS_BURST = 512.0
CONNECTIONS_HZ = 100.0
#: Keys or addresses whose rates are remembered; the one that came first makes room.
MAX_RATES = 1024


class Doorkeeper:
    """Decides on each new connection.

    Args:
        allowed: the public keys (Z85) that may connect; None = no keys here, everybody may.
        counts: where refusals are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self, allowed: Collection[str] | None, counts: TransportCounts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._allowed = None if allowed is None else set(allowed)
        self._counts = counts
        self._clock = clock
        self._numbers = count()
        #: (address, key) of who was not let in last; put into words only where somebody asks, since a flood is not to be worded
        self._unknown: tuple[bytes, str] | None = None
        #: {key or address: (connections it may make, as of this time)}
        self._rates: dict[str, tuple[float, float]] = {}

    def answer(self, request: list[bytes]) -> list[bytes]:
        """The reply to one request, both as frames."""
        version, request_id, _, address, _, mechanism, *credentials = request
        key = z85.encode(credentials[0]).decode("ascii") if mechanism == b"CURVE" else ""
        if self._allowed is not None and key not in self._allowed:
            self._counts.unknown_keys += 1
            self._unknown = (address, key)
            status, text, user_id = b"400", b"key not allowed here", b""
        elif not self._within_rate(key or address.decode("ascii", "replace")):
            self._counts.limited += 1
            # Not 300, which libzmq answers with silence, keeping the connection until its handshake times out.
            status, text, user_id = b"400", b"too many connections", b""
        else:
            status, text, user_id = b"200", b"", f"{next(self._numbers)} {key}".encode("ascii")
        return [version, request_id, status, text, user_id, b""]

    def ban(self, key: str) -> bool:
        """Strikes a key from the allow-list; False when it is not on it."""
        if self._allowed is None or key not in self._allowed:
            return False
        self._allowed.remove(key)
        self._counts.banned_keys += 1
        return True

    @property
    def turned_away(self) -> str:
        """Who came last with a key that is not allowed, or with none; "" before the first."""
        if self._unknown is None:
            return ""
        address, key = self._unknown
        return f"{address.decode('ascii', 'replace')}, {f'key {key[:8]}...' if key else 'no key'}"

    @property
    def rates(self) -> int:
        """Keys or addresses whose rate is remembered; at most MAX_RATES."""
        return len(self._rates)

    def _within_rate(self, who: str) -> bool:
        now = self._clock()
        left, since = self._rates.pop(who, (CONNECTIONS_BURST, now))
        left = min(CONNECTIONS_BURST, left + (now - since) * CONNECTIONS_HZ)
        allowed = left >= 1.0
        if len(self._rates) >= MAX_RATES:
            del self._rates[next(iter(self._rates))]
        self._rates[who] = (left - allowed, now)  # who is refused loses nothing, or a flood would never let anybody in
        return allowed


def key_of(user_id: str) -> str:
    """The key in a connection's `User-Id`; "" without CURVE."""
    return user_id.partition(" ")[2]
