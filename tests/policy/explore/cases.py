"""The meshes, samples and fault budgets that are explored: SMALL in the fast tests, LARGE in bench/model_check.py."""

from __future__ import annotations

from tests.policy.explore.world import FAR, Case, Faults
from tests.policy.mesh import Shape

#: Source and a second node; a window of 2 lets both samples be under way on the link.
LINE2 = Shape(((0,), (1,)), ((0, 1),), window=2)
#: The least there is: one slot.
NARROW2 = Shape(((0,), (1,)), ((0, 1),), window=1)
#: There and back: the source hosts the last stage too, so that both are senders and receivers (C2), by two connections.
BACK2 = Shape(((0, 2), (1,)), ((0, 1),), window=1)
#: Source, middle, last: answers and losses pass through, and what the middle forwarded is no longer its own.
LINE3 = Shape(((0,), (1,), (2,)), ((0, 1), (1, 2)), window=1)
#: Both nodes host the last stage, so that a task runs here or there.
OFFLOAD = Shape(((0, 1), (1,)), ((0, 1),), window=1, offload="cheapest")
#: The last stage twice: one replica fails, the other goes on.
REPLICAS = Shape(((0,), (1,), (1,)), ((0, 1), (0, 2)), window=1)
#: Two nodes host stages 1 and 2 both and offload to each other: links in both directions, attempts that meet (S2).
TRIANGLE = Shape(((0,), (1, 2), (1, 2)), ((0, 1), (0, 2), (1, 2)), window=1, offload="cheapest")

#: Two sources of different class before one node; a window of 3 is the least of which a slot may be cleared for the lower (C8).
FRONTS = Shape(((0,), (0,), (1,)), ((0, 2), (1, 2)), window=3, sources={0: 1, 1: 0}, offload="pa-mdi", order="priority")
#: Two of the lower class before a node with samples of its own, of the higher: it clears them out of one pool.
POOL = Shape(((0,), (0,), (0, 1)), ((0, 2), (1, 2)), window=5, sources={0: 0, 1: 0, 2: 1}, offload="pa-mdi", order="priority")
#: A source of the lower class, whose board runs both, between the higher one and what runs either's last stage.
BETWEEN = Shape(((0,), (0, 1), (2,)), ((0, 1), (1, 2)), window=1, sources={0: 1, 1: 0}, offload="pa-mdi", order="priority")
#: Each of two sources may run the other's last stage.
BOTH = Shape(((0, 1), (0, 1)), ((0, 1),), window=3, sources={0: 1, 1: 0}, offload="pa-mdi", order="priority")

#: Two students on a node each: a sample is two tasks, over two links.
STUDENTS = Shape(((), (0,), (1,)), ((0, 1), (0, 2)), window=1, students=(1, 1), redundancy="failover")
#: One of them on two nodes, the other at the source.
GROUPS = Shape(((1,), (0,), (0,)), ((0, 1), (0, 2)), window=1, students=(1, 1), redundancy="failover")

TWO = (FAR, FAR)
#: One with time enough, and one that may expire.
NEAR = (FAR, 2.0)

SMALL = [
    Case("line of 2", LINE2, Faults(lose=1, repeat=1), moments=3),
    Case("line of 2", NARROW2, Faults(cut=1), moments=2),
    Case("line of 2", NARROW2, Faults(restart=1), moments=2, ranks=(1,)),
    Case("line of 2", NARROW2, Faults(stop=1), moments=3, ranks=(1,)),
    Case("line of 2", NARROW2, Faults(drain=1), moments=1, ranks=(1,)),
    Case("line of 2", NARROW2, Faults(fail=2, cancel=1), moments=2),
    Case("line of 2", NARROW2, Faults(slow=1), (1.0,), moments=2),
    Case("line of 2", NARROW2, Faults(together=1, repeat=1), moments=1),
    Case("line of 3", LINE3, Faults(), moments=2),
    Case("two students", STUDENTS, Faults(cut=1), moments=0),
    Case("one student twice", GROUPS, Faults(cut=1), moments=0),
    Case("two classes meet", FRONTS, Faults(lose=1), moments=0, others={1: TWO}),
    Case("two classes in line", BETWEEN, Faults(repeat=1), moments=0, others={1: (FAR,)}),
]

