"""Everything a node's policy keeps, how much of it there is, and why it cannot grow with time.

`TABLES` is the inventory: a test drives meshes through losses, cuts and restarts and compares every size with its limit, and
`stats()["tables"]` of a live node shows both. Whoever adds a table to the policy adds a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zpipe.policy.answers import MOST_STRANDED
from zpipe.policy.credit import MISSED_TOLD
from zpipe.policy.delivery import Source
from zpipe.policy.node import NodePolicy


@dataclass(frozen=True, slots=True)
class Table:
    """One of them.

    Attributes:
        size: entries now.
        limit: entries at most, from the configuration alone.
        why: what keeps it below.
    """

    name: str
    size: Callable[[NodePolicy], int]
    limit: Callable[[NodePolicy], int]
    why: str


def _slots(node: NodePolicy) -> int:
    """Tasks a node holds at most (rule C1)."""
    return node.config.own_slots + sum(neighbour.window_in for neighbour in node.config.neighbours)


def _window_out(node: NodePolicy) -> int:
    return sum(neighbour.window_out for neighbour in node.config.neighbours)


def _of_source(measure: Callable[[Source], int]) -> Callable[[NodePolicy], int]:
    """0 where no samples enter."""
    return lambda node: measure(node.source) if node.source is not None else 0


def _most_open(source: Source) -> int:
    return source.config.max_open + source.waiting_count + source.room_left


def _most_scheduled(source: Source) -> int:
    return 2 * _most_open(source) + 64


def _unseen(node: NodePolicy) -> int:
    links = [neighbour.outgoing for neighbour in node._links.neighbours.values()]
    return sum(len(link.estimate._unseen) for link in links if link is not None)


TABLES = (
    Table("tasks held", lambda node: node.held_count, _slots, "each holds a slot (C1)"),
    Table("input queue", lambda node: node.input_length, _slots, "each task holds a slot (C1)"),
    Table("output queue", lambda node: node.output_length, _slots, "each task holds a slot (C1)"),
    Table("running", lambda node: len(node._runs), lambda node: node.config.runs, "batches the executor is given at once"),
    Table(
        "slots taken by neighbours",
        lambda node: sum(len(link.held) + len(link.carried) for link in node._links.incoming.values()),
        lambda node: sum(neighbour.window_in for neighbour in node.config.neighbours),
        "tasks beyond the limit of the last Credit are dropped (C3)",
    ),
    Table(
        "outstanding",
        lambda node: sum(len(n.outgoing.outstanding) for n in node._links.neighbours.values() if n.outgoing is not None),
        _window_out,
        "nothing is sent without credit (C2)",
    ),
    Table("sent, arrival not known", _unseen, _window_out, "below the Credit that names them, they go (C3)"),
    Table(
        "dice thrown",
        lambda node: len(node._outlet._thrown),
        lambda node: sum(len(neighbour.lanes_out) for neighbour in node.config.neighbours),
        "the last of each lane and neighbour (A4)",
    ),
    Table("lanes held up", lambda node: len(node._outlet._held_up), lambda node: len(node._links.takers), "one head of each"),
    Table(
        "sources known",
        lambda node: len(node._tasks._sessions),
        lambda node: (len(node.config.nearer) + 1) * len(node._links.incoming),
        "one session of each source and link, forgotten after its last deadline (S5)",
    ),
    Table(
        "numbers missed",
        lambda node: sum(len(link.missed) for link in node._links.incoming.values()),
        lambda node: MISSED_TOLD * len(node._links.incoming),
        "the latest of each link's connection (C7)",
    ),
    Table(
        "answers without a way",
        lambda node: len(node._answers.stranded),
        lambda node: MOST_STRANDED,
        "the oldest give way (R8)",
    ),
    Table(
        "queue histogram",
        lambda node: len(node.counts.queue_histogram),
        lambda node: _slots(node) + 1,
        "one count for each length a queue can have",
    ),
    Table(
        "service times",
        lambda node: len(node.service_seconds),
        lambda node: len({*node.config.stages, *node.config.service_seconds}),
        "one of each stage",
    ),
    Table("waiting room", _of_source(lambda s: s.waiting_count), _of_source(lambda s: s.waiting_count + s.room_left), "rule D4"),
    Table("samples open", _of_source(lambda s: s.open_count), _of_source(_most_open), "the waiting room and max_open (D4)"),
    Table(
        "to be submitted again",
        _of_source(lambda s: len(s._again)),
        _of_source(lambda s: s.config.max_open),
        "once for each admitted sample, and served before new ones are admitted",
    ),
    Table(
        "deadlines",
        _of_source(lambda s: len(s._deadlines)),
        _of_source(_most_scheduled),
        "one of each open sample; made anew when resolved ones are the most",
    ),
    Table(
        "retransmit timers",
        _of_source(lambda s: len(s._retransmits)),
        _of_source(_most_scheduled),
        "one of each attempt; made anew when resolved ones and earlier attempts are the most",
    ),
    Table(
        "order of submission",
        _of_source(lambda s: len(s._order)),
        _of_source(_most_scheduled),
        "made anew when resolved ones are the most",
    ),
)


def sizes(node: NodePolicy) -> dict[str, int]:
    """{table: entries now}."""
    return {table.name: table.size(node) for table in TABLES}


def limits(node: NodePolicy) -> dict[str, int]:
    """{table: entries at most}."""
    return {table.name: table.limit(node) for table in TABLES}
