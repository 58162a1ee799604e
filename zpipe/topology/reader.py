"""Reads YAML key by key, so that whatever is wrong can be told in one line: file, key, found, expected.

Knows nothing of topologies but their error type; `zpipe.topology` says what the keys mean.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass

import yaml

from zpipe.errors import TopologyError

#: Units a quantity may carry, in bits per second and in seconds; a bare number is in the base unit.
BANDWIDTH_UNITS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}

_QUANTITY = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([^0-9\s]*)")
_SHOWN_CHARACTERS = 60


#: No count in a topology makes sense beyond this.
MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class At:
    """A place in a file, for error messages: `line4.yaml`, `nodes[2].stages`."""

    file: str
    key: str = ""

    def __truediv__(self, step: str | int) -> At:
        """The place one step further in: a key or a list index."""
        if isinstance(step, int):
            return At(self.file, f"{self.key}[{step}]")
        return At(self.file, f"{self.key}.{step}" if self.key else step)

    def error(self, found: str, expected: str) -> TopologyError:
        """The one line; `found` and `expected` are phrases."""
        return TopologyError(": ".join(part for part in (self.file, self.key, f"found {found}, expected {expected}") if part))

    def wrong(self, value: object, expected: str) -> TopologyError:
        """The same, for a value as it stands in the file."""
        return self.error("nothing" if value is None else shown(value), expected)


def shown(value: object) -> str:
    """The value on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def one_of(names: Collection[str], found: object) -> str:
    """A phrase for what was expected, with the likeliest name where one is near."""
    near = difflib.get_close_matches(str(found), names, n=1)
    return f"one of {', '.join(names)}" + (f" (did you mean {near[0]}?)" if near else "")


class Fields:
    """One mapping of the file. A key that is absent or empty has its default; one without default must be there."""

    def __init__(self, at: At, value: object, *, known: Collection[str]) -> None:
        if not isinstance(value, Mapping):
            raise at.wrong(value, f"keys and values, with keys from {', '.join(known)}")
        for key in value:
            if key not in known:
                raise (at / str(key)).error("an unknown key", one_of(known, key))
        self.at = at
        self._value = value

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def raw(self, key: str) -> object:
        """The value as YAML gave it, None where there is none."""
        return self._value.get(key)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 0, maximum: int = MOST) -> int:
        """A whole number."""
        return integer(self.at / key, self._or(key, default), minimum=minimum, maximum=maximum)

    def number(self, key: str, default: float, *, valid: Callable[[float], bool], expected: str) -> float:
        """A finite number for which `valid` holds; `expected` says so in words."""
        return number(self.at / key, self._or(key, default), valid=valid, expected=expected)

    def quantity(
        self,
        key: str,
        units: Mapping[str, float],
        default: float,
        *,
        zero: bool = False,
        bounds: tuple[float, float] = (0.0, math.inf),
    ) -> float:
        """A number with a unit, in the base unit; the default stands as it is.

        Args:
            key: which.
            units: factor of each unit; the first is the base unit.
            default: where the key is absent.
            zero: whether 0 makes sense.
            bounds: least and greatest value, in the base unit.
        """
        if key not in self:
            return default
        found = quantity(self.at / key, self.raw(key), units, zero=zero)
        if not bounds[0] <= found <= bounds[1]:
            base = next(iter(units))
            raise (self.at / key).wrong(self.raw(key), f"from {bounds[0]:g} to {bounds[1]:g} {base}")
        return found

    def text(self, key: str, default: str | None = None, *, names: Collection[str] = ()) -> str:
        """A word, one of `names` where these are given."""
        value = self._or(key, default)
        if not isinstance(value, str) or (not value and value != default):
            raise (self.at / key).wrong(value, one_of(names, value) if names else "a word")
        if names and value not in names:
            raise (self.at / key).wrong(value, one_of(names, value))
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._or(key, default)
        if not isinstance(value, bool):
            raise (self.at / key).wrong(value, "true or false")
        return value

    def items(self, key: str) -> Iterator[tuple[At, object]]:
        """The entries of a list, each with its place."""
        return items(self.at / key, self.raw(key))

    def _or(self, key: str, default: object) -> object:
        value = self._value.get(key)
        return default if value is None else value


def items(at: At, value: object) -> Iterator[tuple[At, object]]:
    """The entries of a list, each with its place."""
    if not isinstance(value, list | tuple):
        raise at.wrong(value, "a list")
    return ((at / index, item) for index, item in enumerate(value))


def integer(at: At, value: object, *, minimum: int = 0, maximum: int = MOST) -> int:
    """A whole number from `minimum` to `maximum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise at.wrong(value, f"a whole number from {minimum} on")
    if value > maximum:
        raise at.wrong(value, f"a whole number up to {maximum}")
    return value


def number(at: At, value: object, *, valid: Callable[[float], bool], expected: str) -> float:
    """A finite number for which `valid` holds; `expected` says so in words."""
    parsed = _float(value)
    if parsed is None or not valid(parsed):
        raise at.wrong(value, expected)
    return parsed


def quantity(at: At, value: object, units: Mapping[str, float], *, zero: bool = False) -> float:
    """A number with one of these units, in the base unit; a bare number is in the base unit already."""
    base = next(iter(units))
    parsed = _float(value)
    if parsed is None and isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        magnitude, factor = _float(match[1]), units.get(match[2])
        parsed = None if magnitude is None or factor is None else magnitude * factor
    if parsed is None or parsed < 0.0 or (parsed == 0.0 and not zero):
        raise at.wrong(value, f"a number above 0 with a unit such as '20 {base}' (units: {', '.join(units)})")
    return parsed


def _float(value: object) -> float | None:
    """As a finite float; YAML 1.1 reads `1e3` as text, people don't."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


# ---- YAML --------------------------------------------------------------------------------------


class _OnceLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key_node.value!r} twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str, file: str, *, of: str = "a topology with at least bundle and nodes") -> object:
    """The plain values of a YAML text; `of` says what an empty one should have held.

    Raises:
        TopologyError: the text is no YAML, is empty, has a key twice (the message names the line) or is nested too deeply.
    """
    try:
        value = yaml.load(text, Loader=_OnceLoader)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        problem = " ".join(str(getattr(exc, "problem", None) or exc).split()).removeprefix("found ")
        place = f"line {mark.line + 1}" if mark is not None else ""
        raise At(file, place).error(problem, "valid YAML with each key once") from exc
    except RecursionError as exc:
        raise At(file).error("lists or mappings nested too deeply", "valid YAML, a few levels deep") from exc
    if value is None:
        raise At(file).error("an empty file", of)
    return value
