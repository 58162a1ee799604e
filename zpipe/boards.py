"""The boards somebody has, as a planner must know them: how fast each is, what it holds, how they are linked (a *devices file*).

A devices file is short YAML; `topologies/devices/` holds examples. Its keys, with their defaults:

    name: the file's name
    devices:                      required
      - name: camera              required, each once
        device: ""                how fast it is: a profile of zpipe/devices.yaml, NAME/4 for four times slower, or the JSON that
                                  `zpipe profile` wrote on that board (a path, beside this file); required
        memory: none              what the node may take, such as 512 MB; none = not limited
        count: 1                  so many of them, called NAME-1, NAME-2, ...; NAME is all of them (`zpipe plan --failure`)
        address: 127.0.0.1:0      as in a topology; not with a count
        executor: onnx            as in a topology
        max_batch: 8              most tasks in one batch
        failure: none             P(it does not answer), 0 to below 1: which boards host the same student (`zpipe plan --failure`);
                                  none or 0 for the source
    links: mesh                   which devices can be linked: line (in this order), ring, mesh, star (all to the first one); or
                                  {shape: mesh, bandwidth: 100 Mbit/s, latency: 1 ms, ...}; or a list of {between: [camera, arm],
                                  ...}; keys and defaults as in a topology, but `codec: auto` (the default here) leaves the choice
                                  to the planner
      except: []                  beside `shape`: links with values of their own, {between: [camera, arm], bandwidth: 10 Mbit/s}
    measured: none                what `zpipe profile --topology FILE --json THIS` found: bandwidth and latency of links whose ends
                                  have addresses that it knows, in place of what `links` says; devices without addresses
                                  must stand in the order of that topology's ranks
    source: the first device      where samples enter
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zpipe.bundle import Bundle
from zpipe.devices import load_device
from zpipe.errors import ConfigError
from zpipe.executors.base import EXECUTORS, is_executor_name
from zpipe.model import AUTO_CODEC, StageSpec
from zpipe.service import Measured, has_port, load_links, load_service
from zpipe.topology import LinkSpec, NodeSpec
from zpipe.topology.parse import MAX_BATCH, parse_address, parse_links
from zpipe.topology.reader import BANDWIDTH_UNITS, At, Fields, items, one_of, quantity, read_yaml

MEMORY_UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
#: Most boards of one entry, and in all: a plan beyond is no matter of exact search.
MOST_BOARDS = 100

_PACKAGE = Path(__file__).resolve().parent
#: Where a bare name is looked up after the path as given.
_PLACES = (Path("topologies/devices"), _PACKAGE / "data/topologies/devices", _PACKAGE.parent / "topologies/devices")
_SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class Board:
    """One device a plan may use.

    Attributes:
        name: for people.
        device: profile of `zpipe.devices`; for a measured board the file, as it was written.
        measured: what `zpipe profile` measured there; None where the profile is an assumption.
        memory_bytes: what its node may take, `inf` = not limited.
        address, executor, max_batch: as in a topology.
        faster: by this factor quicker than its profile says: what a planner asks about.
        failure: P(it does not answer), 0..1 and below 1; None = not said.
        entry: what the file calls it and its likes, where its `count` is above 1; "" = it stands alone.
    """

    name: str
    device: str
    measured: Measured | None = None
    memory_bytes: float = math.inf
    address: str = NodeSpec(0, ()).address
    executor: str = NodeSpec(0, ()).executor
    max_batch: int = NodeSpec(0, ()).max_batch
    faster: float = 1.0
    failure: float | None = None
    entry: str = ""

    def batch_seconds(self, stage: StageSpec, rows: float) -> float:
        """How long a batch of so many rows takes; a mean number of rows need not be whole."""
        if self.measured is not None:
            return self.measured.seconds(stage.index, rows) / self.faster
        device = load_device(self.device)
        return (device.fixed_seconds + rows * stage.macs / device.macs_per_second) / self.faster

    def piece_seconds(self, macs: float) -> float:
        """Per row of a piece of a network that has not been measured, at full batches."""
        if self.measured is not None:
            return macs / self.measured.macs_per_second / self.faster
        device = load_device(self.device)
        return (device.fixed_seconds / self.max_batch + macs / device.macs_per_second) / self.faster


@dataclass(frozen=True, slots=True)
class Boards:
    """A checked devices file.

    Attributes:
        name: for reports.
        boards: in the file's order.
        links: which can be linked, `between` indices of `boards`; their codec is `auto` where the planner may choose.
        source: index of the board where samples enter.
        shape: `line`, `ring`, `mesh`, or "" where links were listed.
        path: the file it was read from, None where there was none.
    """

    name: str
    boards: tuple[Board, ...]
    links: tuple[LinkSpec, ...]
    source: int = 0
    shape: str = ""
    path: Path | None = None

    def link(self, a: int, b: int) -> LinkSpec | None:
        """The link between two boards, None where there is none."""
        return next((link for link in self.links if set(link.between) == {a, b}), None)


def load_boards(name_or_path: str | Path, bundle: Bundle | None = None) -> Boards:
    """Read and check a devices file.

    Args:
        name_or_path: a file, or the name of one in `topologies/devices`.
        bundle: measured profiles must be of this bundle; None takes those of any.

    Raises:
        ConfigError: there is no such file, or something in it is wrong; one line that names file, key, found and expected.
    """
    path = _find(Path(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise At(str(path)).error(f"a file that cannot be read ({exc})", "devices in YAML, UTF-8") from exc

    def measured(file: str) -> Measured:
        return load_service(path.parent / file, bundle)

    return parse_boards(
        read_yaml(text, str(path), of="devices, a list of name and device each"), file=str(path), path=path, measured=measured
    )


def _find(given: Path) -> Path:
    """The first file that there is.

    Raises:
        ConfigError: none; the message lists the places tried.
    """
    folders = (Path(), *_PLACES) if given.name == str(given) else (Path(),)
    names = (given,) if given.suffix == _SUFFIX else (given, Path(f"{given}{_SUFFIX}"))
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    tried = ", ".join(str(folder.absolute()) for folder in folders)
    raise ConfigError(f"devices {str(given)!r}: found no such file, expected it (or it with {_SUFFIX}) in {tried}")


def parse_boards(value: object, *, file: str, path: Path | None, measured: Callable[[str], Measured]) -> Boards:
    """The boards that these plain values describe.

    Args:
        value: what YAML gave.
        file: its name in error messages.
        path: where it was read from.
        measured: reads what `zpipe profile` wrote.

    Raises:
        ConfigError: something is wrong; one line that names file, key, found and expected.
    """
    at = At(file)
    top = Fields(at, value, known=("name", "devices", "links", "measured", "source"))
    boards = _boards(at / "devices", top.raw("devices"), measured)
    names = [board.name for board in boards]
    links, shape = _links(at / "links", top.raw("links"), names)
    if "measured" in top:
        links = _as_measured(at / "measured", links, boards, (path.parent if path else Path()) / top.text("measured"))
    source = _index(at / "source", top.raw("source"), names=names) if "source" in top else 0
    _check_reached(at / "links", links, names, source)
    return Boards(top.text("name", path.stem if path else "devices"), boards, links, source, shape, path)


def _boards(at: At, value: object, measured: Callable[[str], Measured]) -> tuple[Board, ...]:
    boards: list[Board] = []
    for here, entry in items(at, value):
        for board in _entry(here, entry, measured):
            if any(other.name == board.name for other in boards):
                raise (here / "name").error(f"{board.name!r} a second time", "a name of its own for each device")
            boards.append(board)
    if not boards:
        raise at.error("no devices", "at least one")
    if len(boards) > MOST_BOARDS:
        raise at.error(f"{len(boards)} devices", f"at most {MOST_BOARDS}")
    return tuple(boards)


def _entry(at: At, value: object, measured: Callable[[str], Measured]) -> Sequence[Board]:
    read = Fields(at, value, known=("name", "device", "memory", "count", "address", "executor", "max_batch", "failure"))
    default = Board(read.text("name"), read.text("device"))
    count = read.integer("count", 1, minimum=1, maximum=MOST_BOARDS)
    if count > 1 and "address" in read:
        raise (at / "address").error(f"one address of {count} devices", "one each; list them one by one")
    board = Board(
        default.name,
        default.device,
        _measured(at / "device", default.device, measured),
        memory_bytes=_with_unit(at / "memory", read.raw("memory"), MEMORY_UNITS, "512 MB") if "memory" in read else math.inf,
        address=parse_address(at / "address", read.text("address", default.address)),
        executor=read.text("executor", default.executor),
        max_batch=read.integer("max_batch", default.max_batch, minimum=1, maximum=MAX_BATCH),
        failure=_probability(at / "failure", read.raw("failure")) if "failure" in read else None,
    )
    if not is_executor_name(board.executor):  # whether Python finds one is for the node that runs it to say
        raise (at / "executor").wrong(board.executor, one_of((*EXECUTORS, "MODULE:CLASS of your own"), board.executor))
    if count == 1:
        return (board,)
    return [replace(board, name=f"{board.name}-{number}", entry=board.name) for number in range(1, count + 1)]


def _with_unit(at: At, value: object, units: Mapping[str, float], example: str) -> float:
    """A quantity that names its unit: 512 bytes of memory are never meant."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise at.error(f"{value} without a unit", f"a number with one, such as '{example}' (units: {', '.join(units)})")
    return quantity(at, value, units)


