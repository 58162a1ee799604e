"""Who is let in, decided without sockets."""

from __future__ import annotations

import pytest
from zmq.utils import z85

from zpipe.transport import TransportCounts
from zpipe.transport.curve import new_keypair
from zpipe.transport.zap import CONNECTIONS_BURST, CONNECTIONS_HZ, MAX_RATES, Doorkeeper, key_of

FRIEND, STRANGER = new_keypair()[0], new_keypair()[0]


class Door:
    """A doorkeeper whose clock stands until it is moved."""

    def __init__(self, *allowed: str, keys: bool = True) -> None:
        self.now = 0.0
        self.counts = TransportCounts()
        self.keeper = Doorkeeper(allowed if keys else None, self.counts, clock=lambda: self.now)

    def knock(self, key: str = "", *, address: str = "10.0.0.1") -> tuple[str, str]:
        """(status, user id) of a request; without a key one of the NULL mechanism."""
        credentials = [b"CURVE", z85.decode(key)] if key else [b"NULL"]
        request = [b"1.0", b"7", b"zpipe", address.encode(), b"", *credentials]
        version, request_id, status, _, user_id, metadata = self.keeper.answer(request)
        assert (version, request_id, metadata) == (b"1.0", b"7", b"")
        return status.decode(), user_id.decode()


def test_every_connection_has_a_number_of_its_own_and_shows_its_key() -> None:
    door = Door(FRIEND)
    names = [door.knock(FRIEND) for _ in range(3)]
    assert len(set(names)) == 3
    assert {(status, key_of(user_id)) for status, user_id in names} == {("200", FRIEND)}


def test_unknown_key_and_no_key_are_refused_and_counted() -> None:
    door = Door(FRIEND)
    assert door.knock(STRANGER) == door.knock() == ("400", "")
    assert door.counts == TransportCounts(unknown_keys=2)


def test_who_came_last_with_an_unknown_key_is_known_for_people() -> None:
    door = Door(FRIEND)
    door.knock(FRIEND)
    assert door.keeper.turned_away == ""
    door.knock(STRANGER, address="10.0.0.9")
    door.knock(FRIEND)
    assert door.keeper.turned_away == f"10.0.0.9, key {STRANGER[:8]}..."
    door.knock(address="10.0.0.7")
    assert door.keeper.turned_away == "10.0.0.7, no key"


def test_without_keys_everybody_comes_in_and_has_none() -> None:
    door = Door(keys=False)
    (one, first), (two, second) = door.knock(), door.knock()
    assert (one, two) == ("200", "200")
    assert first != second
    assert key_of(first) == ""


def test_banned_key_is_refused_from_then_on() -> None:
    door = Door(FRIEND)
    assert not door.keeper.ban(STRANGER)
    assert door.keeper.ban(FRIEND)
    assert not door.keeper.ban(FRIEND)
    assert door.knock(FRIEND) == ("400", "")
    assert door.counts == TransportCounts(unknown_keys=1, banned_keys=1)


@pytest.mark.parametrize("keys", [True, False])
def test_who_comes_too_often_waits_and_nobody_else_does(keys: bool) -> None:
    other = new_keypair()[0]
    door = Door(FRIEND, other, keys=keys)

    def friend() -> str:
        return door.knock(FRIEND if keys else "", address="10.0.0.1")[0]

    assert [friend() for _ in range(int(CONNECTIONS_BURST) + 2)] == ["200"] * int(CONNECTIONS_BURST) + ["400"] * 2
    assert door.knock(other if keys else "", address="10.0.0.2")[0] == "200"
    door.now += 1.5 / CONNECTIONS_HZ
    assert [friend(), friend()] == ["200", "400"]
    door.now += 0.3 / CONNECTIONS_HZ
    assert friend() == "400"
    door.now += 0.3 / CONNECTIONS_HZ  # half a connection was left, and the refusals did not take it
    assert friend() == "200"
    door.now += 1e6
    assert [friend() for _ in range(int(CONNECTIONS_BURST) + 1)].count("400") == 1
    assert door.counts == TransportCounts(limited=5)


def test_strangers_use_up_nobodys_rate() -> None:
    door = Door(FRIEND)
    for _ in range(2 * int(CONNECTIONS_BURST)):
        door.knock(STRANGER)
    assert door.knock(FRIEND)[0] == "200"
    assert len(door.keeper._rates) == 1


def test_rates_of_many_addresses_stay_bounded() -> None:
    door = Door(keys=False)
    for number in range(3 * MAX_RATES):
        assert door.knock(address=f"10.1.{number // 256}.{number % 256}")[0] == "200"
    assert len(door.keeper._rates) == MAX_RATES
