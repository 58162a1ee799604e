"""A topology as the short YAML a person would have written: what has its default is left out, one line for each node and link."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from zpipe.topology import LinkSpec, NodeSpec, PolicySpec, SourceSpec, Topology

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "none"}


def to_yaml(topology: Topology, comment: str) -> str:
    """The text of a topology file.

    Args:
        topology: with one source, rank 0, that has its defaults but for its deadline; without keys.
        comment: lines for its top.
    """
    default = PolicySpec()
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += [f"name: {_text(topology.name)}", f"bundle: {_text(topology.bundle)}"]
    lines += [f"students: {list(topology.students)}"] if topology.students else []
    lines.append("nodes:")
    lines += [f"  - {_mapping(_node(node))}" for node in topology.nodes]
    if topology.links:
        lines.append("links:")
        lines += [f"  - {_mapping(_link(link))}" for link in topology.links]
    deadline = topology.sources[0].deadline_seconds
    if deadline != SourceSpec(0).deadline_seconds:
        lines.append(f"source: {{deadline: {deadline:g} s}}")
    policy = {"offload": topology.policy.offload}
    if topology.policy.exit_point != default.exit_point:
        policy["exit"] = _text(topology.policy.exit_point)
    if topology.policy.report_interval_seconds != default.report_interval_seconds:
        policy["report_interval"] = f"{topology.policy.report_interval_seconds!r} s"
    if topology.policy.offload_input != default.offload_input:
        policy["offload_input"] = "true"
    if topology.policy.redundancy != default.redundancy:
        policy["redundancy"] = topology.policy.redundancy
    lines.append(f"policy: {topology.policy.offload if len(policy) == 1 else _mapping(policy)}")
    return "\n".join(lines) + "\n"


def _node(node: NodeSpec) -> dict[str, str]:
    default = NodeSpec(0, ())
    found = {"rank": str(node.rank), "stages": str(list(node.stages))}
    for key in ("address", "executor", "device"):
        if getattr(node, key) != getattr(default, key):
            found[key] = _text(getattr(node, key))
    if node.max_batch != default.max_batch:
        found["max_batch"] = str(node.max_batch)
    return found


def _link(link: LinkSpec) -> dict[str, str]:
    default = LinkSpec((0, 1))
    found = {"between": str(list(link.between))}
    if link.bandwidth_bps < math.inf:
        found["bandwidth"] = bandwidth(link.bandwidth_bps)
    for key, seconds in (("latency", link.latency_seconds), ("jitter", link.jitter_seconds)):
        if seconds:
            found[key] = f"{1e3 * seconds!r} ms" if float(f"{1e3 * seconds!r}") * 1e-3 == seconds else f"{seconds!r} s"
    for key in ("codec", "medium"):
        if getattr(link, key) != getattr(default, key):
            found[key] = _text(getattr(link, key))
    if link.window != default.window:
        found["window"] = str(link.window)
    return found


def bandwidth(bps: float) -> str:
    """`20 Mbit/s`, exactly: read again it is the same number."""
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bps >= factor and float(f"{bps / factor:g}") * factor == bps:
            return f"{bps / factor:g} {unit}"
    return f"{bps!r} bit/s"


def _mapping(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def _text(value: str) -> str:
    """Quoted where YAML would read it as something else."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return "'" + value.replace("'", "''") + "'"
