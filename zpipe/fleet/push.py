"""Bringing a topology, its bundle and a rank's keys to a board.

1. What is there already with the right digest is not sent.
2. A file comes under a name for the time being, its digest is looked at there, then it is renamed. A bundle comes whole: into a
   folder named after its digest, which takes the old one's place when all of it is there, so no node ever starts from half of it.
   What a broken connection left is used by the next push.
3. The topology comes last: what it names is there by then.
4. Of the secrets only those of the board's own ranks leave this machine, and are readable by their owner alone from their first
   byte on.
5. One push at a time holds a board's folder.
"""

from __future__ import annotations

import hashlib
import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zpipe import __version__
from zpipe.bundle import MANIFEST, Bundle, file_digest
from zpipe.deploy import Layout, UnitOptions, layout, render_unit
from zpipe.errors import ConfigError, ZpipeError
from zpipe.fleet.connection import CONNECT_SECONDS, Link, connected
from zpipe.fleet.hosts import Board
from zpipe.security import read_secret, secret_file
from zpipe.topology import Topology
from zpipe.topology.keys import PUBLIC_FILE

#: For a short question to a board that is busy, and for one that has it hash a bundle.
ASK_SECONDS, HASH_SECONDS = 30.0, 300.0
#: For pip on a board, which may have to build something.
INSTALL_SECONDS = 1800.0
#: Left free on a board, besides what is sent.
SPARE_BYTES = 1_000_000
_LOCK = ".push.lock"

