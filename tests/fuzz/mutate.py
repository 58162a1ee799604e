"""Frames as damage, carelessness and malice make them, from valid messages.

Two sorts. *Damaged* frames keep the old checksum: the decoder must refuse every one that differs from what was sent. *Sealed*
ones get a right checksum around a wrong content, so that they come past it to the checks behind. Nothing here knows the layout
of a kind: seeds are valid messages as `encode` makes them, and edits work on the msgpack tree that is found in them, so a field
added to the wire is mutated from the day it is there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from zpipe.wire.kinds import TRAILER_BYTES, Kind

Frames = list[bytes]


@dataclass(slots=True)
class Mutant:
    """One message to try.

    Attributes:
        frames: as they would come from a transport.
        how: the names of what was done to it, for whoever has to find out why it broke something.
        damaged: the checksum is that of other frames, so that only a refusal is right.
    """

    frames: Frames
    how: str
    damaged: bool = False


def seal(body: bytes, buffer: bytes | None = None) -> Frames:
    """Frames with a right checksum around any body."""
    if buffer is None:
        return [body + xxh3_64_digest(body)]
    return [body + xxh3_64_digest(buffer, xxh3_64_intdigest(body)), buffer]


def _nested(depth: int) -> list[Any]:
    tree: list[Any] = []
    for _ in range(depth):
        tree = [tree]
    return tree


#: Where range checks, types and arithmetic have their edges.
INTS = (0, 1, -1, -2, 2, 127, 255, 65535, 65536, 2**31, 2**32, 2**53, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
FLOATS = (
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    -1.0,
    1.0,
    1.0009,
    1.0011,
    -0.0009,
    -0.0011,
    5e-324,
    1e300,
    1.7976931348623157e308,
)
TEXTS = (
    "",
    "peer",
    "source",
    "observer",
    "none",
    "int8",
    "int8+zstd",
    "line\nbreak",
    "\x00" * 1024,
    "x" * 1025,
    "\ud800",
    "é",
    "%s{}",
)
DOCUMENTS = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"a":1,"a":2}',
    b'{"a":NaN}',
    b'{"a":-Infinity}',
    b'{"a":1e999}',
    b'{"a":' + b"9" * 4000 + b"}",
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":' + b"[" * 16 + b"]" * 16 + b"}",
    b'{"a":' + b"[" * 14 + b"1e999" + b"]" * 14 + b"}",
    b'{"a":' + b"[" * 40000,
    b'{"a":"\\ud800"}',
    b'{"\xff":1}',
    b'{"nodes":[' + b"{}," * 9000 + b"{}]}",
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    {1: 2},
    _nested(20),
    _nested(400),
    [0] * 1024,
    [0] * 1025,
    msgpack.ExtType(5, b"x"),
)
#: msgpack openings that claim more than follows: arrays, maps, strings, bins, extensions; and numbers of every width.
CLAIMS = (
    b"\xdc\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdd\x00\x00\x04\x00",
    b"\xde\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xc7\x08\xff",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xc1",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\x00" * 7,
    b"\xcb\x7f\xf8" + b"\x00" * 6,
    b"\xca\x7f\x80\x00\x00",
    b"\xdd\x00\x00\x04\x00" * 200,
    b"\x91" * 1100,
)


#: About as many bytes an edit may make of a header; 64 KiB are refused for their length.
MOST_BYTES = 70_000


class Mutator:
    """Mutants without end.

    Args:
        seeds: {name: frames} of valid messages.
        rng: the only source of chance.
    """

    def __init__(self, seeds: dict[str, Frames], rng: random.Random) -> None:
        self._rng = rng
        self._seeds = list(seeds.items())
        self._trees = {name: msgpack.unpackb(frames[0][:-TRAILER_BYTES]) for name, frames in self._seeds}
        self._paths = {name: _paths(tree) for name, tree in self._trees.items()}
        #: A seed is taken the more often the more there is to change in it.
        self._weights = [math.sqrt(len(self._paths[name])) for name, _ in self._seeds]
        self._known = {tuple(frames) for frames in seeds.values()}
        #: Texts and small numbers of other messages are better guesses than random ones.
        self._texts = (*TEXTS, *sorted({leaf for tree in self._trees.values() for leaf in _leaves(tree) if isinstance(leaf, str)}))
        self._ways: tuple[Callable[[str, Frames], Mutant], ...] = (
            self._fields,
            self._fields,
            self._fields,
            self._fields,
            self._bytes,
            self._bytes,
            self._damage,
            self._damage,
            self._frames,
        )

    def mutant(self) -> Mutant:
        """The next one."""
        ((name, frames),) = self._rng.choices(self._seeds, self._weights)
        return self._rng.choice(self._ways)(name, frames)

    # ---- sealed --------------------------------------------------------------------------------

    def _fields(self, name: str, frames: Frames) -> Mutant:
        """One to three fields anywhere in the header replaced, dropped, doubled, swapped."""
        rng = self._rng
        tree = _copied(self._trees[name])
        how = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            # The version is left alone nearly always: nothing behind it is reached else.
            path = rng.choice(self._paths[name]) if rng.random() < 0.99 else (0,)
            place, index = _place(tree, path)
            how.append(self._edit(place, index))
        body = msgpack.packb(tree, unicode_errors="surrogatepass")
        return Mutant(seal(body, self._resized(frames)), f"{name}: {', '.join(how)}")

    def _edit(self, place: list[Any], index: int) -> str:
        rng = self._rng
        if not place:
            place.append(self._value(None))
            return "filled"
        dice = rng.random()
        if dice < 0.82:
            place[index] = self._value(place[index])
            return f"field {index} replaced"
        if dice < 0.88:
            del place[index]
            return f"field {index} dropped"
        if dice < 0.94:
            place[index:index] = self._times([place[index]], rng.choice((1, 1, 2, 16, 70, 1100)))
            return f"field {index} repeated"
        other = rng.randrange(len(place))
        place[index], place[other] = place[other], place[index]
        return f"fields {index} and {other} swapped"

    def _value(self, old: Any) -> Any:
        """Mostly of the type that was there, mostly at an edge."""
        rng = self._rng
        dice = rng.random()
        if dice < 0.12:
            return _copied(rng.choice(OTHERS))
        if dice < 0.2:
            return rng.choice(rng.choice((INTS, FLOATS, self._texts)))
        if isinstance(old, bool):
            return rng.choice((0, 1, not old))
        if isinstance(old, int):
            near = old + rng.choice((1, -1))
            return rng.choice((rng.choice(INTS), max(-(2**63), min(near, 2**64 - 1)), rng.randrange(1, 20), float(old)))
        if isinstance(old, float):
            return rng.choice(
                (rng.choice(FLOATS), rng.choice(FLOATS), -old, 2.0 * old, rng.random(), int(old) if abs(old) < 2**63 else 0)
            )
        if isinstance(old, str):
            return rng.choice(self._texts)
        if isinstance(old, bytes):
            return self._document(old)
        if isinstance(old, list):
            return self._list(old)
        return rng.choice(INTS)

    def _list(self, old: list[Any]) -> list[Any]:
        rng = self._rng
        dice = rng.random()
        if dice < 0.3 and _weight(old) < 2_000:
            return [self._value(rng.choice(old) if old else 0) for _ in range(rng.randrange(6))]
        if dice < 0.6:
            return old[: rng.randrange(len(old) + 1)]
        return self._times(old, rng.choice((0, 2, 3, 9, 520)))

    @staticmethod
    def _times(old: list[Any], times: int) -> list[Any]:
        """So many copies, or fewer where the header would be far above any limit: edits of edits multiply."""
        most = MOST_BYTES // max(1, _weight(old))
        return [_copied(each) for each in old * min(times, most)]

    def _document(self, old: bytes) -> bytes:
        rng = self._rng
        dice = rng.random()
        if dice < 0.6 or not old:
            return rng.choice(DOCUMENTS)
        if dice < 0.9:
            cut = rng.randrange(len(old))
            return old[:cut] + rng.choice((b"[", b"}", b'"', b"NaN", b"1e999", b"\xff", b"-", b"")) + old[cut + rng.randrange(2) :]
        return old + b" " * rng.choice((1, 48_000, 50_000))

    def _resized(self, frames: Frames) -> bytes | None:
        """The buffer of a Task, mostly as it was."""
        if len(frames) == 1:
            return None
        buffer, dice = frames[1], self._rng.random()
        if dice < 0.85:
            return buffer
        return self._rng.choice((b"", buffer[:-1], buffer + b"\0", buffer * 2, buffer * 3, buffer[: len(buffer) // 2], buffer[:1]))

    def _bytes(self, name: str, frames: Frames) -> Mutant:
        """The header's bytes changed without regard to what they mean, and sealed again."""
        rng = self._rng
        body = bytearray(frames[0][:-TRAILER_BYTES])
        for _ in range(rng.choice((1, 1, 2, 4))):
            if len(body) < 3:
                break
            at = rng.randrange(2 if rng.random() < 0.95 else 0, len(body))  # mostly not the version
            dice = rng.random()
            if dice < 0.3:
                body[at] ^= 1 << rng.randrange(8)
            elif dice < 0.5:
                body[at] = rng.randrange(256)
            elif dice < 0.75:
                body[at : at + rng.randrange(3)] = rng.choice(CLAIMS)
            elif dice < 0.9:
                del body[at : at + rng.randrange(1, 9)]
            else:
                other = rng.choice(self._seeds)[1][0]
                cut = rng.randrange(len(other))
                body[at:at] = other[cut : cut + rng.randrange(1, 40)]
        return Mutant(seal(bytes(body), self._resized(frames)), f"{name}: bytes, sealed")

    def _frames(self, name: str, frames: Frames) -> Mutant:
        """Other frames than belong together."""
        rng = self._rng
        other = rng.choice(self._seeds)[1]
        body, buffer = frames[0][:-TRAILER_BYTES], frames[-1]
        choices: tuple[Frames, ...] = (
            [],
            [b""],
            [b"", b""],
            [*frames, b""],
            [*frames, *other],
            frames[::-1],
            [frames[0], other[-1]],
            seal(body, b""),
            seal(body, buffer),
            seal(body),
            seal(body * 3, buffer if len(frames) > 1 else None),
            seal(b"\x94\x01" + rng.randbytes(rng.randrange(4, 300))),
            seal(body + b"\xc0" * rng.choice((1, 60_000, 70_000))),
            [rng.randbytes(rng.randrange(200))],
        )
        return Mutant(rng.choice(choices), f"{name}: frames")

    # ---- damaged -------------------------------------------------------------------------------

    def _damage(self, name: str, frames: Frames) -> Mutant:
        """What a bad wire, or a bad memory, does."""
        rng = self._rng
        made = list(frames)
        index = rng.randrange(len(made))
        data = bytearray(made[index])
        dice = rng.random()
        if dice < 0.5:
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif dice < 0.7:
            del data[rng.randrange(len(data)) :]
        elif dice < 0.8:
            data += rng.randbytes(rng.randrange(1, 20))
        else:
            other = rng.choice(rng.choice(self._seeds)[1])
            cut = rng.randrange(len(data))
            data[cut:] = other[min(cut, len(other)) :]
        made[index] = bytes(data)
        return Mutant(made, f"{name}: damaged", damaged=tuple(made) not in self._known)


