"""The way to a violation, told line by line: what happened, what the node did about it."""

from __future__ import annotations

from typing import Any

from tests.policy.explore.nodes import MOMENT_SECONDS, Frame, Reset, Step, Violation
from tests.policy.explore.rules import Rules
from tests.policy.explore.world import HELLO, Action, World, named
from zpipe.model import Task
from zpipe.policy.messages import (
    BlockedReceived,
    CreditReceived,
    Event,
    LostReceived,
    ReportReceived,
    ResultReceived,
    TaskReceived,
)

#: What makes a line worth reading once no faults are left.
MARKS = (
    "task",
    "Lost",
    "Result",
    "Credit",
    "Blocked",
    "SAMPLE",
    "runs",
    "submitted",
    "connect",
    "done",
    "notices",
    "back",
    "resets",
)


def tale(rules: Rules, actions: list[Action], end: str) -> list[str]:
    """Carries the actions out once more; one line each, and one below it for all that a node did."""
    world, lines, calm = rules.start(), [], False
    number = 0
    for action in actions:
        if action == ("calm",):
            world, calm = rules.without_faults(world), True
            lines.append("      ---- no more faults from here on; Reports and the time that goes by are left out")
            continue
        number += 1
        before = len(lines)
        lines.append(f"{number:4}  {world.moment * MOMENT_SECONDS:4.1f} s  {_action(rules, world, action)}")
        rules.tell_tale = lambda rank, event, step: lines.extend(_reaction(rules, rank, event, step))
        try:
            world = rules.after(world, action)
        except Violation:
            break
        finally:
            rules.tell_tale = None
        if calm and not any(mark in line for line in lines[before:] for mark in MARKS):
            del lines[before:]
    return [*lines, f"      ==> {end}"]


#: {an action at one node: how it is told}
AT_NODE = {
    "fire": "its timer fires",
    "done": "its executor is done",
    "rise": "it comes back, empty",
    "restart": "IT DIES",
    "drain": "IT IS TOLD TO LEAVE",
    "break_down": "ITS EXECUTOR IS LOST",
    "leave": "it leaves",
    "stop": "IT STANDS STILL",
    "wake": "it goes on",
    "fail": "ITS EXECUTOR RAISES",
}
BREAKS = {"cut": "", "linger": ", ITS TASKS LINGER", "refuse": ", SENDS ARE REFUSED"}


def _action(rules: Rules, world: World, action: Action) -> str:
    kind, *rest = action
    if kind in AT_NODE:
        return f"node {rest[0]}: {AT_NODE[kind]}"
    if kind == "tick":
        return "time goes on"
    if kind == "slow":
        return "TIME GOES ON EARLY"
    if kind == "submit":
        return f"node {rest[0]}: the next sample is submitted"
    if kind == "cancel":
        return f"node {rest[0]}: SAMPLE {rest[1]} IS CANCELLED"
    if kind == "together":
        return " AND, TOGETHER, ".join(_action(rules, world, each) for each in rest)
    return _on_connection(rules, world, kind, *rest)


def _on_connection(rules: Rules, world: World, kind: str, at: int, place: Any = None) -> str:
    sender, receiver = rules.pairs[at]
    connection = rules.connections.values[world.connections[at]]
    if kind == "notice":
        return f"node {(sender, receiver)[place]}: notices that the connection {sender} -> {receiver} ended"
    if kind == "connect":
        return f"node {sender} connects to node {receiver}, epoch {connection.epoch + 1}"
    if kind in BREAKS:
        return f"{sender} -> {receiver}: THE CONNECTION BREAKS{BREAKS[kind]}"
    frame = getattr(connection, place)[0]
    ends = f"{receiver} -> {sender}" if place == "back" else f"{sender} -> {receiver}"
    what = "answer to Hello" if frame == HELLO else _message(rules.nodes.messages[frame])
    how = {"deliver": "", "lose": "IS LOST: ", "repeat": "ARRIVES, AND WILL AGAIN: "}[kind]
    return f"{ends}: {how}{'(of a connection that ended) ' if place == 'stray' else ''}{what}"


def _reaction(rules: Rules, rank: int, event: Any, step: Step) -> list[str]:
    did = []
    for output in step.outputs:
        if isinstance(output, Frame):
            did.append(f"to {output.peer}: {_message(rules.nodes.messages[output.message])}")
        elif isinstance(output, Reset):
            did.append(f"resets its connections with {output.peer}")
        else:
            did.append(f"SAMPLE {output.sample} ENDS AS {output.kind} (attempt {output.attempts})")
    running = rules.nodes.states[step.state].running
    if running is not None:
        did.append(f"(runs stage {running.stage} on {', '.join(named(*each) for each in running.samples)})")
    return [f"                  node {rank}: " + "; ".join(did)] if did else []


def _message(event: Event) -> str:
    match event:
        case TaskReceived():
            return f"tasks of epoch {event.epoch} " + ", ".join(map(_task, event.tasks))
        case BlockedReceived():
            return f"Blocked(epoch {event.epoch}, next {event.next_number})"
        case CreditReceived():
            credit = event.credit
            carried = f", carried {credit.carried}" if credit.carried else ""
            return (
                f"Credit(epoch {credit.epoch}, expected {credit.expected}, held {list(credit.held)}, limit {credit.limit}{carried})"
            )
        case ReportReceived():
            return "Report"
        case LostReceived():
            return "Lost " + ", ".join(f"{named(*row.key)} attempt {row.attempt}" for row in event.rows)
        case ResultReceived():
            return "Result " + ", ".join(f"{named(*row.key)} attempt {row.attempt}" for row in event.rows)
        case _:
            return str(event)


def _task(task: Task) -> str:
    return f"#{task.number} (sample {named(*task.key)}, attempt {task.attempt}, stage {task.stage})"
