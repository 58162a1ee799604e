"""A listener of the same kind as a node, which does nothing with what it hears: `python -m bench.attack.dummy MAX_MESSAGE_BYTES`.

Prints its data port, serves until its standard input ends, then prints the CPU seconds it took.
"""

from __future__ import annotations

import sys
import time

import zmq

from zpipe.transport.sockets import HANDSHAKE_MILLISECONDS, HEARTBEAT_MILLISECONDS, SILENCE_MILLISECONDS


def main(max_message_bytes: int) -> None:
    context = zmq.Context()
    while True:
        pull, router = context.socket(zmq.PULL), context.socket(zmq.ROUTER)
        for socket in (pull, router):
            socket.linger, socket.maxmsgsize, socket.handshake_ivl = 0, max_message_bytes, HANDSHAKE_MILLISECONDS
            socket.rcvhwm = socket.sndhwm = 1000
            socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MILLISECONDS, SILENCE_MILLISECONDS
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        try:
            router.bind(f"tcp://127.0.0.1:{port + 1}")
        except zmq.ZMQError:
            pull.close()
            router.close()
            continue
        break
    print(port, flush=True)
    poller = zmq.Poller()
    for socket in (pull, router):
        poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if sys.stdin.fileno() in ready:
            break
        for socket in (pull, router):
            while socket in ready and socket.get(zmq.EVENTS) & zmq.POLLIN:
                socket.recv_multipart(zmq.NOBLOCK)
    print(time.process_time(), flush=True)
    context.destroy(linger=0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
