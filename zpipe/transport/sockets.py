"""ZeroMQ sockets with every option set, bound in pairs, and single messages through them: what `zeromq` is made of."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from zpipe.errors import AddressInUse, ConfigError
from zpipe.transport.base import Buffer
from zpipe.transport.curve import CurveKeys
from zpipe.transport.zap import DOMAIN, ENDPOINT

#: From here on a received frame is handed on as a view of ZeroMQ's memory; below, bytes are cheaper (pyzmq's own threshold).
COPY_BELOW_BYTES = 65536

#: From here on a frame is sent from where it lies. pyzmq learns by a third thread, which takes the interpreter's lock, that ZeroMQ
#: is through with it: 10 us more than a copy up to 256 KiB, as much at 768 KiB, 10 us less at 1 MiB (CPU of both ends, loopback).
SEND_COPY_BELOW_BYTES = 786432

#: TCP connect and ZMTP handshake must each be done by then.
HANDSHAKE_MILLISECONDS = 3000

#: Heartbeats: sent this often, answered by then. Long, since a PING waits behind frames in the kernel's send buffer (4 MB at
#: 10 Mbit/s are 3.2 s); hanging links are the policy's to see, by missed reports.
HEARTBEAT_MILLISECONDS = 2000
SILENCE_MILLISECONDS = 10000

#: What a frame grows by when it is sealed: libzmq compares MAXMSGSIZE with that (CurveZMQ's MESSAGE: name, nonce, MAC, flags).
CURVE_FRAME_BYTES = 33

#: What making a socket fails with when this process or this machine has no more of them, or of descriptors.
OUT_OF_SOCKETS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: Tries to find two neighbouring free ports.
PORT_TRIES = 64

# Plain ints: pyzmq's enums cost a microsecond per `&`.
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE_NOBLOCK = int(zmq.SNDMORE) | _NOBLOCK

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What all data and control sockets of a node share.

    Attributes:
        max_message_bytes: the largest frame this node accepts.
        high_water: messages queued per connection and direction.
        keys: of this node; None = no CURVE.
    """

    max_message_bytes: int
    high_water: int
    keys: CurveKeys | None = None

    def bound(self, context: Context, kind: int, host: str) -> Socket:
        """A socket to bind. ZeroMQ asks at ENDPOINT about each connection to it, and lets nobody in where no one answers there."""
        socket = self._socket(context, kind, host)
        socket.zap_domain = DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if self.keys is not None:
            socket.curve_server = 1
            socket.curve_secretkey = self.keys.secret.encode("ascii")
        return socket

    def connecting(self, context: Context, kind: int, host: str, key: str) -> Socket:
        """A socket to connect to the node that has this public key; "" where this node has no keys."""
        socket = self._socket(context, kind, host)
        socket.immediate = 1
        socket.reconnect_ivl = -1
        socket.connect_timeout = HANDSHAKE_MILLISECONDS
        if self.keys is not None:
            socket.curve_serverkey = key.encode("ascii")
            socket.curve_publickey = self.keys.public.encode("ascii")
            socket.curve_secretkey = self.keys.secret.encode("ascii")
        return socket

    def _socket(self, context: Context, kind: int, host: str) -> Socket:
        socket = context.socket(kind)
        socket.linger = 0
        socket.ipv6 = ":" in host
        socket.sndhwm = socket.rcvhwm = self.high_water
        socket.maxmsgsize = self.max_message_bytes + (0 if self.keys is None else CURVE_FRAME_BYTES)
        socket.handshake_ivl = HANDSHAKE_MILLISECONDS
        socket.heartbeat_ivl = HEARTBEAT_MILLISECONDS
        socket.heartbeat_timeout = SILENCE_MILLISECONDS
        if kind == zmq.ROUTER:
            socket.router_mandatory = 1
        return socket

    def questions(self, context: Context) -> Socket:
        """Where ZeroMQ asks who may connect; there before the first bind."""
        socket = context.socket(zmq.REP)
        socket.linger = 0
        socket.bind(ENDPOINT)
        return socket

    def bind_planes(self, context: Context, bind: str) -> tuple[Socket, Socket, str]:
        """PULL and ROUTER on two neighbouring ports, and `host:port` of the first.

        Raises:
            AddressInUse: somebody else listens there.
            ConfigError: the address is none of this machine's.
            zmq.ZMQError: out of sockets (OUT_OF_SOCKETS).
        """
        host, _, port = bind.rpartition(":")
        wanted = bind
        for _ in range(PORT_TRIES if port == "0" else 1):
            wanted, made = bind, []
            try:
                made.append(pull := self.bound(context, zmq.PULL, host))
                made.append(router := self.bound(context, zmq.ROUTER, host))
                pull.bind(f"tcp://{host}:{'*' if port == '0' else port}")
                data_port = _bound_port(pull)
                wanted = f"{host}:{data_port + 1}"
                router.bind(f"tcp://{wanted}")
            except zmq.ZMQError as exc:
                for socket in made:
                    socket.close(0)
                if exc.errno in OUT_OF_SOCKETS:
                    raise
                if exc.errno != errno.EADDRINUSE:
                    raise ConfigError(f"cannot bind {wanted}: {exc}; expected an IP address of this machine and a port") from exc
            else:
                return pull, router, f"{host}:{data_port}"
        raise AddressInUse(wanted)


def _bound_port(socket: Socket) -> int:
    return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def readable(socket: Socket) -> bool:
    """Whether a whole message waits. Takes in what ZeroMQ's thread has to tell the socket, too.

    That is what asking for EVENTS does, but pyzmq looks an option's name up in Python at every call.
    """
    return bool(zmq.zmq_poll([(socket, _POLLIN)], 0))


def send(socket: Socket, frames: Sequence[Buffer]) -> bool:
    """One message, without waiting. ZeroMQ takes all of its frames or none: only the first can find the queue full."""
    last = len(frames) - 1
    try:
        for index, frame in enumerate(frames):
            flags = _SNDMORE_NOBLOCK if index < last else _NOBLOCK
            socket.send(frame, flags, copy=len(frame) < SEND_COPY_BELOW_BYTES)
    except zmq.Again:
        return False
    return True


def receive(socket: Socket, limit: int) -> list[zmq.Frame] | None:
    """The message that waits in a readable socket; [] when it has more than `limit` frames; None when there was none after all.

    That happens once for each connection let in: ZeroMQ puts its User-Id before its first message, counts it as readable and
    then keeps it for itself.
    """
    frames: list[zmq.Frame] = []
    while True:
        try:
            frame = socket.recv(_NOBLOCK, copy=False)
        except zmq.Again:
            return None
        if len(frames) <= limit:
            frames.append(frame)
        if not frame.more:
            return frames if len(frames) <= limit else []


def buffer(frame: zmq.Frame) -> Buffer:
    """A frame's content: a view, which keeps ZeroMQ's memory alive, or a copy where that is cheaper."""
    return frame.buffer if len(frame) >= COPY_BELOW_BYTES else frame.bytes


def event_of(frames: list[zmq.Frame]) -> tuple[int, int]:
    """(event, value) of a monitor message; the value is a file descriptor or an error number."""
    event, value = struct.unpack("=hi", frames[0].bytes)
    return event, value


def connection_property(frame: zmq.Frame, name: str) -> str:
    """What ZeroMQ knows of the connection a frame came by; "" when nothing."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
