"""From the plain values of a topology file to a checked `Topology`; every default is the one of its dataclass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import cast

from zpipe.model import AUTO_CODEC, CODECS, MAX_PARTS
from zpipe.topology.check import check_links
from zpipe.topology.keys import parse_security
from zpipe.topology.reader import BANDWIDTH_UNITS, TIME_UNITS, At, Fields, integer, items, one_of
from zpipe.topology.sources import parse_sources, rank_of
from zpipe.topology.spec import (
    MOST_SHARES,
    RANKED,
    LinkSpec,
    NodeSpec,
    OffloadInput,
    Order,
    PolicySpec,
    Redundancy,
    Topology,
    has_port,
)

LINK_CODECS = (*CODECS, AUTO_CODEC)
OFFLOADS = ("local", "cheapest", "ddi", "mdi", "pa-mdi", "ar-mdi", "ms-mdi", "fifo")
OFFLOAD_INPUT: Mapping[object, OffloadInput] = {True: "yes", False: "no", "yes": "yes", "no": "no", "auto": "auto"}
ORDERS = ("fifo", "priority")
REDUNDANCIES: tuple[Redundancy, ...] = ("failover", "hedged", "all")
SHAPES = ("line", "ring", "mesh", "star")

#: A batch is one tensor and one run of the exit gate, on a GPU one block of it.
MAX_BATCH = 1024
#: A Credit names every number it holds, and a control message may hold 1,024 (WireLimits.max_entries).
MAX_WINDOW = 1024
REPORT_SECONDS = (0.001, 60.0)
#: Waiting that is worth a class: nobody waits longer than the longest deadline.
AGEING_SECONDS = (0.0, 1e6)


def parse(value: object, *, file: str, path: Path | None, name: str = "topology", read_keys: bool = True) -> Topology:
    """The topology that these plain values describe.

    Args:
        value: what YAML or JSON gave.
        file: its name in error messages.
        path: where it was read from.
        name: the topology's name where the file gives none.
        read_keys: whether the public keys it names must be there.

    Raises:
        TopologyError: something is wrong; one line that names file, key, found and expected.
    """
    at = At(file)
    top = Fields(at, value, known=_TOP_KEYS)
    nodes = _nodes(at / "nodes", top.raw("nodes"))
    students = _students(at / "students", top.raw("students"))
    topology = Topology(
        name=top.text("name", name),
        bundle=top.text("bundle"),
        nodes=nodes,
        links=parse_links(at / "links", top.raw("links"), len(nodes)),
        sources=parse_sources(top, len(nodes)),
        policy=_policy(at / "policy", top.raw("policy"), students=bool(students)),
        security=parse_security(at / "security", top.raw("security"), path=path, nodes=len(nodes), read_keys=read_keys),
        shared_memory=top.flag("shared_memory", default=True),
        students=students,
        path=path,
    )
    check_links(topology, at)
    _check_shares(topology, at / "policy" / "min_share")
    return topology


_TOP_KEYS = ("name", "bundle", "nodes", "links", "source", "sources", "policy", "security", "shared_memory", "students")


def _students(at: At, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_PARTS:
        raise at.wrong(value, f"how many stages each of 1 to {MAX_PARTS} students has, such as [1, 1, 2]")
    return tuple(integer(here, stages, minimum=1) for here, stages in items(at, value))


# ---- nodes -------------------------------------------------------------------------------------


def _nodes(at: At, value: object) -> tuple[NodeSpec, ...]:
    nodes: list[NodeSpec] = []
    ports: dict[tuple[str, int], str] = {}
    for here, entry in items(at, value):
        node = _node(here, entry)
        if any(other.rank == node.rank for other in nodes):
            raise (here / "rank").error(f"rank {node.rank} a second time", "each rank once")
        if node.rank != len(nodes):
            raise (here / "rank").wrong(node.rank, f"{len(nodes)}: nodes are listed by rank, from 0, without a gap")
        if not node.launched:
            for port, plane in ((node.port, "data"), (node.port + 1, "control")):
                taken = ports.setdefault((node.host, port), f"the {plane} port of rank {node.rank}")
                if taken != f"the {plane} port of rank {node.rank}":
                    raise (here / "address").error(
                        f"{node.address!r}, whose {plane} port {port} is {taken}",
                        "an address of its own (the control port is one above the data port)",
                    )
        nodes.append(node)
    if not nodes:
        raise at.error("no nodes", "at least one")
    return tuple(nodes)


def _node(at: At, value: object) -> NodeSpec:
    read = Fields(at, value, known=("rank", "stages", "address", "bind", "executor", "device", "max_batch", "slots"))
    default = NodeSpec(read.integer("rank"), ())
    return NodeSpec(
        rank=default.rank,
        stages=_stages(at / "stages", read.raw("stages")),
        address=parse_address(at / "address", read.text("address", default.address)),
        bind=_bind(at / "bind", read.text("bind", default.bind)),
        executor=read.text("executor", default.executor),
        device=read.text("device", default.device),
        max_batch=read.integer("max_batch", default.max_batch, minimum=1, maximum=MAX_BATCH),
        slots=read.integer("slots", default.slots, minimum=1),
    )


def _stages(at: At, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise at.wrong(value, "a list of stage numbers such as [0, 1], [] for none")
    stages = [integer(here, stage) for here, stage in items(at, value)]
    for index, stage in enumerate(stages):
        if stage in stages[:index]:
            raise (at / index).error(f"stage {stage} a second time", "each stage once")
    return tuple(sorted(stages))


def parse_address(at: At, address: str) -> str:
    """The address, where it is one."""
    expected = "host:port such as 192.168.1.10:5800, with a port from 0 to 65534 (the control port is one above)"
    host, _, port = address.rpartition(":")
    if not host or not has_port(address) or int(port) > 65534:
        raise at.wrong(address, expected)
    return address


def _bind(at: At, bind: str) -> str:
    return parse_address(at, bind) if has_port(bind) else bind


# ---- links -------------------------------------------------------------------------------------

_LINK_KEYS = ("bandwidth", "latency", "jitter", "codec", "medium", "window")


def parse_links(
    at: At, value: object, nodes: int, *, end: Callable[[At, object], int] | None = None, codec: str = LinkSpec((0, 1)).codec
) -> tuple[LinkSpec, ...]:
    """The links that these plain values describe.

    Args:
        at: their place in the file.
        value: what YAML gave.
        nodes: how many there are.
        end: reads one end of a link, its rank if not given.
        codec: of links that name none.

    Raises:
        TopologyError: something is wrong.
    """
    # No links: only for a single node. A word or a mapping with `shape`: all links alike. A list: one by one.
    if value is None and nodes == 1:
        return ()
    if isinstance(value, str):
        value = {"shape": value}
    if isinstance(value, Mapping):
        read = Fields(at, value, known=("shape", *_LINK_KEYS))
        return tuple(_link(read, between, codec) for between in _shape(read.text("shape", names=SHAPES), nodes))
    if not isinstance(value, list | tuple):
        raise at.wrong(value, f"one of {', '.join(SHAPES)}, or a list of links")
    links: list[LinkSpec] = []
    for here, entry in items(at, value):
        read = Fields(here, entry, known=("between", *_LINK_KEYS))
        link = _link(read, _between(here / "between", read.raw("between"), end or partial(rank_of, nodes=nodes)), codec)
        if any(other.between == link.between for other in links):
            raise (here / "between").error(f"a second link between {link.between[0]} and {link.between[1]}", "one")
        links.append(link)
    return tuple(links)


def _link(read: Fields, between: tuple[int, int], codec: str) -> LinkSpec:
    default = LinkSpec(between)
    return LinkSpec(
        between=between,
        bandwidth_bps=read.quantity("bandwidth", BANDWIDTH_UNITS, math.inf),
        latency_seconds=read.quantity("latency", TIME_UNITS, default.latency_seconds, zero=True),
        jitter_seconds=read.quantity("jitter", TIME_UNITS, default.jitter_seconds, zero=True),
        codec=read.text("codec", codec, names=LINK_CODECS),
        medium=read.text("medium", default.medium),
        window=read.integer("window", default.window, minimum=1, maximum=MAX_WINDOW),
    )


def _between(at: At, value: object, end: Callable[[At, object], int]) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise at.wrong(value, "two ranks such as [0, 1]")
    low, high = sorted(end(here, rank) for here, rank in items(at, value))
    if low == high:
        raise at.error(f"rank {low} twice" if value[0] == low else f"{value[0]!r} twice", "two different ranks")
    return low, high


def _shape(shape: str, nodes: int) -> Iterable[tuple[int, int]]:
    if shape == "mesh":
        return combinations(range(nodes), 2)
    if shape == "star":
        return [(0, rank) for rank in range(1, nodes)]
    line = list(pairwise(range(nodes)))
    # Two nodes in a ring share the one link that they have in a line.
    return [*line, (0, nodes - 1)] if shape == "ring" and nodes > 2 else line


# ---- policy ------------------------------------------------------------------------------------


def _policy(at: At, value: object, *, students: bool) -> PolicySpec:
    default = PolicySpec()
    if value is None:
        return default
    if isinstance(value, str):
        value = {"offload": value} if value in OFFLOADS else value
    if isinstance(value, str):
        raise at.wrong(value, one_of(OFFLOADS, value))
    read = Fields(at, value, known=_POLICY_KEYS)
    offload = read.text("offload", default.offload, names=OFFLOADS)
    order = cast(Order, read.text("order", "priority" if offload in RANKED else default.order, names=ORDERS))
    for key in ("min_share", "max_batch_low", "ageing"):
        if key in read and order != "priority":
            raise (at / key).error("it with order fifo, which knows no classes", "order: priority, or none of it")
    if "redundancy" in read and not students:
        raise (at / "redundancy").error(
            "it where `students` is empty or not there", "students beside it, such as [1, 1, 2], or none of it"
        )
    offload_input = _offload_input(at / "offload_input", read.raw("offload_input"), offload)
    if students and offload_input != "no":
        key = "offload" if offload == "ddi" else "offload_input"
        raise (at / key).wrong(read.raw(key), "none that passes raw inputs on: every student gets them from their source")
    return PolicySpec(
        offload=offload,
        exit_point=read.text("exit", default.exit_point),
        report_interval_seconds=read.quantity(
            "report_interval", TIME_UNITS, default.report_interval_seconds, bounds=REPORT_SECONDS
        ),
        output_threshold=read.integer("output_threshold", default.output_threshold),
        offload_input=offload_input,
        order=order,
        min_share=read.number("min_share", default.min_share, valid=_is_share, expected="a number from 0 to below 0.5"),
        max_batch_low=read.integer("max_batch_low", default.max_batch_low, maximum=MAX_BATCH),
        ageing_seconds=read.quantity("ageing", TIME_UNITS, default.ageing_seconds, zero=True, bounds=AGEING_SECONDS),
        redundancy=cast(Redundancy, read.text("redundancy", default.redundancy, names=REDUNDANCIES)),
    )


_POLICY_KEYS = (
    "offload",
    "exit",
    "report_interval",
    "output_threshold",
    "offload_input",
    "order",
    "min_share",
    "max_batch_low",
    "ageing",
    "redundancy",
)


def _check_shares(topology: Topology, at: At) -> None:
    """That shares which somebody chose leave the highest class its half; the default gives way (`Topology.min_share`)."""
    share, lower = topology.policy.min_share, len(topology.classes) - 1
    if share * lower > MOST_SHARES and share != PolicySpec().min_share:
        raise at.error(
            f"{share:g} for each of {lower} classes below the highest",
            f"at most {MOST_SHARES / lower:.3g}, so that together they are owed no more than half",
        )


def _is_share(x: float) -> bool:
    return 0.0 <= x < 0.5


def _offload_input(at: At, value: object, offload: str) -> OffloadInput:
    """Data-distributed inference is nothing but raw inputs going out."""
    if value is None:
        return "yes" if offload == "ddi" else PolicySpec().offload_input
    if not isinstance(value, bool | str) or value not in OFFLOAD_INPUT:
        raise at.wrong(value, "true, false or auto")
    if offload == "ddi" and OFFLOAD_INPUT[value] != "yes":
        raise at.wrong(value, "true with offload ddi, which sends nothing else; leave it out")
    return OFFLOAD_INPUT[value]
