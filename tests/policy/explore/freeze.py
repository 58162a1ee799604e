"""What two states of a node must share to count as one, and how a node is copied.

Merging states wrongly would hide bugs, so everything reachable from a node is part of its state, in the order in which it is kept,
with the information which objects are one and the same (a task in a queue and in `held`). Left out is what this module names:

- configurations: a function of rank and session, which the world's state holds;
- totals that are written and never read by a decision (NodeCounts; most of DeliveryCounts; gaps, repeats and overruns of a link,
  of which the overruns are asserted to be 0 before they are left out);
- the number of the next run and of the present one: a node has one run at most, and the number only names it to the executor;
- which lanes of O nobody was able to take from when that was last asked: it only saves asking again, and `check` asks;
- how many Reports a neighbour has sent, which only keeps dice from being thrown twice: no strategy explored here throws any;
- names of payloads (`token`), which the explorer sets to 0 throughout.

Whatever a later version of the policy adds is part of the state until it is named here: that costs states, never a bug.
"""

from __future__ import annotations

import io
import pickle
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any

from zpipe.policy.credit import IncomingLink
from zpipe.policy.delivery import DeliveryCounts, SourceConfig
from zpipe.policy.exits import ExitGates, ExitLadder
from zpipe.policy.fanout import FanoutConfig
from zpipe.policy.links import Links
from zpipe.policy.node import NodePolicy
from zpipe.policy.outlet import Outlet
from zpipe.policy.parts import FanoutCounts
from zpipe.policy.state import Neighbour, NeighbourConfig, NodeConfig, NodeCounts


class NoDice(random.Random):
    """Chance would be one more choice to branch over; the strategies explored here use none."""

    def random(self) -> float:
        raise AssertionError("a decision threw dice: the explorer does not branch over them")

    def getrandbits(self, k: int, /) -> int:
        raise AssertionError("a decision threw dice: the explorer does not branch over them")


NO_DICE = NoDice()
#: Never changed after they were made: shared between copies, and no part of the state.
CONSTANT = (NodeConfig, NeighbourConfig, SourceConfig, FanoutConfig, ExitLadder, ExitGates, NodeCounts, NoDice)
#: {class: fields that no decision reads}
LEFT_OUT: dict[type, frozenset[str]] = {
    NodePolicy: frozenset({"_next_run", "_runs"}),
    Neighbour: frozenset({"report_number"}),
    Outlet: frozenset({"_held_up"}),
    Links: frozenset({"changed"}),
    IncomingLink: frozenset({"gaps", "repeats", "overruns"}),
    DeliveryCounts: frozenset({"submitted", "admitted", "second_results", "strangers"}),
    FanoutCounts: frozenset({"submitted", "second_results", "strangers", "copies", "partial", "unsound"}),
}
_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
_FIELDS: dict[type, tuple[str, ...]] = {}


def freeze(root: Any) -> Hashable:
    """The state of everything reachable from `root`: equal for two roots when no decision can tell them apart.

    Raises:
        TypeError: something is reachable that this function does not know how to compare.
    """
    seen: dict[int, int] = {}

    def walk(thing: Any) -> Hashable:
        kind = type(thing)
        if kind in _ATOMS:
            return thing  # type: ignore[no-any-return]
        if isinstance(thing, tuple):
            return tuple(each(thing))
        if isinstance(thing, CONSTANT):
            return kind.__name__
        if id(thing) in seen:
            return ("same", seen[id(thing)])
        seen[id(thing)] = len(seen)
        if kind.__module__.startswith("zpipe."):
            values = [getattr(thing, name) for name in _fields(thing)]
            if kind is NodePolicy:
                values.append(list(thing._runs.values()))
            return (kind.__name__, *each(values))
        if kind is list or kind is deque:
            return (kind.__name__, *each(thing))
        if kind is dict or kind is OrderedDict:
            return (kind.__name__, *each(thing), *each(thing.values()))
        if kind is set or kind is frozenset:
            assert all(type(part) in _ATOMS or isinstance(part, tuple) for part in thing), thing
            return (kind.__name__, frozenset(thing))
        if kind is FunctionType:
            return ("function", thing.__qualname__, *each([cell.cell_contents for cell in thing.__closure__ or ()]))
        if kind is MethodType:
            return ("method", thing.__func__.__qualname__, walk(thing.__self__))
        if kind is partial:
            return ("partial", walk(thing.func), walk(thing.args), walk(thing.keywords))
        if kind is type or kind is BuiltinFunctionType:
            return thing.__qualname__  # type: ignore[no-any-return]
        raise TypeError(f"found {kind} in the state of a node: say in tests/policy/explore/freeze.py how two of them compare")

    def each(things: Iterable[Any]) -> list[Hashable]:
        return [thing if type(thing) in _ATOMS else walk(thing) for thing in things]

    return walk(root)


def _fields(thing: Any) -> tuple[str, ...]:
    """Names of the fields that belong to the state, one order for all objects of a class."""
    kind = type(thing)
    if kind in _FIELDS:
        return _FIELDS[kind]
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    names = tuple(sorted({*slots, *getattr(thing, "__dict__", ())} - LEFT_OUT.get(kind, frozenset())))
    if slots:
        _FIELDS[kind] = names
    return names


# ---- copies --------------------------------------------------------------------------------------

_shared: list[Any] = []
_shared_numbers: dict[int, int] = {}
_functions: list[FunctionType] = []
_function_numbers: dict[Any, int] = {}


def _number(table: list[Any], numbers: dict[Any, int], name: Any, thing: Any) -> int:
    if name not in numbers:
        numbers[name] = len(table)
        table.append(thing)
    return numbers[name]


def _take_shared(number: int) -> Any:
    return _shared[number]


def _new_function(number: int) -> FunctionType:
    model = _functions[number]
    cells = tuple(CellType() for _ in model.__closure__ or ())
    copy = FunctionType(model.__code__, model.__globals__, model.__name__, model.__defaults__, cells)
    copy.__qualname__ = model.__qualname__  # Python 3.10 does not take it from the code
    return copy


def _fill_cells(function: FunctionType, contents: tuple[Any, ...]) -> None:
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        cell.cell_contents = content


class _Pickler(pickle.Pickler):
    """Shares constants, and copies lambdas with what they close over: theirs is the copy, not the node they were made in."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, CONSTANT) and not isinstance(thing, NodeCounts):
            return _take_shared, (_number(_shared, _shared_numbers, id(thing), thing),)
        if isinstance(thing, FunctionType) and "<" in thing.__qualname__:
            number = _number(_functions, _function_numbers, thing.__code__, thing)
            contents = tuple(cell.cell_contents for cell in thing.__closure__ or ())
            return _new_function, (number,), contents, None, None, _fill_cells
        return NotImplemented


def copier(node: NodePolicy) -> Callable[[], NodePolicy]:
    """Makes copies of the node as it is now; what happens to one says nothing to another."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(node)
    frozen = buffer.getvalue()
    return lambda: pickle.loads(frozen)