#: Told (bytes that are there, bytes that are to be sent) of one board.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One file to bring.

    Attributes:
        data: where it is here, or what is in it.
        to: its path on the board.
        digest: sha256, hex.
        mode: of the file there.
    """

    data: Path | bytes
    to: str
    digest: str
    mode: int = 0o644

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size


@dataclass(slots=True)
class Pushed:
    """What a push did to one board.

    Attributes:
        sent_files, sent_bytes: that were not there.
        kept_files: that were.
        seconds: it took.
        folder: where it all is, absolute.
        installed: whether zpipe was installed there.
        zpipe: the program there, "" where none was found.
        version: of it.
        notes: lines for people: what else has to be done there.
    """

    board: Board
    sent_files: int = 0
    sent_bytes: int = 0
    kept_files: int = 0
    seconds: float = 0.0
    folder: str = ""
    installed: bool = False
    zpipe: str = ""
    version: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Cargo:
    """What goes to boards, read once for all of them.

    Attributes:
        bundle: its files, paths from the bundle's folder.
        common: the topology and the public keys, in the order in which they come.
        secrets: {rank: its secret} of those that are here.
        serving: ranks that `zpipe node` runs.
    """

    places: Layout
    name: str
    bundle: tuple[Item, ...]
    digest: str
    common: tuple[Item, ...]
    secrets: dict[int, Item]
    serving: tuple[int, ...]


def load(topology: Topology, bundle: Bundle) -> Cargo:
    """What has to be on a board.

    Raises:
        ConfigError: a place or a secret cannot be used.
    """
    places = layout(topology)
    assert topology.path is not None
    common = [_item(topology.path, places.topology)]
    secrets: dict[int, Item] = {}
    folder = topology.security.folder
    if places.keys is not None and folder is not None:
        common.insert(0, _item(folder / PUBLIC_FILE, f"{places.keys}/{PUBLIC_FILE}"))
        for node in topology.nodes:
            file = secret_file(folder, node.rank)
            if file.exists():
                secret = f"{read_secret(file)}\n".encode()
                secrets[node.rank] = _content(secret, f"{places.keys}/{file.name}", mode=0o600)
    real = bundle.real
    files = [stage.file for stage in real.stages]
    others = (real.evaluation_file, real.replay_file, real.bottleneck_file, real.calibration_file, MANIFEST)
    names = dict.fromkeys([*files, *(name for name in others if name is not None)])
    return Cargo(
        places,
        topology.name,
        tuple(_item(real.path / name, name) for name in names),
        real.digest,
        tuple(common),
        secrets,
        tuple(node.rank for node in topology.nodes if topology.source_at(node.rank) is None),
    )


def _item(file: Path, to: str) -> Item:
    try:
        return Item(file, to, file_digest(file).removeprefix("sha256:"))
    except OSError as exc:
        raise ConfigError(f"{file}: found that it cannot be read ({exc.strerror}), expected a file to send") from exc


def _content(data: bytes, to: str, *, mode: int = 0o644) -> Item:
    return Item(data, to, hashlib.sha256(data).hexdigest(), mode)


async def push(
    cargo: Cargo,
    board: Board,
    *,
    folder: str,
    program: str = "",
    install: str = "",
    units: bool = False,
    arguments: tuple[str, ...] = (),
    seconds: float = CONNECT_SECONDS,
    progress: Progress,
) -> Pushed:
    """Brings it to one board.

    Args:
        cargo: what.
        board: where, with the ranks that are to have their secrets there.
        folder: on the board; from its home on if it does not begin with /.
        program: the zpipe there; looked for if not given.
        install: a wheel here, or what else pip takes there, for an environment in the folder; "" = nothing.
        units: install systemd units of the user, too, and enable those of its ranks.
        arguments: of `zpipe node` in these.
        seconds: for the connection.
        progress: told how far it is.

    Raises:
        ZpipeError: it failed; what is there stays usable as it was.
    """
    started = time.monotonic()
    async with connected(board, seconds) as link:
        answers = await link.ask("look", folder, cargo.places.keys or "", seconds=ASK_SECONDS)
        there, secrets = dict(answers), [name for word, name in answers if word == "secret"]
        done = Pushed(board, folder=there["folder"])
        wanted = _small(cargo, done, secrets)
        async with link.locked(posixpath.join(done.folder, _LOCK), ASK_SECONDS):
            await _Push(link, cargo, done, wanted, int(there["free"]) * 1024, progress).run()
            if install:
                await _install(link, done, install)
        await _look_for_zpipe(link, done, program)
        if units:
            await _install_units(link, cargo, done, there["home"], arguments)
    done.seconds = time.monotonic() - started
    return done


def _small(cargo: Cargo, done: Pushed, there: Sequence[str]) -> list[Item]:
    """What the board gets besides the bundle: the secrets of its ranks first, the topology last."""
    keys, ranks = cargo.places.keys, done.board.ranks
    if keys is not None:
        own = [f"node{rank}.secret" for rank in ranks]
        for rank in ranks:
            if rank not in cargo.secrets and f"node{rank}.secret" not in there:
                raise ZpipeError(
                    f"the secret of rank {rank} is neither here nor there; make keys with `zpipe keygen`, here or there"
                )
        others = ", ".join(sorted(set(there) - set(own)))
        if others:
            done.notes.append(f"{done.folder}/{keys} has {others}, too, of ranks that are not this board's; remove them there")
    return [*(cargo.secrets[rank] for rank in ranks if rank in cargo.secrets), *cargo.common]


class _Push:
    """One push to one board; paths are from its folder on."""

    def __init__(self, link: Link, cargo: Cargo, done: Pushed, small: Sequence[Item], free: int, progress: Progress) -> None:
        self._link, self._cargo, self._done, self._small = link, cargo, done, small
        self._free, self._progress = free, progress
        self._total = self._there = 0

    async def run(self) -> None:
        bundle, files = self._cargo.places.bundle, self._cargo.bundle
        head, name = posixpath.split(bundle)
        fresh = posixpath.join(head, f".{name}.{self._cargo.digest[:12]}.part")
        both = [f"{where}/{item.to}" for where in (bundle, fresh) for item in files]
        found = await self._digests([*both, *(item.to for item in self._small)])
        kept = [item.to for item in files if found.get(f"{bundle}/{item.to}") == item.digest]
        ready = [item.to for item in files if found.get(f"{fresh}/{item.to}") == item.digest]
        whole = len(kept) == len(files)
        missing = [] if whole else [replace(item, to=f"{fresh}/{item.to}") for item in files if item.to not in (*kept, *ready)]
        small = [item for item in self._small if found.get(item.to) != item.digest]
        self._plan(missing, small)
        if not whole:
            reused = [name for name in kept if name not in ready]
            if reused:
                await self._ask("reuse", bundle, fresh, *reused)
            await self._bring(missing, resume=True)
            await self._ask("swap", bundle, fresh, posixpath.join(head, f".{name}.old"))
        await self._bring(small, resume=False)
        self._progress(self._total, self._total)

    def _plan(self, missing: Sequence[Item], small: Sequence[Item]) -> None:
        self._total = sum(item.size for item in (*missing, *small))
        self._done.sent_files, self._done.sent_bytes = len(missing) + len(small), self._total
        self._done.kept_files = len(self._cargo.bundle) + len(self._small) - self._done.sent_files
        if self._total and self._total + SPARE_BYTES > self._free:
            raise ZpipeError(
                f"{self._free / 1e6:.1f} MB are free in {self._done.folder}, expected {(self._total + SPARE_BYTES) / 1e6:.1f}; "
                "make room there, or say --dir"
            )
        self._progress(0, self._total)

    async def _bring(self, items: Sequence[Item], *, resume: bool) -> None:
        """Sends, compares, renames; what arrived damaged, or was from another try, is sent once more."""
        for again in (False, True):
            if not items:
                return
            async with self._link.carrier() as carrier:
                for item in items:
                    partial = posixpath.join(self._done.folder, _partial(item.to))
                    await carrier.send(item.data, partial, mode=item.mode, resume=resume and not again, sent=self._sent)
            items = await _place(self._link, self._done.folder, items)
            self._there -= sum(item.size for item in items)
        if items:
            raise ZpipeError(f"{items[0].to} arrives damaged there, twice; is its disk full, or failing?")

    def _sent(self, count: int) -> None:
        self._there += count
        self._progress(self._there, self._total)

    async def _digests(self, paths: Sequence[str]) -> dict[str, str]:
        """{path: sha256} of those that are there."""
        answers = await self._ask("digests", *paths, seconds=HASH_SECONDS)
        return {path.lstrip(" *"): digest for digest, path in answers}

    async def _ask(self, verb: str, *arguments: str, seconds: float = ASK_SECONDS) -> list[tuple[str, str]]:
        return await self._link.ask(verb, self._done.folder, *arguments, seconds=seconds)


async def _place(link: Link, folder: str, items: Sequence[Item]) -> list[Item]:
    """Gives what has arrived its name for good; those whose digest is another than it should be."""
    words = [word for item in items for word in (item.digest, _partial(item.to), item.to)]
    placed = {path for word, path in await link.ask("place", folder, *words, seconds=HASH_SECONDS) if word == "placed"}
    return [item for item in items if item.to not in placed]


def _partial(path: str) -> str:
    """The name for the time being."""
    head, name = posixpath.split(path)
    return posixpath.join(head, f".{name}.partial")


# ---- what else a board needs ---------------------------------------------------------------------


async def _install(link: Link, done: Pushed, what: str) -> None:
    """zpipe in the folder's own environment, unless it is that one already."""
    known = what
    if what.endswith(".whl"):
        wheel = _item(Path(what), f"fleet/{Path(what).name}")
        if (await link.ask("digests", done.folder, wheel.to, seconds=ASK_SECONDS))[:1] != [(wheel.digest, f" {wheel.to}")]:
            async with link.carrier() as carrier:
                partial = posixpath.join(done.folder, _partial(wheel.to))
                await carrier.send(wheel.data, partial, mode=wheel.mode, resume=False, sent=lambda count: None)
            if await _place(link, done.folder, [wheel]):
                raise ZpipeError(f"{wheel.to} arrives damaged there; is its disk full, or failing?")
        what, known = wheel.to, wheel.digest
    answers = await link.ask("install", done.folder, what, known, seconds=INSTALL_SECONDS)
    done.installed = any(word == "installed" for word, _ in answers)


