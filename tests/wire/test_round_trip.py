"""Whatever a node may say arrives as it was said."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.wire.samples import LIMITS, NOW, SAMPLES, UNBOUNDED, packed_batch, task, task_batch
from zpipe.errors import MAX_TEXT, one_line
from zpipe.model import Credit, LostRow, Report, ResultRow, SampleKey, Task
from zpipe.wire import (
    NO_CODEC,
    Blocked,
    Bye,
    CreditUpdate,
    Hello,
    Lost,
    Message,
    Ping,
    Refused,
    ReportUpdate,
    Results,
    Stats,
    StatsRequest,
    TaskBatch,
    decode,
    encode,
)

ranks = st.integers(0, 65535)
counts = st.integers(0, 2**63 - 1)
seconds = st.floats(0.0, 1e9)
stages = st.sampled_from(sorted(LIMITS.stage_inputs))
texts = st.text(st.characters(codec="utf-8"), max_size=240)
lines = texts.map(one_line)
attempts = st.integers(1, 2**63 - 1)
keys = st.builds(SampleKey, ranks, counts, counts)
documents = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


classes = st.integers(0, 255)
rates = st.dictionaries(ranks, st.tuples(st.floats(0.0, 2.0**62), st.floats(0.0, 2.0**62)))


@st.composite
def credit_values(draw: st.DrawFn) -> Credit:
    expected = draw(counts)
    held = draw(st.lists(st.integers(0, expected - 1), max_size=64)) if expected else []
    carried = draw(st.dictionaries(stages, counts))
    missed = tuple(draw(st.lists(st.integers(0, expected - 1), max_size=8))) if expected else ()
    return Credit(
        draw(counts),
        expected,
        tuple(held),
        draw(counts),
        carried,
        draw(st.just(-1.0) | seconds),
        missed,
        draw(st.dictionaries(classes, counts)),
    )


def _yielded(row: ResultRow) -> ResultRow:
    """Some waited for lower classes."""
    row.yielded_seconds = row.queued_seconds / 2 if row.hops % 2 else 0.0
    return row


control_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello, ranks, st.sampled_from(["peer", "source", "observer"]), counts, counts, texts, texts, documents, counts, memory=texts
    ),
    st.builds(Refused, ranks, lines, lines, lines),
    st.builds(CreditUpdate, ranks, credit_values()),
    st.builds(Blocked, ranks, counts, counts),
    st.builds(
        ReportUpdate,
        ranks,
        st.builds(
            Report,
            counts,
            counts,
            st.dictionaries(stages, seconds),
            st.dictionaries(stages, seconds),
            st.booleans(),
            st.dictionaries(classes, seconds),
            st.dictionaries(classes, seconds),
            st.dictionaries(classes, counts),
            rates,
        ),
    ),
    st.builds(Lost, ranks, st.lists(st.builds(LostRow, keys, attempts, lines, counts, counts), min_size=1, max_size=20)),
    st.builds(
        Results,
        ranks,
        st.lists(
            st.builds(
                ResultRow,
                keys,
                attempts,
                stages,
                st.integers(0, 9),
                st.floats(0, 1),
                seconds,
                seconds,
                counts,
                st.integers(0, 65535),
                st.just(b"") | st.binary(min_size=40, max_size=40),
            ).map(_yielded),
            min_size=1,
            max_size=20,
        ),
    ),
    st.builds(Ping, st.integers(-1, 65535), counts, st.booleans(), st.binary(max_size=64)),
    st.builds(StatsRequest, st.integers(-1, 65535), counts),
    st.builds(Stats, ranks, counts, documents),
    st.builds(Bye, st.integers(-1, 65535), lines),
)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    queued = draw(seconds)
    return Task(
        draw(keys),
        draw(attempts),
        1,
        tuple(draw(st.lists(st.floats(0.0, 10.0), max_size=3))),
        part=draw(counts),
        priority=draw(st.integers(0, 255)),
        weight=draw(seconds),
        oldest=draw(counts),
        queued_seconds=queued,
        service_seconds=draw(seconds),
        number=draw(counts),
        deadline=draw(st.just(math.inf) | st.floats(0.0, 1e6)),
        born=draw(st.floats(0.0, NOW)),
        yielded_seconds=draw(st.sampled_from([0.0, 0.0, queued, queued / 2])),
    )


def round_trip(message: Message, **timing: float) -> Any:
    return decode(encode(message, now=NOW, **timing), limits=LIMITS, now=NOW)


@given(control_messages)
def test_every_message_without_a_buffer_comes_back_equal(message: Message) -> None:
    assert round_trip(message) == message


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=340).filter(lambda text: not (text.isascii() and text.isprintable()))
)
def test_texts_for_people_come_in_as_one_line(text: str) -> None:
    lost = round_trip(Lost(1, [LostRow(SampleKey(0, 1, 2), 1, text)])).rows[0].cause
    refused = round_trip(Refused(1, text, text, text))
    bye = round_trip(Bye(1, text)).reason
    assert {lost, refused.key, refused.here, refused.there, bye} == {one_line(text[:MAX_TEXT])}
    assert lost.isprintable()


@given(st.lists(tasks(), min_size=1, max_size=LIMITS.max_rows), ranks, counts, st.randoms(use_true_random=False))
def test_every_task_comes_back_with_its_durations_on_the_receivers_clock(
    batch: list[Task], sender: int, epoch: int, random: Any
) -> None:
    payload = np.frombuffer(random.randbytes(len(batch) * 24), np.float32).reshape(len(batch), 2, 3)

    back = round_trip(TaskBatch(sender, epoch, NO_CODEC, 1, batch, payload))

    assert (back.sender, back.epoch, back.codec, back.stage) == (sender, epoch, NO_CODEC, 1)
    assert back.payload.tobytes() == payload.tobytes()  # bits, not values: NaN payloads are legal
    for sent, got in zip(batch, back.tasks, strict=True):
        assert (got.peer, got.epoch, got.since, got.token) == (sender, epoch, NOW, 0)
        assert got.deadline == pytest.approx(max(sent.deadline, NOW), abs=2e-6)
        assert got.born == pytest.approx(sent.born, abs=2e-6)
        exact = [field.name for field in fields(Task) if field.name not in ("deadline", "born", "peer", "epoch", "since", "token")]
        assert [getattr(got, name) for name in exact] == [getattr(sent, name) for name in exact]


def test_transit_time_is_taken_from_the_budget_and_added_to_the_age() -> None:
    there = round_trip(task_batch(1), transit_seconds=0.25).tasks[0]

    assert there.deadline == pytest.approx(NOW + 2.25, abs=2e-6)
    assert there.born == pytest.approx(NOW - 0.75, abs=2e-6)


def test_the_clocks_of_the_two_ends_need_not_agree() -> None:
    frames = encode(task_batch(1), now=NOW)
    there = decode(frames, limits=LIMITS, now=5.0)

    assert isinstance(there, TaskBatch)
    assert there.tasks[0].deadline == pytest.approx(7.5, abs=2e-6)
    assert there.tasks[0].born == pytest.approx(4.5, abs=2e-6)


def test_no_deadline_stays_no_deadline_and_a_past_one_arrives_as_now() -> None:
    batch = TaskBatch(1, 4, NO_CODEC, 1, [UNBOUNDED, task(deadline=NOW - 9)], np.zeros((2, 2, 3), np.float32))

    back = round_trip(batch).tasks

    assert [each.deadline for each in back] == [math.inf, NOW]


@given(
    st.floats(-1e308, 1e308) | st.just(math.inf),
    st.floats(-1e308, 1e308),
    st.floats(0, 1e308),
    st.floats(0, 1e308),
    st.floats(0, 1e9),
)
@example(deadline=NOW + 1e10, born=NOW, weight=1.0, spent=0.0, later=0.0)
@example(deadline=1e305, born=NOW, weight=1.0, spent=0.0, later=0.0)
@example(deadline=math.inf, born=NOW - (2**53 - 1000) * 1e-6, weight=1.0, spent=0.0, later=1.0)
def test_a_task_that_was_accepted_can_be_passed_on_whenever(
    deadline: float, born: float, weight: float, spent: float, later: float
) -> None:
    """Else a node would send what its neighbour refuses, and two honest ones would make their connection anew for it."""
    assume(weight + spent + spent < math.inf)
    sent = replace(task(), deadline=deadline, born=born, weight=weight, queued_seconds=spent, service_seconds=spent)
    accepted = round_trip(TaskBatch(1, 4, NO_CODEC, 1, [sent], np.zeros((1, 2, 3), np.float32)))
    there = accepted.tasks[0]
    there.queued_seconds += later
    there.service_seconds += later

    onward = decode(encode(accepted, now=NOW + later, transit_seconds=later), limits=LIMITS, now=NOW).tasks[0]  # type: ignore[union-attr]

    centuries = 2**53 * 1e-6
    assert (onward.deadline == math.inf) == (deadline == math.inf)
    assert NOW <= onward.deadline <= NOW + centuries or deadline == math.inf
    assert NOW - centuries <= onward.born <= NOW


def test_thresholds_that_are_fine_row_by_row_may_share_a_frame() -> None:
    """Whatever frames they came by: together these have no finite sum."""
    sent = [task(7, thresholds=(1e308,)), task(8, thresholds=(1e308,))]

    back = round_trip(TaskBatch(1, 4, NO_CODEC, 1, sent, np.zeros((2, 2, 3), np.float32)))

    assert [each.thresholds for each in back.tasks] == [(1e308,), (1e308,)]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=lambda wrap: str(wrap.__name__))
def test_decoded_payload_is_a_view_of_the_frame(wrap: Any) -> None:
    header, buffer = encode(task_batch(2), now=NOW)
    frame = wrap(bytes(buffer))

    back = decode([header, frame], limits=LIMITS, now=NOW)

    assert isinstance(back, TaskBatch)
    assert np.shares_memory(back.payload, np.frombuffer(frame, np.uint8))


def test_encode_does_not_copy_a_contiguous_payload() -> None:
    batch = task_batch(2)
    _, buffer = encode(batch, now=NOW)
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), batch.payload)


@pytest.mark.parametrize(("stage", "dtype", "shape"), [(0, "uint8", (3, 2, 2)), (1, "float32", (2, 3)), (2, "float16", (5,))])
def test_every_dtype_a_boundary_may_have(stage: int, dtype: str, shape: tuple[int, ...]) -> None:
    payload = np.arange(2 * math.prod(shape)).astype(dtype).reshape(2, *shape)
    strided = np.repeat(payload, 2, axis=-1)[..., ::2]
    assert not strided.flags.c_contiguous

    for sent in (payload, strided):
        back = round_trip(TaskBatch(1, 4, NO_CODEC, stage, [task(), task(8)], sent)).payload
        assert back.dtype == payload.dtype
        np.testing.assert_array_equal(back, payload)


def test_a_codec_has_its_own_size() -> None:
    payload = np.arange(14, dtype=np.uint8).reshape(1, 14)
    back = round_trip(TaskBatch(1, 4, "int8", 1, [task()], payload))
    assert (back.codec, back.payload.tobytes()) == ("int8", payload.tobytes())


@given(st.integers(1, 28))
def test_a_packed_codec_has_any_size_up_to_its_bound(size: int) -> None:
    sent = packed_batch(size)
    back = round_trip(sent)
    assert (back.codec, len(back.tasks), back.payload.shape) == ("int8+zstd", 2, (size,))
    np.testing.assert_array_equal(back.payload, sent.payload)


def test_confidence_keeps_every_bit_of_its_float32() -> None:
    confidence = np.float32(0.1) + np.float32(2**-24)
    row = ResultRow(SampleKey(0, 1, 2), 1, 0, 3, confidence, 0.0, 0.0)  # type: ignore[arg-type]  # what a gate may hand us
    assert np.float32(round_trip(Results(1, [row])).rows[0].confidence) == confidence


def test_overlong_texts_are_cut_by_the_sender_and_accepted() -> None:
    assert round_trip(Bye(1, "é" * 9999)).reason == "é" * 240
    assert (
        round_trip(Lost(1, [LostRow(SampleKey(0, 1, 2), 1, "stage-failed: \ud800" + "x" * 999)]))
        .rows[0]
        .cause.startswith("stage-failed: ?xx")
    )


def test_a_batch_without_a_row_per_task_is_not_encoded() -> None:
    batch = task_batch(2)
    batch.tasks.pop()
    with pytest.raises(ValueError, match="expected one row per task"):
        encode(batch, now=NOW)


def test_samples_cover_every_kind() -> None:
    assert {type(message) for message in SAMPLES.values()} == set(Message.__args__)
