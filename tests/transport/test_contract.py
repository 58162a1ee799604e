"""What every transport promises (`zpipe.transport.base`), on memory and on ZeroMQ, with keys and without."""

from __future__ import annotations

import pytest

from tests.transport.harness import MAX_MESSAGE_BYTES, KeyedTransport, Recorder, World, connect, run
from zpipe.errors import ConfigError
from zpipe.transport import Channel, Origin
from zpipe.transport.base import MAX_INCOMING, MAX_UNCONFIRMED

pytestmark = pytest.mark.parametrize("kind", ["memory", "zeromq", "curve"])


def test_start_says_where_and_port_0_is_any(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            addresses = {(await world.node())[2] for _ in range(3)}
            assert len(addresses) == 3
            assert all(address.startswith("127.0.0.1:") and not address.endswith(":0") for address in addresses)

    run(main())


def test_a_port_in_use_is_a_config_error_that_names_it(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            _, _, address = await world.node()
            with pytest.raises(ConfigError, match=f"address {address} is in use") as caught:
                await world.make(Recorder(), address).start()
            assert "\n" not in str(caught.value)

    run(main())


@pytest.mark.parametrize("data", [True, False])
def test_connecting_is_told_once(kind: str, data: bool) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, _, address = await world.node()
            channel = await connect(one, heard, address, data=data)
            assert heard.connected == [channel]
            assert (channel.outgoing, channel.connected, channel.closed, channel.name) == (True, True, False, address)
            assert one.send_control(channel, [b"x"])
            assert one.send_data(channel, [b"x"]) is data

    run(main())


def test_a_peer_that_comes_later_is_found(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            late, _, address = await world.node()
            await late.aclose()
            channel = one.open(address)
            await world.node(address)
            await heard.until(lambda: heard.connected == [channel])
            assert heard.disconnected == []

    run(main())


def test_a_send_right_after_connecting_arrives(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            for number in range(20):
                channel = await connect(one, heard, address)
                assert one.send_data(channel, [b"%d" % number])
                await other.until(lambda: bool(other.data))
                assert other.data == [[b"%d" % number]]
                other.data.clear()
                one.close_channel(channel)

    run(main())


def test_sends_without_a_connection_say_so(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            other, _, address = await world.node()
            channel = one.open(address)
            assert not one.send_data(channel, [b"x"])
            assert not one.send_control(channel, [b"x"])
            await heard.until(lambda: bool(heard.connected))
            await other.aclose()
            await heard.until(lambda: bool(heard.disconnected))
            assert not one.send_data(channel, [b"x"])
            assert not one.send_control(channel, [b"x"])
            one.close_channel(channel)
            one.close_channel(channel)
            assert not one.send_control(channel, [b"x"])
            assert channel.closed

    run(main())


def test_each_plane_keeps_its_order_and_frames_stay_apart(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            server, other, address = await world.node()
            other.on_control_hook = lambda incoming, message: server.confirm(incoming)
            channel = await connect(one, heard, address)
            data = [[b"%d" % number, b"y" * (number % 7)] for number in range(400)]
            control = [[b"c%d" % number] for number in range(400)]
            for task, update in zip(data, control, strict=True):
                assert one.send_data(channel, task)
                assert one.send_control(channel, update)
            await other.until(lambda: len(other.data) == len(other.control) == 400)
            assert other.data == data
            assert [message for _, message in other.control] == control
            assert len({from_channel for from_channel, _ in other.control}) == 1
            assert 0 < other.drained < 800  # once per wake-up, not per message

    run(main())


def test_big_frames_arrive_whole_even_when_the_sender_lets_go_of_them(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            for number in range(8):
                big = bytearray([number]) * (2 * 2**20)
                assert one.send_data(channel, [b"%d" % number, memoryview(big)])
                del big
            await other.until(lambda: len(other.data) == 8)
            assert other.data == [[b"%d" % number, bytes([number]) * (2 * 2**20)] for number in range(8)]

    run(main())


def test_the_receiver_answers_on_the_channel_a_message_came_by(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            two, heard_two, _ = await world.node()
            server, other, address = await world.node()
            other.on_control_hook = lambda channel, message: server.send_control(channel, [b"re", *message])
            first, second = await connect(one, heard, address), await connect(two, heard_two, address, data=False)
            one.send_control(first, [b"1"])
            two.send_control(second, [b"2"])
            await heard.until(lambda: bool(heard.control))
            await heard_two.until(lambda: bool(heard_two.control))
            assert heard.control == [(first, [b"re", b"1"])]
            assert heard_two.control == [(second, [b"re", b"2"])]
            incoming = {channel for channel, _ in other.control}
            assert len(incoming) == 2
            assert all(not channel.outgoing and channel.connected for channel in incoming)
            assert not server.send_data(next(iter(incoming)), [b"x"])

    run(main())


def test_the_end_of_a_peer_is_told_to_both_of_its_sides(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, address_one = await world.node()
            middle, other, address = await world.node()
            to_middle = await connect(one, heard, address)
            from_middle = await connect(middle, other, address_one)
            assert middle.send_control(from_middle, [b"hello"])
            await heard.until(lambda: bool(heard.control))
            incoming = heard.control[0][0]

            await middle.aclose()

            await heard.until(lambda: {channel for channel, _ in heard.disconnected} == {to_middle, incoming})
            assert (to_middle.closed, to_middle.connected) == (False, False)
            assert (incoming.closed, incoming.connected) == (True, False)
            assert not one.send_control(incoming, [b"x"])

    run(main())


def test_every_data_connection_is_an_origin_of_its_own(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            two, heard_two, _ = await world.node()
            _, other, address = await world.node()
            first, second = await connect(one, heard, address), await connect(two, heard_two, address)
            for number in range(3):
                assert one.send_data(first, [b"1"])
                assert two.send_data(second, [b"2"])
                await other.until(lambda number=number: len(other.data) == 2 * number + 2)  # type: ignore[misc]
            spoke = {message[0]: set[Origin]() for message in other.data}
            for message, origin in zip(other.data, other.origins, strict=True):
                spoke[message[0]].add(origin)
            assert [len(origins) for origins in spoke.values()] == [1, 1]
            assert spoke[b"1"] != spoke[b"2"]

            one.reset(first)
            await heard.until(lambda: len(heard.connected) == 2)
            assert one.send_data(first, [b"1"])
            await other.until(lambda: len(other.data) == 7)
            assert other.origins[-1] not in spoke[b"1"] | spoke[b"2"]
            key = KeyedTransport.PUBLIC if kind == "curve" else ""
            assert {(origin.key, origin.bad_in_row, origin.rank) for origin in other.origins} == {(key, 0, None)}
            assert all(origin.name for origin in other.origins)

    run(main())


def test_last_words_arrive_before_the_end(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            for number in range(50):
                one.send_control(channel, [b"%d" % number])
            await other.until(lambda: len(other.control) == 50)
            one.close_channel(channel)
            await other.until(lambda: bool(other.disconnected))
            assert other.disconnected[0][0] is other.control[0][0]

    run(main())


def test_a_restarted_peer_gets_no_old_frames(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            old, _, address = await world.node()
            channel = await connect(one, heard, address)
            for _ in range(3):
                # More than the dead peer ever reads: no turn of the loop between these sends and its end.
                assert all(one.send_data(channel, [b"old", bytes(20000)]) for _ in range(300))
                assert one.send_control(channel, [b"old"])
                await old.aclose()
                old, reborn, again = await world.node(address)
                assert again == address
                connected = len(heard.connected)
                await heard.until(lambda before=connected: len(heard.connected) > before)  # type: ignore[misc]
                assert one.send_data(channel, [b"new"])
                assert one.send_control(channel, [b"new"])
                await reborn.until(lambda reborn=reborn: bool(reborn.data) and bool(reborn.control))  # type: ignore[misc]
                assert reborn.data == [[b"new"]]
                assert [message for _, message in reborn.control] == [[b"new"]]
            assert heard.connected == [channel] * 4
            assert [each for each, _ in heard.disconnected] == [channel] * 3

    run(main())


def test_reset_makes_a_new_connection(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            one.send_control(channel, [b"before"])
            await other.until(lambda: bool(other.control))

            one.reset(channel)

            assert heard.disconnected == []  # never from inside a call
            assert not channel.connected
            await heard.until(lambda: len(heard.connected) == 2)
            assert heard.disconnected == [(channel, "reset")]
            one.send_control(channel, [b"after"])
            await other.until(lambda: len(other.control) == 2)
            assert other.control[0][0] is not other.control[1][0]
            await other.until(lambda: [each for each, _ in other.disconnected] == [other.control[0][0]])

    run(main())


def test_closing_says_nothing_to_its_own_side(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, _, address = await world.node()
            channel = await connect(one, heard, address)
            one.reset(channel)
            one.close_channel(channel)
            other = await connect(one, heard, address)
            assert one.send_control(other, [b"x"])
            assert heard.disconnected == []
            assert heard.connected == [channel, other]

    run(main())


def test_a_handler_may_close_what_it_hears_from(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            server, other, address = await world.node()
            channel = await connect(one, heard, address)

            def close_and_answer(incoming: Channel, message: list[bytes]) -> None:
                assert server.send_control(incoming, message)
                server.close_channel(incoming)

            other.on_control_hook = close_and_answer
            heard.on_control_hook = lambda outgoing, message: one.close_channel(outgoing)
            one.send_control(channel, [b"x"])
            await heard.until(lambda: bool(heard.control))
            assert channel.closed
            assert heard.disconnected == other.disconnected == []

    run(main())


def test_an_oversize_message_is_not_delivered_and_the_link_comes_back(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            one.send_data(channel, [b"big", bytes(MAX_MESSAGE_BYTES + 1)])
            await heard.until(lambda: len(heard.connected) == 2)
            assert one.send_data(channel, [b"fits", bytes(MAX_MESSAGE_BYTES)])
            await other.until(lambda: bool(other.data))
            assert [message[0] for message in other.data] == [b"fits"]

    run(main())


def test_a_message_of_too_many_frames_is_dropped_and_counted(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            server, other, address = await world.node()
            channel = await connect(one, heard, address)
            for send, got in ((one.send_data, other.data), (one.send_control, other.control)):
                assert send(channel, [b"x"] * 5)
                assert send(channel, [b"x"] * 1000)
                assert send(channel, [b"x"] * 4)
                await other.until(lambda got=got: bool(got))  # type: ignore[misc]
            assert other.data == [[b"x"] * 4]
            assert [message for _, message in other.control] == [[b"x"] * 4]
            assert server.counts.dropped == 4

    run(main())


def test_a_full_queue_refuses_and_never_waits(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            taken = 0
            # Nobody reads meanwhile: both ends live on this loop, which does not turn. 64 KiB each fill the kernel's buffers.
            while one.send_data(channel, [b"%d" % taken, bytes(65536)]):
                taken += 1
                assert taken < 20000
            await other.until(lambda: len(other.data) == taken)
            assert [message[0] for message in other.data] == [b"%d" % number for number in range(taken)]
            assert one.send_data(channel, [b"again"])

    run(main())


def test_strangers_make_room_for_newer_ones_and_confirmed_channels_stay(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            server, other, address = await world.node()
            friend = await connect(one, heard, address, data=False)
            one.send_control(friend, [b"friend"])
            await other.until(lambda: bool(other.control))
            confirmed = other.control[0][0]
            server.confirm(confirmed)
            strangers = [one.open(address, data=False) for _ in range(MAX_INCOMING)]
            await heard.until(lambda: len(heard.connected) == 1 + MAX_INCOMING)
            for channel in strangers:
                assert one.send_control(channel, [b"stranger"])
            await other.until(lambda: len(other.control) == 1 + MAX_INCOMING)
            await other.until(lambda: bool(other.disconnected))
            assert [(channel, reason[:7]) for channel, reason in other.disconnected] == [(other.control[1][0], "evicted")]
            assert server.send_control(confirmed, [b"still"])
            await heard.until(lambda: bool(heard.control))

    run(main())


def test_a_stranger_that_talks_on_is_not_listened_to_and_others_are(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, heard, _ = await world.node()
            server, other, address = await world.node()
            stranger, friend = await connect(one, heard, address), await connect(one, heard, address)
            assert one.send_control(friend, [b"friend"])
            await other.until(lambda: bool(other.control))
            server.confirm(other.control[0][0])
            for _ in range(3 * MAX_UNCONFIRMED):
                assert one.send_control(stranger, [b"stranger"])
                assert one.send_control(friend, [b"friend"])
            # Both: two connections are not ordered against each other, so the stranger's last words may come after the friend's.
            await other.until(
                lambda: len(other.control) >= 4 * MAX_UNCONFIRMED + 1 and server.counts.dropped >= 2 * MAX_UNCONFIRMED
            )
            assert len(other.control) == 4 * MAX_UNCONFIRMED + 1
            assert [message for _, message in other.control].count([b"stranger"]) == MAX_UNCONFIRMED
            assert server.counts.dropped == 2 * MAX_UNCONFIRMED

    run(main())


def test_two_worlds_in_one_process_do_not_mix(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as left, World(kind) as right:
            for world, name in ((left, b"left"), (right, b"right")):
                one, heard, _ = await world.node()
                _, other, address = await world.node()
                channel = await connect(one, heard, address)
                assert one.send_data(channel, [name])
                await other.until(lambda other=other: bool(other.data))  # type: ignore[misc]
                assert other.data == [[name]]

    run(main())


def test_closing_twice_and_before_start(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            transport = world.make(Recorder())
            await transport.aclose()
            started, _, _ = await world.node()
            await started.aclose()
            await started.aclose()

    run(main())
