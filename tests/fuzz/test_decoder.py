"""The decoder under mutated frames: a seeded part of what `python -m bench.fuzz` does with a million."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator, kind_of
from tests.fuzz.oracle import judge
from tests.wire.samples import LIMITS, NOW
from zpipe.wire import decode
from zpipe.wire.kinds import Kind

MUTANTS = 10_000
#: What msgpack may take for the moment until a hostile header is refused (zpipe.wire.decoder), and some room.
MOST_BYTES = 9 * 2**20


def test_the_corpus_holds_a_message_of_every_kind() -> None:
    again = "the wire has changed: run `python -m tests.fuzz.corpus`"
    assert corpus.read("valid") == corpus.samples(), again
    assert {kind_of(frames) for frames in corpus.read("valid").values()} == {kind.name for kind in Kind}


@pytest.mark.parametrize("name", corpus.read("valid"))
def test_valid_messages_are_taken(name: str) -> None:
    assert judge(corpus.read("valid")[name], limits=LIMITS, now=NOW, damaged=False) == ""


@pytest.mark.parametrize("name", corpus.read("broke"))
def test_what_once_broke_something_is_refused(name: str) -> None:
    assert judge(corpus.read("broke")[name], limits=LIMITS, now=NOW, damaged=False) != ""


def test_mutants_are_refused_in_one_line_or_are_sound_messages() -> None:
    """The oracle raises; besides, both answers must come, and every kind must be reached past its checksum."""
    mutator = Mutator(corpus.samples(), random.Random(4))
    taken, kinds = 0, set()
    for _ in range(MUTANTS):
        mutant = mutator.mutant()
        refusal = judge(mutant.frames, limits=LIMITS, now=NOW, damaged=mutant.damaged)
        taken += not refusal
        kinds.add(refusal.partition(":")[0])
    assert 0.05 * MUTANTS < taken < 0.5 * MUTANTS
    assert {kind.name for kind in Kind} <= kinds


def test_no_mutant_costs_more_memory_than_the_decoder_says() -> None:
    mutator = Mutator(corpus.samples(), random.Random(5))
    tracemalloc.start()
    try:
        for _ in range(2_000):
            mutant = mutator.mutant()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            judge(mutant.frames, limits=LIMITS, now=NOW, damaged=mutant.damaged)
            assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, mutant.how
    finally:
        tracemalloc.stop()


def test_the_oracle_sees_a_decoder_that_lets_damage_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.wire.decoder.xxh3_64_digest", lambda *parts: b"\0" * 8)
    frames = [frame[:-8] + b"\0" * 8 if index == 0 else frame for index, frame in enumerate(corpus.samples()["bye"])]
    assert decode(frames, limits=LIMITS, now=NOW).sender == 3
    with pytest.raises(AssertionError, match="damage went unseen"):
        judge(frames, limits=LIMITS, now=NOW, damaged=True)
