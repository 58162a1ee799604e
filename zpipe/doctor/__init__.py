"""What works on this machine, what is missing, and the command that mends it.

Every check is a function that returns Findings and never raises. Nothing here is needed to run: a machine without ONNX Runtime,
without a bundle or without a GPU still gets its list. GPU libraries are imported in a process of their own, since a broken one
may abort instead of raising, and importing torch takes seconds.

`python.py` the interpreter, libraries and the bundle; `machine.py` network, cores, memory, clock; `gpu.py` what the executors on
a GPU need, the engines that were built, and which executor `auto` takes. `topology.py` what one topology needs beside that:
`ports.py` where its nodes listen, `keys.py` whom they let in, `network.py` how they are reached from here.
"""

from __future__ import annotations

from collections.abc import Callable

from zpipe.doctor import gpu, machine, python
from zpipe.doctor.finding import Finding, Status, reason
from zpipe.doctor.terminal import render_findings

__all__ = ["Finding", "Status", "diagnose", "render_findings"]


def diagnose(*, loopback: Callable[[], str] | None, topology: str | None = None, rank: int | None = None) -> list[Finding]:
    """Looks at everything, in the order people read it: Python, libraries, the network, this machine, GPUs.

    Args:
        loopback: sends a message over ZeroMQ and says how that went, raising what stands in the way; None leaves it out.
        topology: a file or name; what it needs is looked at, too, and its nodes wherever they are.
        rank: of it, the node that this machine is to run; those with an address of this machine where None.

    Raises:
        ConfigError: the topology has no such rank.
    """
    findings = [python.version(), *map(python.dependency, python.DEPENDENCIES), python.bundle(), python.stages()]
    if loopback is not None:
        findings += [machine.zeromq(loopback), machine.curve()]
    findings += [machine.cores(), machine.memory(), *machine.descriptors(), machine.clock(), *machine.governor()]
    findings += [*gpu.findings(), *map(python.reader, python.READERS)]
    return findings if topology is None else findings + _of_topology(topology, rank)


def _of_topology(name: str, rank: int | None) -> list[Finding]:
    try:
        from zpipe.doctor import topology
    except ImportError as exc:
        return [Finding("topology", "broken", f"not looked at: {reason(exc)}", "mend what is missing above", required=True)]
    return topology.findings(name, rank)
