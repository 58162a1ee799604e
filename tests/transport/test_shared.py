"""Shared memory beside a data connection: what goes in comes out, once and in order, and nothing a peer says can hurt."""

from __future__ import annotations

import errno
import os
import random
import secrets
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.harness import MAX_MESSAGE_BYTES, Recorder, World, connect, run
from zpipe.transport import Channel, Transport, shared, zeromq
from zpipe.transport.shared import Mapped, Ring, find
from zpipe.transport.zeromq import ZeroMQTransport

fcntl = pytest.importorskip("fcntl")

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory is used on Linux alone")

CAPACITY = 2**16
#: Frames of the transport's tests: just large enough to go through a ring.
LARGE = shared.SHARE_FROM_BYTES


def descriptors_of_rings() -> int:
    descriptors = Path("/proc/self/fd")
    return sum(str(descriptors.joinpath(name).readlink()).startswith("/memfd:zpipe") for name in named(descriptors))


def named(descriptors: Path) -> list[str]:
    """Those that are links: the one this very look was made by is gone."""
    return [name for name in os.listdir(descriptors) if os.path.lexists(descriptors / name)]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert descriptors_of_rings() == 0
    assert "memfd:zpipe" not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.fixture
def ends() -> Iterator[tuple[Ring, Mapped]]:
    ring = Ring(CAPACITY)
    mapped = find(ring.invitation)
    assert mapped is not None
    ring.join(mapped.answer)
    assert ring.joined
    yield ring, mapped
    ring.close()
    mapped.close()


# ---- the ring ----------------------------------------------------------------------------------