async def _look_for_zpipe(link: Link, done: Pushed, program: str) -> None:
    found = dict(await link.ask("zpipe", done.folder, program, seconds=ASK_SECONDS))
    done.zpipe, done.version = found.get("zpipe", ""), found.get("version", "")
    if not done.zpipe:
        at = f" at {program}" if program else ""
        done.notes.append(
            f"no zpipe found there{at}: push again with --install WHEEL (or --install zpipe=={__version__}, from an index)"
        )
    elif "broken" in found:
        done.notes.append(f"{done.zpipe} does not run there: {found['broken']}")
    elif done.version != __version__:
        done.notes.append(
            f"zpipe {done.version} runs there, {__version__} here: nodes of different versions may not understand each other"
        )


async def _install_units(link: Link, cargo: Cargo, done: Pushed, home: str, arguments: tuple[str, ...]) -> None:
    if not done.zpipe:
        raise ZpipeError("no unit can be installed where no zpipe is; see --program")
    unit = render_unit(cargo.name, cargo.places, UnitOptions(folder=done.folder, program=done.zpipe, arguments=arguments))
    folder = f"{home}/.config/systemd/user"
    item = _content(unit.text.encode(), f"{folder}/{unit.name}")
    async with link.carrier() as carrier:
        await carrier.send(item.data, _partial(item.to), mode=item.mode, resume=False, sent=lambda count: None)
    if await _place(link, done.folder, [item]):
        raise ZpipeError(f"{item.to} arrives damaged there; is its disk full, or failing?")
    ranks = [rank for rank in done.board.ranks if rank in cargo.serving]
    answers = dict(await link.ask("units", done.folder, unit.name, *ranks, seconds=ASK_SECONDS))
    if "linger" in answers:
        done.notes.append(f"its nodes start with a log-in, not with the board, before this ran there: {answers['linger']}")