def _paths(tree: list[Any]) -> list[tuple[int, ...]]:
    """Where anything stands in a header, but for its version."""
    found: list[tuple[int, ...]] = []
    level: list[tuple[tuple[int, ...], Any]] = [((), tree)]
    while level:
        path, node = level.pop()
        if isinstance(node, list):
            level += [((*path, index), child) for index, child in enumerate(node)]
        if path and path != (0,):
            found.append(path)
    return found


def _place(tree: list[Any], path: tuple[int, ...]) -> tuple[list[Any], int]:
    """The list and index a path leads to, or as far on the way as earlier edits left it."""
    place = tree
    for index in path[:-1]:
        inner = place[index] if index < len(place) else None
        if not isinstance(inner, list):
            return place, min(index, max(0, len(place) - 1))
        place = inner
    return place, min(path[-1], max(0, len(place) - 1))


def _copied(tree: Any) -> Any:
    return [_copied(each) for each in tree] if isinstance(tree, list) else tree


def _weight(tree: Any) -> int:
    """About the bytes it packs to; an empty list is one."""
    if isinstance(tree, list):
        return 1 + sum(map(_weight, tree))
    return 1 + len(tree) if isinstance(tree, str | bytes) else 5


def _leaves(tree: Any) -> Sequence[Any]:
    return [leaf for each in tree for leaf in _leaves(each)] if isinstance(tree, list) else (tree,)


def kind_of(frames: Sequence[bytes]) -> str:
    """The kind a header claims, for statistics; `?` where it has none."""
    try:
        return Kind(frames[0][2]).name
    except (IndexError, ValueError):
        return "?"
