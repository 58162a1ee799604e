"""The edge lab: a topology's boards and cables on one Linux machine, root only.

Each node is a network namespace, each link a veth pair with the link's bandwidth (`tc tbf`); slow boards get a CPU quota (cgroup).
netem, which delays packets, is often missing. So a link with bandwidth or latency leads through a namespace of its own, in which
a small TCP relay adds latency and jitter and can stall or reset the link while it runs.

    lab = EdgeLab(topology, cpu_shares={2: 0.25})
    with lab, lab.entered(0):
        async with Pipeline.local(topology, sites=lab.sites) as pipeline:
            ...
            lab.stall((0, 1), 2.0)

`edge.py` has EdgeLab; `plan.py` the commands that make one, without running them; `names.py` who owns what, and what a dead lab
left behind; `host.py` what this machine has to offer (root, iproute2, cgroups), `relay.py` the relay's process and `delay.py` its
delays.
"""

from __future__ import annotations
