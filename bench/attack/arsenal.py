"""What the enemy says: messages by somebody who has the topology and the bundle, but no key."""

from __future__ import annotations

import random
import time

import numpy as np

from tests.fuzz.mutate import Mutator
from zpipe.bundle import Bundle
from zpipe.model import Credit, LostRow, ResultRow, SampleKey, Task
from zpipe.topology import Topology
from zpipe.wire import (
    NO_CODEC,
    NO_RANK,
    Blocked,
    Bye,
    CreditUpdate,
    Hello,
    Lost,
    Message,
    Ping,
    Results,
    Role,
    StatsRequest,
    TaskBatch,
    encode,
)

Frames = list[bytes]
MUTANTS = 3000


def arsenal(topology: Topology, bundle: Bundle, *, target: int, source: int, session: int, seed: int) -> dict[str, list[Frames]]:
    """{name: messages} against one node.

    Args:
        topology, bundle: of the pipeline under attack.
        target: the rank attacked.
        source: the rank whose samples pass there.
        session: of the source, which an enemy can guess (milliseconds) or ask for as an observer.
        seed: of the mutants.
    """

    def hello(
        rank: int, role: Role = "peer", *, age: int = 0, digest: str = "", bundle_digest: str = "", version: int = 1
    ) -> Message:
        return Hello(
            sender=rank,
            role=role,
            session=session - age,
            epoch=session - age,
            bundle_digest=bundle_digest or bundle.digest,
            topology_digest=digest or topology.digest(),
            topology=topology.canonical(),
            wire_version=version,
        )

    upstream = next(rank for rank in topology.neighbours(target) if topology.lanes(rank, target))
    lane = min(topology.lanes(upstream, target))
    spec, now = bundle.stages[lane].input, time.monotonic()

    def task(sample: int, *, later: int = 0) -> Message:
        row = Task(SampleKey(source, session + later, sample), 1, lane, (0.0,), number=sample, deadline=now + 60.0, born=now)
        return TaskBatch(upstream, session + sample % 4, NO_CODEC, lane, [row], np.zeros((1, *spec.shape), spec.dtype))

    results = [ResultRow(SampleKey(source, session, sample), 1, len(bundle.stages) - 1, 3, 0.99, 0.0, 0.0) for sample in range(40)]
    lost = [LostRow(SampleKey(source, session, sample), 1, "peer-lost: forged") for sample in range(40)]
    forged: list[Message] = [
        Results(upstream, results),
        Lost(upstream, lost),
        CreditUpdate(upstream, Credit(session, 2**40, (), 2**41, {}, 0.0)),
        Ping(upstream, 5, echo=True),
        Bye(upstream, "forged"),
    ]
    wrong = [
        hello(upstream, digest="sha256:00"),
        hello(upstream, bundle_digest="sha256:00"),
        hello(target),
        hello(source + 77),
        hello(NO_RANK, "observer", version=2),
        hello(upstream, age=86_400_000),
    ]
    tasks = [task(sample) for sample in range(20)] + [Blocked(upstream, session, 2**40)]
    observer = hello(NO_RANK, "observer")
    requests: list[Message] = [StatsRequest(NO_RANK, token) for token in range(10)]
    # No mutant may be a Hello that is right but for its session: that is `stolen_rank`, and CURVE's part.
    said = {
        "hello": hello(upstream, digest="sha256:00"),
        "task": tasks[0],
        **{f"forged {index}": each for index, each in enumerate(forged)},
    }
    mutator = Mutator({name: _frames(message) for name, message in said.items()}, random.Random(seed))
    return {
        "mutants": [frames for frames in (mutator.mutant().frames for _ in range(MUTANTS)) if frames],
        "wrong hellos": [_frames(message) for message in wrong],
        "observer": [_frames(observer)],
        "stats requests": [_frames(message) for message in requests],
        "forged control": [_frames(message) for message in forged],
        "forged tasks": [_frames(message) for message in tasks],
        "earlier session": [_frames(hello(upstream, age=age)) for age in (1, 1000, 86_400_000)],
        "stolen rank": [_frames(hello(upstream, age=-3_600_000))],
        "same session": [_frames(hello(upstream))],
    }


def _frames(message: Message) -> Frames:
    return [bytes(frame) for frame in encode(message, now=time.monotonic())]
