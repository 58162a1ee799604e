"""Events, commands and configurations as msgpack and back: strict, and driven by the dataclasses themselves.

Nothing here names a field. What can be written is what `Event`, `Command` and `NodeConfig` reach by their type hints: a new field
is written at once, and a hint that this module has no rule for is a TypeError, not a field that gets lost.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Literal, Union

import msgpack

from zpipe import model
from zpipe.errors import ConfigError
from zpipe.policy import delivery, exits, fanout, messages, state
from zpipe.policy.messages import Command, Event
from zpipe.policy.state import NodeConfig

MESSAGES: tuple[type, ...] = (*typing.get_args(Event), *typing.get_args(Command))
#: The policy's modules import what they need for hints only while types are checked, so their names are looked up here.
_NAMES = {**vars(collections.abc), **vars(model), **vars(exits), **vars(fanout), **vars(delivery), **vars(state), **vars(messages)}

Decode = Callable[[Any], Any]


# ---- which classes, with which fields ----------------------------------------------------------


@cache
def hints(kind: type) -> dict[str, Any]:
    """{field: type} of a dataclass or NamedTuple, in order."""
    found = typing.get_type_hints(kind, localns=_NAMES)
    return {name: found[name] for name in _field_names(kind)}


@cache
def classes() -> dict[str, type]:
    """{name: class} of everything a trace may hold."""
    found: dict[str, type] = {}
    waiting: list[type] = [*MESSAGES, NodeConfig]
    while waiting:
        kind = waiting.pop()
        if found.setdefault(kind.__name__, kind) is not kind:
            raise TypeError(f"two classes of a trace are called {kind.__name__}: {kind} and {found[kind.__name__]}")
        inside = [part for hint in hints(kind).values() for part in _records_in(hint)]
        waiting.extend(part for part in inside if part.__name__ not in found)
    return dict(sorted(found.items()))


def fields() -> dict[str, list[str]]:
    """{name: its fields in the order they are written}, for a trace's header."""
    return {name: list(hints(kind)) for name, kind in classes().items()}


