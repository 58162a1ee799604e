"""This machine: the network of its processes, cores, memory, descriptors, clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from zpipe.descriptors import MOST_DESCRIPTORS, limits
from zpipe.doctor.finding import Finding, reason
from zpipe.environment import JETSON, pip

#: A node takes about 100 MB, the four of line4.yaml and the bench 450 MB.
SCARCE_MEMORY_BYTES = 500e6
#: A link takes 10 descriptors of a node, so that this is 64 neighbours and 3,000 strangers who say nothing.
FEW_DESCRIPTORS = 4096
#: Stages take 0.3 ms and more; a coarser clock would make service times up.
COARSE_CLOCK_SECONDS = 1e-4
#: These let the clock follow the load too slowly for stages that last under a millisecond.
SLOW_GOVERNORS = ("powersave", "conservative")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def zeromq(loopback: Callable[[], str]) -> Finding:
    """A message over ZeroMQ and back."""
    try:
        return Finding("ZeroMQ loopback", "ok", loopback(), required=True)
    except Exception as exc:  # whatever it is, ZeroMQ does not work here
        remedy = "allow TCP on 127.0.0.1 (firewall, sandbox): sudo ip link set lo up"
        return Finding("ZeroMQ loopback", "broken", reason(exc), remedy, required=True)


def curve() -> Finding:
    """Keys need a libzmq that was built with them."""
    try:
        from zpipe.transport.curve import check_curve

        check_curve()
    except Exception as exc:
        remedy = "pip install --force-reinstall --only-binary pyzmq pyzmq"
        return Finding("CURVE keys", "broken", reason(exc), remedy)
    return Finding("CURVE keys", "ok", "can be used; `zpipe keygen` makes them")


def cores() -> Finding:
    """What it is, and what this process may run on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = os.cpu_count() or usable
    found = f"{usable} cores" if usable == there else f"{usable} of {there} cores (the others are not ours to use)"
    found += f" of {model}" if (model := _model()) else ""
    if usable > 1:
        return Finding("CPU", "ok", found)
    return Finding("CPU", "warning", found, "give local runs two or more: taskset -c 0-3 zpipe bench, docker run --cpus 4")


def _model() -> str:
    try:
        from zpipe.report.machine import cpu_model
    except ImportError:  # NumPy, for one: said above
        return ""
    return cpu_model()


def memory() -> Finding:
    """What is free now."""
    try:
        import psutil
    except ImportError as exc:
        return Finding("memory", "warning", reason(exc), f"{pip()} install psutil")
    there = psutil.virtual_memory()
    found = f"{there.available / 1e9:.1f} of {there.total / 1e9:.1f} GB free"
    if there.available >= SCARCE_MEMORY_BYTES:
        return Finding("memory", "ok", found)
    expected = f"expected {SCARCE_MEMORY_BYTES / 1e6:.0f} MB for line4.yaml on one machine"
    return Finding("memory", "warning", f"{found}, {expected}", "fewer ranks here: zpipe bench --topology line2.yaml")


def descriptors() -> list[Finding]:
    """How many connections a node here can have; nothing where the system does not limit that."""
    found = limits()
    if found is None:
        return []
    soft, hard = found
    if hard < FEW_DESCRIPTORS:
        said = f"{hard} for a process, expected {FEW_DESCRIPTORS}: connections of strangers can take them all"
        remedy = f"sudo prlimit --pid $$ --nofile={MOST_DESCRIPTORS} (for a service: LimitNOFILE={MOST_DESCRIPTORS})"
        return [Finding("descriptors", "warning", said, remedy)]
    most = min(hard, MOST_DESCRIPTORS)
    raised = f", which a node raises to {most}" if soft < most else ""
    return [Finding("descriptors", "ok", f"{soft} for a process{raised}")]


def clock() -> Finding:
    """The smallest step that the monotonic clock is seen to make."""
    step = min(_clock_steps(200))
    found = f"steps of {1e9 * step:.0f} ns"
    if step <= COARSE_CLOCK_SECONDS:
        return Finding("clock", "ok", found)
    remedy = "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Finding("clock", "warning", f"{found}, coarser than a stage", remedy)


def _clock_steps(count: int) -> Iterator[float]:
    for _ in range(count):
        before = now = time.monotonic()
        while now == before:
            now = time.monotonic()
        yield now - before


def governor() -> list[Finding]:
    """How the CPU's clock follows the load; nothing where the kernel does not say (virtual machines)."""
    try:
        name = GOVERNOR.read_text(encoding="ascii").strip()
        driver = GOVERNOR.with_name("scaling_driver").read_text(encoding="ascii").strip()
    except OSError:
        return []
    # intel_pstate and amd-pstate-epp call their ordinary, quick governor powersave, too.
    if name not in SLOW_GOVERNORS or "pstate" in driver:
        return [Finding("CPU governor", "ok", f"{name} ({driver})")]
    remedy = "sudo jetson_clocks" if JETSON.exists() else "sudo cpupower frequency-set -g performance"
    return [Finding("CPU governor", "warning", f"{name}: short stages run at a low clock", remedy)]
