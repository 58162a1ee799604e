"""Boards over SSH: files brought to them, nodes started, stopped and looked at there.

Through asyncssh (the extra `fleet`), in `zpipe.fleet.connection` alone: known hosts, keys, agent and ~/.ssh/config are those of
`ssh`. What runs on a board is `board.sh`, which needs a POSIX shell and what every Linux has; zpipe itself only to run nodes.
"""

from zpipe.fleet.control import NodeStatus, restart, start, status, stop, tail
from zpipe.fleet.hosts import Board, boards, hosts_file
from zpipe.fleet.push import Pushed, push

__all__ = ["Board", "NodeStatus", "Pushed", "boards", "hosts_file", "push", "restart", "start", "status", "stop", "tail"]
