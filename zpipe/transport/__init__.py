"""Moving opaque frames between nodes: a callback contract (`base`), ZeroMQ (`zeromq`), and one process for tests (`memory`).

Nothing here knows what the frames mean. `zeromq` is imported by whoever wants it, so that the other two load without it.
"""

from zpipe.transport.base import Buffer, Channel, Origin, Transport, TransportCounts, TransportHandler
from zpipe.transport.memory import MemoryNetwork, MemoryTransport

__all__ = [
    "Buffer",
    "Channel",
    "MemoryNetwork",
    "MemoryTransport",
    "Origin",
    "Transport",
    "TransportCounts",
    "TransportHandler",
]
