"""Which nodes this machine is to run, and whether it may listen where they are to.

A firewall does not show from here: whether others reach a port is for `zpipe doctor --topology F` on another board to say.
"""

from __future__ import annotations

import errno
import socket

import psutil

from zpipe.doctor.finding import Finding, reason
from zpipe.security import is_loopback
from zpipe.topology import NodeSpec, Topology

#: What ZeroMQ takes for every interface.
ANY_HOST = "*"


def host_and_port(address: str) -> tuple[str, int]:
    """Of `host:port`, brackets of IPv6 taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def own_addresses() -> set[str]:
    """Of every interface."""
    return {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}


def ranks_here(topology: Topology) -> tuple[int, ...]:
    """The nodes whose address is one of this machine's."""
    own = own_addresses()
    return tuple(node.rank for node in topology.nodes if is_loopback(node.address) or _resolved(node.host) & own)


def _resolved(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def port(node: NodeSpec, *, running: bool) -> Finding:
    """Whether a node's two ports can be bound: data, and control above it.

    Args:
        node: with its address known.
        running: it answers there.
    """
    name = f"ports of rank {node.rank}"
    host, first = host_and_port(node.bind_address)
    both = f"{first} and {first + 1} of {host}"
    if running:
        return Finding(name, "ok", f"{both}: the node listens there", required=True)
    number = first
    try:
        for number in (first, first + 1):
            _bind(host, number)
    except OSError as exc:
        return _why_not(name, node, host, number, exc)
    return Finding(name, "ok", f"{both} can be bound", required=True)


def _bind(host: str, number: int) -> None:
    """As ZeroMQ does: with SO_REUSEADDR, which lets a port be taken that was just given up."""
    wanted = None if host == ANY_HOST else _interface(host) or host
    family, kind, protocol, _, address = socket.getaddrinfo(wanted, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)
        trial.listen(1)


def _interface(name: str) -> str | None:
    """The IPv4 address of a network interface: ZeroMQ binds those by name, too."""
    entries = psutil.net_if_addrs().get(name, [])
    return next((entry.address for entry in entries if entry.family == socket.AF_INET), None)


def _why_not(name: str, node: NodeSpec, host: str, number: int, exc: OSError) -> Finding:
    if isinstance(exc, socket.gaierror):
        found, remedy = f"{host} does not resolve here ({exc.strerror})", f"echo 'ADDRESS {host}' | sudo tee -a /etc/hosts"
    elif exc.errno == errno.EADDRINUSE:
        found = f"port {number} of {host} is in use by {_holder(number)}, which is no node that answers"
        remedy = f"sudo ss -ltnp 'sport = :{number}' shows who; end it, or give rank {node.rank} another port"
    elif exc.errno == errno.EADDRNOTAVAIL:
        own = ", ".join(sorted(address for address in own_addresses() if "." in address))
        found = f"{host} is none of this machine's addresses ({own})"
        remedy = f"run rank {node.rank} on its own board, or set its `bind: 0.0.0.0` where the address is a router's"
    elif exc.errno == errno.EACCES:
        found = f"port {number} is for root alone"
        remedy = f"give rank {node.rank} a port above 1023, or: sudo sysctl net.ipv4.ip_unprivileged_port_start={number}"
    else:
        found, remedy = f"port {number} of {host}: {reason(exc)}", f"give rank {node.rank} another address"
    return Finding(name, "broken", found, remedy, required=True)


def _holder(number: int) -> str:
    """Who listens at a port, as far as we may know."""
    try:
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == number and each.pid:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    except psutil.Error:
        pass
    return "another process"
