"""The simulator: a heap and a virtual clock around the same `NodePolicy` objects that live nodes run.

What decides is the code that runs on the robot; what is modelled is the rest:

- *Arrivals* are those of `zpipe bench` with the same seed (`zpipe.load`), sample by sample.
- *Service*: a batch takes what the device's profile says, or a time drawn from measured ones; its answers are the bundle's
  recorded ones (`replay.npz`), through the executors' exit gate.
- *Links* (`network.py`): bandwidth, latency, jitter, FIFO per direction, airtime shared within a medium. Every message travels over
  them with the size it has on the wire (`sizes.py`), packed as the link's codec would (`packing.py`). Hello is instantaneous, and a
  connection breaks only where a policy gives it up (rule R5), or its other end dies.
- *Faults* (`faults.py`): nodes that are dead, die, or stand still for a while, as a plan says.
- *Overhead* of a live node (`hop.py`): a measured profile, nothing by default. Nothing is fitted to the run it is compared with.

Differs from a live run: all nodes share one clock, so budgets lose nothing on the way.
"""

from __future__ import annotations

from zpipe.service import Spread
from zpipe.sim.capacity import capacity
from zpipe.sim.faults import Death, NodeFault, Stall
from zpipe.sim.hop import HopProfile, load_hop_profile
from zpipe.sim.run import SimOptions, compare_sim, generated, run_sim, simulate

__all__ = [
    "Death",
    "HopProfile",
    "NodeFault",
    "SimOptions",
    "Spread",
    "Stall",
    "capacity",
    "compare_sim",
    "generated",
    "load_hop_profile",
    "run_sim",
    "simulate",
]
