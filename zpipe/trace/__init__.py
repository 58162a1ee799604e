"""What one node's policy was told and what it answered, round for round, so that it can be told again.

A trace is a file of msgpack values, one behind the other; as JSON, in which `zpipe trace show` prints them:

    {"trace": 2, "zpipe": "0.1.0", "rank": 2, "seed": 7, "epoch": 1.7e9, "fields": {"Task": ["key", ...], ...},
     "config": [...]}
    [now, [event, ...], [command, ...]]                  one per round, that is per `NodePolicy.handle_all`
    [now, [event, ...], {"raised": "AssertionError: ..."}]      the policy broke; the last round
    {"end": "closed"}                                    or "limit"; missing where the process was killed

A dataclass is the list of its fields in the order that `fields` gives for its name; an event or a command has its name in front.
Floats come back as the same bits. (Version 1 was text, JSON itself: it took four times the CPU, most of it to write floats.)

`now` is the node's own clock; `epoch`, seconds since 1970, is where its wall clock put that clock's 0.

`Recorder` writes a trace, `replay` feeds it to a fresh policy and says where the first command differs; `Trace` and `read_rounds`
give its rounds to whoever measures or draws with them. A difference means that
the policy depends on something beside its events, `now` and its dice, or that its code changed since.
"""

from __future__ import annotations

from zpipe.trace.reading import Answer, Trace, read_rounds
from zpipe.trace.recorder import Recorder, trace_file, trace_folder
from zpipe.trace.replay import Difference, ReplayResult, replay

__all__ = ["Answer", "Difference", "Recorder", "ReplayResult", "Trace", "read_rounds", "replay", "trace_file", "trace_folder"]