LARGE = [
    Case("line of 2", LINE2, Faults(lose=1, repeat=1), TWO, moments=2),
    Case("line of 2", NARROW2, Faults(lose=2), NEAR, moments=4),
    Case("line of 2", NARROW2, Faults(cut=1, lose=1, repeat=1), moments=3),
    Case("line of 2", LINE2, Faults(linger=1, repeat=1), TWO, moments=1),
    Case("line of 2", NARROW2, Faults(cut=1, refuse=1), moments=3),
    Case("line of 2", NARROW2, Faults(restart=1), TWO, moments=2, ranks=(0, 1)),
    Case("line of 2", NARROW2, Faults(restart=2), moments=2, ranks=(0, 1)),
    Case("line of 2", NARROW2, Faults(stop=1), NEAR, moments=4, ranks=(0, 1)),
    Case("line of 2", NARROW2, Faults(stop=1), moments=8, ranks=(1,)),
    Case("line of 2", NARROW2, Faults(drain=1, cut=1), moments=1, ranks=(1,)),
    Case("line of 2", NARROW2, Faults(break_down=1), moments=1, ranks=(1,)),
    Case("line of 2", NARROW2, Faults(fail=2, cancel=1, lose=1), TWO, moments=1),
    Case("line of 2", NARROW2, Faults(slow=2, lose=1), (1.0,), moments=4),
    Case("there and back", BACK2, Faults(lose=1, repeat=1), TWO, moments=2),
    Case("line of 2", LINE2, Faults(together=2, lose=1), TWO, moments=1),
    Case("there and back", BACK2, Faults(together=1, cut=1), moments=1),
    Case("there and back", BACK2, Faults(cut=1, linger=1), moments=1),
    Case("line of 3", LINE3, Faults(lose=1), TWO, moments=1),
    Case("line of 3", LINE3, Faults(cut=1, repeat=1), moments=0),
    Case("line of 3", LINE3, Faults(restart=1), moments=2, ranks=(0, 1, 2)),
    Case("line of 3", LINE3, Faults(together=1, lose=1), moments=1),
    Case("both host the last stage", OFFLOAD, Faults(lose=1, repeat=1, cut=1), TWO, moments=2),
    Case("a stage twice", REPLICAS, Faults(lose=1), TWO, moments=2),
    Case("a stage twice", REPLICAS, Faults(stop=1), moments=6, ranks=(1,)),
    Case("a stage twice", REPLICAS, Faults(drain=1), TWO, moments=1, ranks=(1,)),
    Case("a stage twice", REPLICAS, Faults(restart=1, repeat=1), moments=2, ranks=(1,)),
    Case("two students", STUDENTS, Faults(restart=1), moments=1, ranks=(1,)),
    Case("one student twice", GROUPS, Faults(lose=1, repeat=1), moments=1),
    Case("triangle", TRIANGLE, Faults(), TWO, moments=1),
    Case("triangle", TRIANGLE, Faults(lose=1), moments=1),
    Case("triangle", TRIANGLE, Faults(restart=1), moments=0, ranks=(1,)),
    Case("two classes meet", FRONTS, Faults(), moments=1, others={1: (FAR,)}),
    Case("two classes meet", FRONTS, Faults(lose=1, repeat=1), TWO, moments=0, others={1: TWO}),
    Case("two classes meet", FRONTS, Faults(cut=1), moments=0, others={1: (FAR,)}),
    Case("two lower share a pool", POOL, Faults(lose=1), moments=0, others={1: (FAR,), 2: (FAR,)}),
    Case("two classes meet", FRONTS, Faults(restart=1), moments=0, ranks=(1, 2), others={1: (FAR,)}),
    Case("two classes in line", BETWEEN, Faults(), moments=1, others={1: (FAR,)}),
    Case("two classes in line", BETWEEN, Faults(cut=1), moments=0, others={1: (FAR,)}),
    Case("two classes both ways", BOTH, Faults(lose=1, repeat=1), TWO, moments=0, others={1: TWO}),
    Case("two classes both ways", BOTH, Faults(restart=1), moments=0, ranks=(0, 1), others={1: (FAR,)}),
]