def test_frames_come_out_as_they_went_in_however_far_the_receiver_lags(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    dice = random.Random(7)
    under_way: deque[tuple[bytes, bytes]] = deque()
    placed = full = 0
    while placed < 2000:
        frame = dice.randbytes(dice.choice((1, 63, 64, 65, 1000, CAPACITY // 3, CAPACITY // 2)))
        reference = ring.place(frame)
        if reference is None:
            full += 1
            assert under_way, "an empty ring has room for any of these"
        else:
            placed += 1
            under_way.append((reference, frame))
        for _ in range(dice.randrange(3) if reference is not None else 1):
            if under_way:
                reference, frame = under_way.popleft()
                assert mapped.take(reference) == frame
    assert full > 100


def test_a_full_ring_has_no_room_until_something_is_taken(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    references = [ring.place(bytes([number]) * (CAPACITY // 4)) for number in range(4)]
    assert None not in references
    assert ring.place(b"x") is None
    assert references[0] is not None
    mapped.take(references[0])
    assert ring.place(b"x" * (CAPACITY // 4)) is not None
    assert ring.place(b"x") is None


def test_the_largest_frame_is_the_whole_ring(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    assert ring.place(bytes(CAPACITY + 1)) is None
    for number in range(3):
        frame = bytes([number]) * CAPACITY
        reference = ring.place(frame)
        assert reference is not None
        assert mapped.take(reference) == frame


def test_what_is_taken_back_leaves_its_room(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    for number in range(5):
        assert ring.place(bytes(CAPACITY // 2 + number)) is not None
        ring.take_back()
    first = ring.place(b"a" * (CAPACITY // 2))
    assert first is not None
    assert ring.place(b"lost" * 64) is not None
    ring.take_back()
    second = ring.place(b"b" * (CAPACITY // 2))
    assert second is not None
    assert mapped.take(first) == b"a" * (CAPACITY // 2)
    assert mapped.take(second) == b"b" * (CAPACITY // 2)


def test_frames_that_never_arrive_leave_their_room_with_the_next_one_that_does(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    for _ in range(10):
        lost, taken = ring.place(bytes(CAPACITY // 2)), ring.place(b"x" * (CAPACITY // 2))
        assert lost is not None
        assert taken is not None
        assert mapped.take(taken) == b"x" * (CAPACITY // 2)
        assert mapped.take(lost) is None, "its place is free"


def test_a_ring_that_is_never_full_keeps_to_its_front() -> None:
    ring = Ring(shared.RING_BYTES)
    mapped = find(ring.invitation)
    assert mapped is not None
    for _ in range(300):
        reference = ring.place(bytes(100_000))
        assert reference is not None
        assert mapped.take(reference) is not None
    assert 512 * os.fstat(mapped._descriptor).st_blocks <= shared.STEP_BYTES
    ring.close()
    mapped.close()


def test_without_memory_there_is_no_room(ends: tuple[Ring, Mapped], monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring(4 * shared.STEP_BYTES)

    def none_left(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", none_left)
    assert ring.place(bytes(2 * shared.STEP_BYTES)) is None
    assert ring.place(bytes(1000)) is not None, "there are pages at the front"
    ring.close()


# ---- a receiver that lies ----------------------------------------------------------------------


@pytest.mark.parametrize("said", [(2**63, 2**63), (CAPACITY, CAPACITY), (2**64 - 1, 2**64 - 1), (64, 128), (0, 0)])
def test_a_receiver_that_is_beyond_the_end_or_says_two_things_frees_nothing(
    ends: tuple[Ring, Mapped], said: tuple[int, int]
) -> None:
    ring, mapped = ends
    assert ring.place(bytes(CAPACITY // 2)) is not None
    os.pwrite(mapped._descriptor, shared._TAKEN.pack(*said), shared._TAKEN_AT)
    assert ring.place(bytes(CAPACITY // 2 + 64)) is None


def test_nobody_can_change_the_size(ends: tuple[Ring, Mapped]) -> None:
    _, mapped = ends
    for size in (0, 4096, 2**24):
        with pytest.raises(PermissionError):
            os.ftruncate(mapped._descriptor, size)


# ---- a sender that lies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "size"),
    [(0, 0), (0, CAPACITY + 1), (64, CAPACITY), (CAPACITY - 64, 65), (0, 2**64 - 1), (2**64 - 64, 64), (2**63 - 64, 64)],
)
def test_a_reference_to_what_is_not_in_the_ring_is_none(ends: tuple[Ring, Mapped], position: int, size: int) -> None:
    _, mapped = ends
    assert mapped.take(shared._REFERENCE.pack(shared._MAGIC, mapped.name, position, size)) is None
    assert mapped.take(shared._REFERENCE.pack(shared._MAGIC, mapped.name, 0, 64)) is not None, "it goes on"


def test_a_reference_said_twice_is_taken_once(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    reference = ring.place(b"x")
    assert reference is not None
    assert mapped.take(reference) == b"x"
    assert mapped.take(reference) is None


@pytest.mark.parametrize(
    "said",
    [
        "",
        "x",
        "1.2.3",
        "../../etc/passwd",
        "1.2.3.4." + "0" * 31,
        "-1.2.3.4." + "0" * 32,
        "1.2.3.4." + "0" * 32 + "\n",
        "٣.2.3.4." + "0" * 32,
    ],
)
def test_words_that_are_no_invitation_find_nothing(said: str) -> None:
    assert find(said) is None


@pytest.mark.parametrize("place", range(5))
def test_an_invitation_with_one_thing_wrong_finds_nothing(ends: tuple[Ring, Mapped], place: int) -> None:
    parts = ends[0].invitation.split(".")
    parts[place] = {0: "999999999", 1: "999999", 2: str(int(parts[2]) - 1), 3: "1", 4: secrets.token_hex(16)}[place]
    assert find(".".join(parts)) is None


def _hidden(kind: str, folder: Path) -> int:
    """A descriptor of something of ours that is no memory to share, with a token where one would be."""
    size = 4096 + CAPACITY
    if kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        return reading
    if kind == "folder":
        return os.open(folder, os.O_RDONLY)
    if kind == "device":
        return os.open("/dev/zero", os.O_RDWR)
    if kind == "file":
        descriptor = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
    elif kind == "deleted file":
        descriptor, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)
    elif kind == "huge pages":
        try:
            descriptor, size = os.memfd_create("x", os.MFD_HUGETLB | os.MFD_ALLOW_SEALING), 2**21
        except OSError as exc:
            pytest.skip(f"no huge pages here: {exc}")
    else:
        descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if kind == "huge pages":
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    else:
        os.pwrite(descriptor, bytes(16), 0)
    return descriptor


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "file", "deleted file", "unsealed", "huge pages"])
def test_an_invitation_to_something_else_finds_nothing(kind: str, tmp_path: Path) -> None:
    descriptor = _hidden(kind, tmp_path)
    try:
        size = os.fstat(descriptor).st_size if kind == "huge pages" else 4096 + CAPACITY
        digest = shared._digest(bytes(16), b"invitation").hex()
        assert find(f"{os.getpid()}.{descriptor}.{size}.{shared._network()}.{digest}") is None
    finally:
        os.close(descriptor)


def test_an_answer_without_the_memory_is_not_taken(ends: tuple[Ring, Mapped]) -> None:
    ring, mapped = ends
    for answer in ("", "é", mapped.answer[:-1], ring.invitation, ring.invitation[-32:], secrets.token_hex(16)):
        ring.join(answer)
        assert not ring.joined


_SENDER = """
import sys
from zpipe.transport.shared import Ring
ring = Ring(2**16)
print(ring.invitation, flush=True)
sys.stdin.readline()
print(ring.place(b"whole" * 1000).hex(), flush=True)
while True:
    ring.place(b"half" * 1000)
    ring.take_back()
"""


def test_a_sender_killed_while_it_writes_leaves_what_it_sent() -> None:
    with subprocess.Popen([sys.executable, "-c", _SENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        invitation = sender.stdout.readline().strip()
        mapped = find(invitation)
        assert mapped is not None
        sender.stdin.write("\n")
        sender.stdin.flush()
        reference = bytes.fromhex(sender.stdout.readline())
        sender.kill()
    assert mapped.take(reference) == b"whole" * 1000
    assert find(invitation) is None, "it has no name by which it could be left behind"
    mapped.close()


# ---- over ZeroMQ -------------------------------------------------------------------------------


async def sharing(world: World, *, answer: str | None = None) -> tuple[Transport, Recorder, Channel, Transport, Recorder, Channel]:
    """Two transports and a channel between them, as both ends see it, after the Hellos that make it share memory."""
    one, heard, _ = await world.node()
    other, other_heard, address = await world.node()
    channel = await connect(one, heard, address)
    came = await hello(one, channel, other, other_heard, answer=answer)
    return one, heard, channel, other, other_heard, came


async def hello(one: Transport, channel: Channel, other: Transport, other_heard: Recorder, *, answer: str | None = None) -> Channel:
    count = len(other_heard.control)
    assert one.send_control(channel, [one.sharing.invite(channel).encode()])
    await other_heard.until(lambda: len(other_heard.control) > count)
    came, (invitation,) = other_heard.control[-1]
    found = other.sharing.accept(came, invitation.decode())
    one.sharing.join(channel, found if answer is None else answer)
    return came


def large(number: int) -> bytes:
    return number.to_bytes(4, "big") * (LARGE // 4)


@pytest.mark.parametrize("kind", ["zeromq", "curve"])
def test_large_frames_go_through_memory_and_the_order_stays(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            one, _, channel, other, heard, _ = await sharing(world)
            sent = []
            for number in range(300):
                sent.append([b"%d" % number, large(number)] if number % 3 else [b"%d" % number])
                assert one.send_data(channel, [sent[-1][0], memoryview(sent[-1][1])] if number % 3 else sent[-1])
                if number % 7 == 0:
                    await heard.until(lambda: len(heard.data) == len(sent))
            await heard.until(lambda: len(heard.data) == 300)
            assert heard.data == sent
            assert one.counts.shared_sent == other.counts.shared_received == 200

    run(main())


def test_what_the_ring_has_no_room_for_goes_in_the_message_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "RING_BYTES", 5 * LARGE)

    async def main() -> None:
        async with World("zeromq") as world:
            one, _, channel, _, heard, _ = await sharing(world)
            for turn in range(3):
                sent = [[b"x", large(10 * turn + number)] for number in range(8)]
                assert all(one.send_data(channel, message) for message in sent), "nothing is read meanwhile"
                await heard.until(lambda: len(heard.data) == 8)
                assert heard.data == sent
                heard.data.clear()
                assert one.counts.shared_sent == 5 * (turn + 1)

    run(main())


def test_a_message_that_is_not_taken_leaves_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "RING_BYTES", 2 * LARGE)

    async def main() -> None:
        async with World("zeromq") as world:
            one, _, channel, _, heard, _ = await sharing(world)
            with monkeypatch.context() as full:
                full.setattr(zeromq, "send", lambda socket, frames: False)
                assert not any(one.send_data(channel, [b"x", large(number)]) for number in range(5))
            assert one.send_data(channel, [b"x", large(7)])
            assert one.counts.shared_sent == 1
            await heard.until(lambda: heard.data == [[b"x", large(7)]])

    run(main())


def test_a_new_connection_has_a_ring_of_its_own_and_none_before_its_hello() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, channel, other, other_heard, came = await sharing(world)
            before = descriptors_of_rings()
            for turn in range(1, 4):
                one.reset(channel)
                await heard.until(lambda turn=turn: len(heard.connected) == turn + 1)  # type: ignore[misc]
                await other_heard.until(lambda turn=turn: len(other_heard.disconnected) == turn)  # type: ignore[misc]
                assert one.send_data(channel, [b"inline", large(turn)])
                came = await hello(one, channel, other, other_heard)
                assert one.send_data(channel, [b"shared", large(turn)])
                await other_heard.until(lambda turn=turn: len(other_heard.data) == 2 * turn)  # type: ignore[misc]
            assert (one.counts.shared_sent, other.counts.shared_received) == (3, 3)
            assert descriptors_of_rings() == before > 0
            assert came.connected

    run(main())


def test_frames_of_a_connection_that_ended_are_dropped_and_counted() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, _, channel, other, heard, came = await sharing(world)
            other.close_channel(came)
            assert one.send_data(channel, [b"x", large(1)])
            assert one.send_data(channel, [b"y"])
            await heard.until(lambda: heard.data == [[b"y"]])
            assert other.counts.shared_missing == 1

    run(main())


def test_a_ring_serves_the_key_whose_hello_brought_it_alone() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, _, channel, other, heard, came = await sharing(world)
            came.key = "of somebody else"
            assert one.send_data(channel, [b"x", large(1)])
            assert one.send_data(channel, [b"y"])
            await heard.until(lambda: heard.data == [[b"y"]])
            assert other.counts.shared_missing == 1

    run(main())


def test_a_peer_that_answers_wrong_or_not_at_all_gets_everything_in_messages() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            for answer in ("", "0" * 32):
                one, _, channel, _, heard, _ = await sharing(world, answer=answer)
                assert one.send_data(channel, [b"x", large(1)])
                await heard.until(lambda heard=heard: heard.data == [[b"x", large(1)]])  # type: ignore[misc]
                assert one.counts.shared_sent == 0

    run(main())


@pytest.mark.parametrize("unwilling", ["sender", "receiver"])
def test_either_end_can_do_without(unwilling: str) -> None:
    async def main() -> None:
        heard, other_heard = Recorder(), Recorder()
        one = ZeroMQTransport(heard, max_message_bytes=MAX_MESSAGE_BYTES, share=unwilling != "sender")
        other = ZeroMQTransport(other_heard, max_message_bytes=MAX_MESSAGE_BYTES, share=unwilling != "receiver")
        try:
            await one.start()
            channel = await connect(one, heard, await other.start())
            await hello(one, channel, other, other_heard)
            assert one.send_data(channel, [b"x", large(1)])
            await other_heard.until(lambda: other_heard.data == [[b"x", large(1)]])
            assert one.counts.shared_sent == 0
        finally:
            await one.aclose()
            await other.aclose()

    run(main())


def test_in_another_network_namespace_no_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring(CAPACITY)
    monkeypatch.setattr(shared, "_network", lambda: 1)
    assert find(ring.invitation) is None
    ring.close()