def _field_names(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(kind._fields)


def _is_record(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"))


def _records_in(hint: Any) -> Iterator[type]:
    if _is_record(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from _records_in(part)


# ---- writing -----------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """The value's bytes, which are equal for values that are the same to the last bit; a later change of it does not reach them.

    Raises:
        TypeError: it holds something that no event, command or configuration is made of.
    """
    packed: bytes = _PACKER.pack(value)
    return packed


def packer() -> msgpack.Packer:
    """What packs as `pack` does, value behind value, until it is reset."""
    return msgpack.Packer(default=_as_row, unicode_errors="surrogatepass", autoreset=False)


class _Getters(dict[type, Callable[[Any], Sequence[Any]]]):
    """{class: all fields of one of its objects}, filled as they are met."""

    def __missing__(self, kind: type) -> Callable[[Any], Sequence[Any]]:
        getter = self[kind] = _getter(kind)
        return getter


_GETTERS = _Getters()


def _as_row(value: Any) -> Sequence[Any]:
    """A dataclass as the row it is written as; the packer asks for what it does not know itself."""
    return _GETTERS[value.__class__](value)


def _getter(kind: type) -> Callable[[object], Sequence[Any]]:
    """All fields in one call, which takes 0.4 µs for a Task; a message's name is in front."""
    if classes().get(kind.__name__) is not kind:
        raise TypeError(f"a trace holds events, commands and their parts, not {kind.__name__}")
    names = [*(["__class__.__name__"] if kind in MESSAGES else []), *hints(kind)]
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda value: (get(value),)


#: surrogatepass: what a stage raised may name a file whose name is no UTF-8.
_PACKER = msgpack.Packer(default=_as_row, unicode_errors="surrogatepass")


# ---- reading -----------------------------------------------------------------------------------


class Reader:
    """Reads what a trace with these fields holds. A field it lacks takes its default, so that old traces stay readable.

    Args:
        fields: {name: its fields in the order they were written}, from the header.

    Raises:
        ConfigError: a class has other fields here.
    """

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields
        self._records: dict[type, Decode] = {}
        for name, kind in classes().items():
            if name in fields:
                self._decoder(kind)

    def config(self, plain: Any) -> NodeConfig:
        """The configuration of the header.

        Raises:
            ConfigError: it is none of this version's; so do `events` and `commands`.
        """
        config: NodeConfig = self._decoder(NodeConfig)(plain)
        return config

    def events(self, plain: Any) -> list[Event]:
        """The events of one round."""
        return self._messages(plain, typing.get_args(Event), "event")

    def commands(self, plain: Any) -> list[Command]:
        """The commands of one round."""
        return self._messages(plain, typing.get_args(Command), "command")

    def _messages(self, plain: Any, kinds: Sequence[type], what: str) -> list[Any]:
        found = []
        for message in _list(plain):
            name, *row = _list(message) or [None]
            kind = classes().get(str(name))
            if kind is None or kind not in kinds:
                raise ConfigError(f"found {what} {name!r}, expected one of {', '.join(kind.__name__ for kind in kinds)}")
            found.append(self._decoder(kind)(row))
        return found

    def _decoder(self, hint: Any) -> Decode:
        if not _is_record(hint):
            return _plain_decoder(hint) or self._nested_decoder(hint)
        if hint not in self._records:
            self._records[hint] = self._record_decoder(hint)
        return self._records[hint]

    def _nested_decoder(self, hint: Any) -> Decode:
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if origin in (Union, types.UnionType) and len(parts) == 2 and parts[1] is type(None):
            some = self._decoder(parts[0])
            return lambda plain: None if plain is None else some(plain)
        if origin in (dict, collections.abc.Mapping) and parts[0] in (int, str):
            name, value = parts[0], self._decoder(parts[1])
            return lambda plain: {name(key): value(part) for key, part in _dict(plain).items()}
        if origin in (list, collections.abc.Sequence) or (origin is tuple and parts[1:] == (...,)):
            make, each = (tuple if origin is tuple else list), self._decoder(parts[0])
            return lambda plain: make([each(part) for part in _list(plain)])
        if origin is tuple:
            decoders = [self._decoder(part) for part in parts]
            return lambda plain: tuple(decode(part) for decode, part in zip(decoders, _row(plain, len(decoders)), strict=True))
        raise TypeError(f"a trace has no rule for {hint}; give it one in {__name__}")

    def _record_decoder(self, kind: Any) -> Decode:
        known, written = hints(kind), self._fields.get(kind.__name__)
        if written is None:
            raise ConfigError(f"found no fields of {kind.__name__}, expected {', '.join(known)}")
        strange = [name for name in written if name not in known]
        missing = [name for name in known if name not in written and _is_required(kind, name)]
        if strange or missing:
            raise ConfigError(
                f"found {kind.__name__} with fields {', '.join(written)}, expected {', '.join(known)}; "
                "replay it with the zpipe it is from"
            )
        columns = [(name, self._decoder(known[name])) for name in written]

        def decode(plain: Any) -> Any:
            row = _row(plain, len(columns))
            return kind(**{name: decode(part) for (name, decode), part in zip(columns, row, strict=True)})

        return decode


def _is_required(kind: Any, name: str) -> bool:
    if not dataclasses.is_dataclass(kind):
        return name not in kind._field_defaults
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain_decoder(hint: Any) -> Decode | None:
    """For values that msgpack has itself; None for all others."""
    if hint is float:
        return _float
    allowed = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
    if hint not in (bool, int, str, bytes) and allowed is None:
        return None

    def decode(plain: Any) -> Any:
        if (plain not in allowed) if allowed else (type(plain) is not hint):
            raise ConfigError(f"found {plain!r}, expected {allowed or hint.__name__}")
        return plain

    return decode


def _float(plain: Any) -> Any:
    """A number of whichever kind the policy was given: an int in a float's place is written as one."""
    if type(plain) is float or type(plain) is int:
        return plain
    raise ConfigError(f"found {plain!r}, expected a number")


def _list(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise ConfigError(f"found {plain!r:.60}, expected a list")
    return plain


def _row(plain: Any, length: int) -> list[Any]:
    row = _list(plain)
    if len(row) != length:
        raise ConfigError(f"found {len(row)} values, expected {length}")
    return row


def _dict(plain: Any) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise ConfigError(f"found {plain!r:.60}, expected an object")
    return plain