def _probability(at: At, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise at.wrong(value, "P(it does not answer), a number from 0 to below 1, such as 0.1")
    return float(value)


def _measured(at: At, device: str, measured: Callable[[str], Measured]) -> Measured | None:
    """The profile must be there, whichever of the two kinds it is."""
    try:
        if device.endswith(".json"):
            return measured(device)
        load_device(device)
    except ConfigError as exc:
        said = str(exc).removeprefix("device: ")
        raise ConfigError(f"{at.file}: {at.key}: {said}" + ("" if device.endswith(".json") else ", or a JSON file")) from exc
    return None


def _links(at: At, value: object, names: Sequence[str]) -> tuple[tuple[LinkSpec, ...], str]:
    """The links, and the shape they were given by."""
    value = "mesh" if value is None else {"shape": value} if isinstance(value, str) else value
    _check_units(at, value)
    end = partial(_index, names=names)
    if value == "mesh":
        value = {"shape": "mesh"}
    if not isinstance(value, Mapping):
        return parse_links(at, value, len(names), end=end, codec=AUTO_CODEC), ""
    rest = {key: entry for key, entry in value.items() if key != "except"}
    links = {link.between: link for link in parse_links(at, rest, len(names), codec=AUTO_CODEC)}
    if value.get("except") is not None:
        for index, link in enumerate(parse_links(at / "except", value["except"], len(names), end=end, codec=AUTO_CODEC)):
            if link.between not in links:
                pair = " and ".join(names[board] for board in link.between)
                raise (at / "except" / index).error(f"{pair}, which are not linked", f"links of the {rest.get('shape')}")
            links[link.between] = link
    return tuple(links.values()), str(rest["shape"])


def _check_units(at: At, value: object) -> None:
    """Bandwidths name their unit: 20 bit/s are never meant."""
    if isinstance(value, Mapping):
        if value.get("bandwidth") is not None:
            _with_unit(at / "bandwidth", value["bandwidth"], BANDWIDTH_UNITS, "20 Mbit/s")
        _check_units(at / "except", value.get("except"))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_units(at / index, entry)


def _check_reached(at: At, links: Sequence[LinkSpec], names: Sequence[str], source: int) -> None:
    """A board that nothing reaches can run nothing."""
    reached, ring = {source}, {source}
    while ring:
        ring = {board for link in links if ring & set(link.between) for board in link.between} - reached
        reached |= ring
    for board, name in enumerate(names):
        if board not in reached:
            raise at.error(f"no way from the source ({names[source]}) to {name}", "links by which every device can be reached")


def _as_measured(at: At, links: Sequence[LinkSpec], boards: Sequence[Board], file: Path) -> tuple[LinkSpec, ...]:
    """The links with the bandwidth and latency that were found between their addresses, or ranks where these do not tell.

    Rank 0 is the first device of the file, and so on: that is the order of the topology that was measured.
    """
    known = load_links(file)

    def measured(link: LinkSpec) -> tuple[float, float] | None:
        ends = [boards[board].address for board in link.between]
        if all(has_port(end) for end in ends):
            return known.get(frozenset(ends))
        return known.get(frozenset(link.between))

    if all(measured(link) is None for link in links):
        there = ", ".join(sorted("-".join(sorted(map(str, pair))) for pair in known))
        raise at.error(
            f"no link between devices of this file (it knows {there})",
            "devices with these addresses, or without any in the order of these ranks",
        )
    found = []
    for link in links:
        bandwidth, latency = measured(link) or (link.bandwidth_bps, link.latency_seconds)
        found.append(replace(link, bandwidth_bps=bandwidth, latency_seconds=latency))
    return tuple(found)


def _index(at: At, value: object, *, names: Sequence[str]) -> int:
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        expected = one_of(names, value) if near or len(names) < 8 else f"one of the {len(names)} devices, such as {names[0]}"
        raise at.wrong(value, f"the name of a device: {expected}")
    return list(names).index(str(value))
