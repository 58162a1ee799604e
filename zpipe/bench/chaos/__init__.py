"""Faults on purpose while a bench runs: `zpipe bench --chaos SPEC`.

SPEC is one or more clauses joined by `;`, each an action, then how much and how long, a target, and when:

    kill [3s] [node 2] WHEN           SIGKILL; started again at once, or after 3 s
    terminate [3s] [node 2] WHEN      SIGTERM: the node ends in order; started again as after kill
    stop 2s [node 2] WHEN             SIGSTOP, and SIGCONT 2 s later
    rolling [WHEN]                    terminate and start again every node but the sources', one after the other; without WHEN once
    down 2s [link 0-1] WHEN           nothing passes for 2 s, connections stay
    slow 1Mbit/s 3s [link 0-1] WHEN   so much bandwidth, each way, for 3 s
    reset [link 0-1] WHEN             every connection of the link breaks off
    flip [link 0-1] WHEN              one random bit of the TCP stream, framing included
    corrupt 1% [link 0-1]             one random bit in the body of 1 % of messages, all the time; without a target on all links
    calm 60s [every 120s]             every 120 s begin with 60 s without faults (twice as long where it does not say)

    WHEN = every 5s | poisson 5s (at random, every 5 s on average) | at 5s (once)

Times count from the first measured sample and leave the calm out. A target that is not named is a random node (never a source)
or a random link. The same seed gives the same targets and times. A fault whose target is not back from the last one is skipped, and
the timeline says so.

`spec.py` reads a SPEC, `schedule.py` makes faults of it, `director.py` carries them out, `links.py` and `relay.py` are the relays
that link faults go through (no root needed; in the edge lab its own), `timeline.py` says what became of it all, `answers.py` which
labels are the right ones; `plan.py` is all of it for one run.
"""

from __future__ import annotations

from zpipe.bench.chaos.plan import ChaosPlan

__all__ = ["ChaosPlan"]
