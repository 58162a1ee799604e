"""Strangers and replays against a node with keys, few of what `python -m bench.curve` does by the thousand."""

from __future__ import annotations

import asyncio

from bench.curve import STRANGERS, replays, tries


def test_strangers_reach_no_handler_and_a_friend_does() -> None:
    found = asyncio.run(tries(6 * len(STRANGERS)))
    assert found["handler_calls_of_strangers"] == 0
    assert found["handler_calls_of_friend"] > 0
    assert found["refused_by_zap"] == 6  # the others fail before anybody is asked
    assert set(found["endings"]) == {f"{name}: handshake failed" for name in STRANGERS}


def test_recorded_session_sent_again_reaches_no_handler() -> None:
    found = asyncio.run(replays(8))
    assert found["handler_calls_of_the_recorded_session"] == 2
    assert found["handler_calls_of_replays"] == 0
    assert set(found["endings"]) == {"at once: closed by the node", "in its rhythm: closed by the node"}


def test_the_same_replay_is_heard_where_there_are_no_keys() -> None:
    assert asyncio.run(replays(4, secured=False))["handler_calls_of_replays"] >= 2
