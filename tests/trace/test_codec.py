"""Events, commands and configurations come back from a trace as they went: every field, every bit of a float."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import os
import types
import typing
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from zpipe.errors import ConfigError
from zpipe.model import Credit, SampleKey, Task
from zpipe.policy.messages import (
    Command,
    CreditReceived,
    Event,
    SampleSubmitted,
    StageCompleted,
    StageFailed,
    TaskReceived,
    TimerFired,
)
from zpipe.policy.state import NodeConfig
from zpipe.trace import codec

EVENTS: tuple[type, ...] = typing.get_args(Event)
COMMANDS: tuple[type, ...] = typing.get_args(Command)
WIDE = st.integers(-(2**60), 2**60)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type hint; lists where it says Sequence."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    plain = {int: WIDE, float: st.floats(allow_nan=False), bool: st.booleans(), str: st.text(max_size=5), bytes: st.binary()}
    if hint in plain:
        return plain[hint]
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin in (typing.Union, types.UnionType):
        return st.none() | values(parts[0])
    if origin in (dict, collections.abc.Mapping):
        return st.dictionaries(values(parts[0]), values(parts[1]), max_size=3)
    if origin in (list, collections.abc.Sequence):
        return st.lists(values(parts[0]), max_size=3)
    if origin is tuple and parts[1:] == (...,):
        return st.lists(values(parts[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, parts))
    return st.builds(hint, **{name: values(inside) for name, inside in codec.hints(hint).items()})


def unpacked(data: bytes) -> Any:
    """As a trace is read."""
    return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass")


def reader() -> codec.Reader:
    """As a trace's header makes one."""
    return codec.Reader(unpacked(codec.pack(codec.fields())))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@examples(25)
def test_every_field_of_an_event_comes_back(kind: type, data: st.DataObject) -> None:
    event = data.draw(values(kind))
    packed = codec.pack([event])
    assert reader().events(unpacked(packed)) == [event]
    assert codec.pack(reader().events(unpacked(packed))) == packed  # -0.0 == 0.0, so ask for the bits, too


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@examples(25)
def test_every_field_of_a_command_comes_back(kind: type, data: st.DataObject) -> None:
    command = data.draw(values(kind))
    packed = codec.pack([command])
    assert reader().commands(unpacked(packed)) == [command]
    assert codec.pack(reader().commands(unpacked(packed))) == packed


@given(config=values(NodeConfig))
@examples(50)
def test_every_field_of_a_configuration_comes_back(config: NodeConfig) -> None:
    assert reader().config(unpacked(codec.pack(config))) == config


def test_equality_looks_at_every_field_so_the_tests_above_do() -> None:
    for kind in codec.classes().values():
        if dataclasses.is_dataclass(kind):
            assert all(field.compare and field.init for field in dataclasses.fields(kind)), kind


def test_infinities_and_nan_come_back() -> None:
    task = Task(SampleKey(0, 1, 2), 1, 0, (math.nan,), deadline=math.inf, born=-math.inf)
    (event,) = reader().events(unpacked(codec.pack([TaskReceived(1, 2, [task])])))
    assert isinstance(event, TaskReceived)
    assert (event.tasks[0].deadline, event.tasks[0].born) == (math.inf, -math.inf)
    assert math.isnan(event.tasks[0].thresholds[0])


def test_the_name_of_a_file_that_is_no_text_comes_back() -> None:
    error = os.fsdecode(b"no \xff.onnx")
    assert reader().events(unpacked(codec.pack([StageFailed(1, error)]))) == [StageFailed(1, error)]


def test_an_int_in_a_floats_place_stays_one() -> None:
    (event,) = reader().events(unpacked(codec.pack([SampleSubmitted(1, 2.0, 1.0, weight=3)])))
    assert isinstance(event, SampleSubmitted)
    assert type(event.weight) is int


@pytest.mark.parametrize("strange", [{1, 2}, object(), np.float32(0.5), np.bool_(True), TimerFired])
def test_what_no_message_is_made_of_is_refused_when_written(strange: object) -> None:
    with pytest.raises(TypeError, match="a trace holds events, commands and their parts, not "):
        codec.pack([StageCompleted(0, [True], [1], [strange], 0.1)])  # type: ignore[list-item]


def test_a_trace_older_than_a_field_with_a_default_is_read() -> None:
    old = codec.fields()
    assert old["Credit"][-2:] == ["missed", "clear"]
    old["Credit"] = old["Credit"][:-3]
    (event,) = codec.Reader(old).events([["CreditReceived", 3, [1, 2, [], 5, {"4": 1}]]])
    assert event == CreditReceived(3, Credit(1, 2, (), 5, {4: 1}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["epoch", "expected", "held", "limit", "colour"],
            "found Credit with fields .*, limit, colour, expected epoch, ",
        ),
        (["expected", "held", "limit"], "found Credit with fields expected, held, limit, expected epoch, "),
        (None, "found no fields of Credit, expected epoch, "),
    ],
)
def test_fields_this_version_cannot_place_are_refused(columns: list[str] | None, message: str) -> None:
    other = codec.fields()
    if columns is None:
        del other["Credit"]
    else:
        other["Credit"] = columns
    with pytest.raises(ConfigError, match=message):
        codec.Reader(other).events([["CreditReceived", 3, [1, 2, [], 5, {}]]])


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({}, "found {}, expected a list"),
        ([[]], "found event None, expected one of TaskReceived, "),
        ([["RunStage", 1]], "found event 'RunStage', expected one of TaskReceived, "),
        ([[["x"]]], r"found event \['x'\], expected one of "),
        ([["SendFailed", 1]], "found 1 values, expected 2"),
        ([["SendFailed", 1, 2.5]], "found 2.5, expected int"),
        ([["SendFailed", 1, True]], "found True, expected int"),
        ([["SampleCancelled", 1, None]], "found None, expected str"),
        ([["SampleSubmitted", 1, "soon", 0.0, 0, 1.0]], "found 'soon', expected a number"),
        ([["CreditReceived", 1, [0, 0, [], 4, [], 0.0, [], {}]]], r"found \[\], expected an object"),
    ],
)
def test_a_line_of_other_types_is_refused(plain: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reader().events(plain)


@pytest.mark.parametrize(
    "plain", [["Resolve", 1, "lost", 0.0, 1, None, "", 0], ["Resolve", 1, ["result"], 0.0, 1, None, "", 0]], ids=["other", "list"]
)
def test_a_word_outside_of_its_list_is_refused(plain: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"found .*, expected \('result', 'rejected', 'expired', 'failed'\)"):
        reader().commands([plain])
