"""Which board is which: what a topology, a file of hosts and a command line say of where ranks run.

A host is written `[USER@]HOST[:PORT]`, as `ssh` takes it or as ~/.ssh/config names it, with the ranks it is for before it where the
topology does not tell them by its addresses: `1=nano@orin1`, `2,3=orin2:2222`. Ranks alone, `1,2`, are meant where the file or the
topology has them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zpipe.errors import ConfigError
from zpipe.security import is_loopback
from zpipe.topology import Topology

#: Beside a topology: its hosts, a line each, written as on the command line.
HOSTS_SUFFIX = ".hosts"

_RANKS = re.compile(r"\d+(,\d+)*", re.ASCII)
_HOST = re.compile(
    r"((?P<ranks>\d+(,\d+)*)=)?((?P<user>[^@=\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@:=\s\[\]-][^@:=\s\[\]]*)(:(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Board:
    """A machine that is reached over SSH, and the ranks that run on it.

    Attributes:
        host: name or address, as SSH is told.
        user: "" = whom ~/.ssh/config says, or who asks.
        port: 0 = what ~/.ssh/config says, or 22.
        ranks: rising.
    """

    host: str
    user: str = ""
    port: int = 0
    ranks: tuple[int, ...] = ()

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return f"{user}{host}{f':{self.port}' if self.port else ''}"

    @property
    def ssh(self) -> str:
        """The command by which a person gets there."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.host}"


def hosts_file(topology: Topology, given: Path | None) -> Path | None:
    """The file of hosts: the one given, else the one beside the topology, if there is one."""
    if given is not None or topology.path is None:
        return given
    beside = topology.path.with_suffix(HOSTS_SUFFIX)
    return beside if beside.is_file() else None


def boards(topology: Topology, words: Sequence[str], file: Path | None = None, *, sources: bool = False) -> list[Board]:
    """The boards that are meant, by their lowest ranks.

    Cases:
        1. No words: every rank that serves, at the host that the file says, else at its address; a source where the file has it.
        2. Ranks alone: where the file or the topology has them.
        3. A word with ranks: these, there.
        4. A word without: the ranks that the file or the topology has at that host; its user and port count.

    Args:
        topology: whose ranks.
        words: of the command line.
        file: of hosts, words like these one a line; `#` begins a comment.
        sources: whether ranks that are sources may be meant; they are run by whoever submits.

    Raises:
        ConfigError: a word that cannot be understood, a rank that does not exist or is named twice, a host without ranks, or a rank
            whose address does not say where it runs.
    """
    known = {node.rank: Board(_bare(node.host)) for node in topology.nodes}
    told: set[int] = set()
    for where, word in _file_words(file):
        for rank, board in _meant(topology, known, word, where).items():
            if rank in told:
                raise ConfigError(f"{where}: found rank {rank} a second time, expected each once")
            known[rank] = board
            told.add(rank)
    chosen: dict[int, Board] = {}
    for word in words:
        for rank, board in _meant(topology, known, word, "HOST").items():
            if chosen.get(rank, board) != board:
                raise ConfigError(f"HOST: found rank {rank} at {chosen[rank]} and at {board}, expected one of the two")
            chosen[rank] = board
    serving = {node.rank for node in topology.nodes if topology.source_at(node.rank) is None}
    if not words:
        chosen = {rank: board for rank, board in known.items() if rank in serving or (rank in told and sources)}
        _check_reachable(topology, chosen, told)
    if not sources:
        _check_serving(topology, chosen, serving)
    return _grouped(chosen)


def _file_words(file: Path | None) -> Iterable[tuple[str, str]]:
    """(place, word) of each line."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: found a file that cannot be read ({exc}), expected lines RANK=USER@HOST:PORT") from exc
    stripped = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    return [(f"{file}: line {number}", word) for number, word in stripped if word]


def _meant(topology: Topology, known: Mapping[int, Board], word: str, where: str) -> dict[int, Board]:
    """{rank: board} of one word."""
    if _RANKS.fullmatch(word):
        return {rank: known[rank] for rank in _ranks(topology, word, where)}
    found = _HOST.fullmatch(word)
    port = int(found["port"] or 0) if found else 0
    if found is None or port > 65535:
        raise ConfigError(f"{where}: found {word!r}, expected [RANK=][USER@]HOST[:PORT], such as 1=nano@192.168.1.12, or a rank")
    host = found["host"].strip("[]")
    board = Board(host, found["user"] or "", port)
    if found["ranks"]:
        return dict.fromkeys(_ranks(topology, found["ranks"], where), board)
    there = {rank: at for rank, at in known.items() if at.host == host and port in (0, at.port or port)}
    if not there:
        places = ", ".join(f"{rank} at {at}" for rank, at in known.items())
        raise ConfigError(
            f"{where}: found {board}, where the topology has no rank (it has {places}), expected one of these, or its rank said: "
            f"1={word}"
        )
    return {rank: Board(host, board.user or at.user, port or at.port) for rank, at in there.items()}


def _ranks(topology: Topology, text: str, where: str) -> list[int]:
    ranks = [int(rank) for rank in text.split(",")]
    for rank in ranks:
        if rank >= len(topology.nodes):
            raise ConfigError(f"{where}: found rank {rank}, expected 0 to {len(topology.nodes) - 1}")
    return ranks


def _bare(host: str) -> str:
    return host.strip("[]")


def _check_reachable(topology: Topology, chosen: Mapping[int, Board], told: Collection[int]) -> None:
    for rank, board in chosen.items():
        if rank not in told and is_loopback(f"{topology.node(rank).host}:0"):
            raise ConfigError(
                f"{topology.path}: rank {rank}: found address {board.host}, which is whichever machine asks, expected one that "
                f"says its board; write `address:`, or say {rank}=USER@HOST (or a line of it in "
                f"{topology.path.with_suffix(HOSTS_SUFFIX) if topology.path else 'a file'})"
            )


def _check_serving(topology: Topology, chosen: dict[int, Board], serving: Collection[int]) -> None:
    for rank in [rank for rank in chosen if rank not in serving]:
        board = chosen.pop(rank)
        if not any(other.host == board.host for other in chosen.values()):
            raise ConfigError(
                f"{topology.path}: rank {rank} at {board} is a source, expected a rank that serves; a source is run by whoever "
                "submits: `zpipe bench --attach`, or Pipeline.connect in your program"
            )


def _grouped(chosen: Mapping[int, Board]) -> list[Board]:
    groups: dict[Board, list[int]] = {}
    for rank, board in sorted(chosen.items()):
        groups.setdefault(board, []).append(rank)
    return [Board(board.host, board.user, board.port, tuple(ranks)) for board, ranks in groups.items()]
